//! One suite for every store, against real servers: PostgreSQL and Redis are started here, on unix
//! sockets in folders of their own. Needs root, since PostgreSQL must not run as root itself.

mod conformance;
mod guard;
mod servers;
mod sightings;

use std::sync::Arc;
use std::time::Duration;

use model::{Coverage, Detection, Digest, Generation, Outcome, Verdict};
use scan_core::{CacheKey, ContextClass, Settings};
use verdict_store::{
    Address, Embedded, Entry, FleetKey, JudgedBy, Keyring, Sealed, SharedSettings, VerdictStore,
};

fn settings() -> SharedSettings {
    SharedSettings {
        password: None,
        ca_file: None,
        keep: Duration::from_secs(3600),
        entries_max: 1_000_000,
        sightings_max: 1_000_000,
        sightings_keep: Duration::from_secs(3600),
        connections_max: 4,
    }
}

fn open(url: &str) -> Arc<dyn VerdictStore> {
    open_with(url, &settings())
}

fn open_with(url: &str, settings: &SharedSettings) -> Arc<dyn VerdictStore> {
    url.parse::<Address>()
        .unwrap()
        .open(settings)
        .unwrap()
        .verdicts
}

fn embedded(dir: &tempfile::TempDir) -> Arc<dyn VerdictStore> {
    Arc::new(Embedded::open(dir.path(), 64 << 20).unwrap())
}

fn key(n: u32) -> CacheKey {
    CacheKey {
        digest: Digest::of(&n.to_be_bytes()),
        context: ContextClass::ANY,
        generation: Generation([1; 16]),
        settings: Settings::of(&[1]),
    }
}

fn ring() -> Keyring {
    Keyring::new(FleetKey::new(&[7; 32]), None)
}

fn entry(key: &CacheKey, outcome: Outcome) -> Entry {
    let verdict = Verdict {
        outcome,
        coverage: Coverage::whole(4),
        generation: key.generation,
        digest: Some(key.digest),
        sha256: None,
    };
    let engine = JudgedBy {
        name: "yara".into(),
        version: "1".into(),
        generation: Generation([9; 16]),
    };
    Entry::of(key, &verdict, vec![engine], 1_700_000_000).unwrap()
}

fn malicious() -> Outcome {
    let detection = Detection {
        name: "Test.Evil".into(),
        engine: "yara".into(),
        path_inside: vec![b"a\xff".to_vec()],
    };
    Outcome::Malicious {
        detections: vec![detection],
        omitted: 2,
    }
}

fn sealed(bytes: &[u8]) -> Sealed {
    Sealed(bytes.to_vec())
}
