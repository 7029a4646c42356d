//! How a verdict lies on disk: a version, a checksum over key and payload, the payload. The
//! checksum binds the value to its key, so that a misplaced value is as dead as a damaged one.

use model::Verdict;
use prost::Message;
use proto::v1;
use scan_core::CacheKey;

/// Version of the value's layout.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;

pub(super) fn encode(key: &CacheKey, verdict: &Verdict) -> Vec<u8> {
    let payload = v1::Verdict::from(verdict).encode_to_vec();
    let mut out = Vec::with_capacity(1 + CHECKSUM_BYTES + payload.len());
    out.push(VERSION);
    out.extend_from_slice(&checksum(key, &payload));
    out.extend_from_slice(&payload);
    out
}

/// `None` for anything that [`encode`] did not write under this key, and for what must never have
/// been kept.
pub(super) fn decode(key: &CacheKey, bytes: &[u8]) -> Option<Verdict> {
    let (&version, rest) = bytes.split_first()?;
    let (sum, payload) = rest.split_first_chunk::<CHECKSUM_BYTES>()?;
    if version != VERSION || *sum != checksum(key, payload) {
        return None;
    }
    let verdict = Verdict::try_from(v1::Verdict::decode(payload).ok()?).ok()?;
    let of_this_key = verdict.generation == key.generation
        && verdict.digest == Some(key.digest)
        && verdict.outcome.is_cacheable();
    of_this_key.then_some(verdict)
}

fn checksum(key: &CacheKey, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("lazaret 1 stored verdict");
    hasher.update(&key.to_bytes());
    hasher.update(payload);
    let mut out = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Coverage, Digest, Generation, Outcome, UnscannedReason};
    use scan_core::{ContextClass, Settings};

    fn key() -> CacheKey {
        CacheKey {
            digest: Digest::of(b"x"),
            context: ContextClass::ANY,
            generation: Generation([1; 16]),
            settings: Settings::of(&[]),
        }
    }

    fn verdict(outcome: Outcome) -> Verdict {
        Verdict {
            outcome,
            coverage: Coverage::whole(1),
            generation: Generation([1; 16]),
            digest: Some(Digest::of(b"x")),
            sha256: None,
        }
    }

    #[test]
    fn round_trip() {
        let verdict = verdict(Outcome::Clean);
        assert_eq!(decode(&key(), &encode(&key(), &verdict)), Some(verdict));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = encode(&key(), &verdict(Outcome::Clean));
        for at in 0..good.len() {
            assert_eq!(decode(&key(), &good[..at]), None, "cut at {at}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert_eq!(decode(&key(), &bad), None, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_value_under_another_key_is_dead() {
        let good = encode(&key(), &verdict(Outcome::Clean));
        let other = CacheKey {
            settings: Settings::of(&[1]),
            ..key()
        };
        assert_eq!(decode(&other, &good), None);
    }

    #[test]
    fn what_must_not_be_kept_is_not_read() {
        let unscanned = verdict(Outcome::unscanned(UnscannedReason::Deadline));
        assert_eq!(decode(&key(), &encode(&key(), &unscanned)), None);
    }
}
