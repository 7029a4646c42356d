//! What is kept about content, and how it is written down.

use model::{Digest, Generation, Verdict};
use prost::Message;
use proto::v1;
use scan_core::CacheKey;

/// Bytes of one sealed entry at most; a longer one is not kept.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Engines named in one entry at most.
const ENGINES_MAX: usize = 16;

/// An engine that judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedBy {
    /// As in detections.
    pub name: String,
    /// For people.
    pub version: String,
    /// Its version and rules.
    pub generation: Generation,
}

/// A verdict with what it rests on: clean or malicious, of content that was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    verdict: Verdict,
    engines: Vec<JudgedBy>,
    judged_at_s: u64,
}

impl Entry {
    /// The entry for a verdict of content that the caller has proved to have the key's digest.
    ///
    /// `None` for what must never be shared: an outcome that is neither clean nor malicious, clean
    /// of less than the whole, a verdict under another key.
    #[must_use]
    pub fn of(
        key: &CacheKey,
        verdict: &Verdict,
        engines: Vec<JudgedBy>,
        judged_at_s: u64,
    ) -> Option<Self> {
        let entry = Self {
            verdict: verdict.clone(),
            engines,
            judged_at_s,
        };
        entry.fits(key).then_some(entry)
    }

    fn fits(&self, key: &CacheKey) -> bool {
        let Verdict {
            outcome,
            coverage,
            generation,
            digest,
            ..
        } = &self.verdict;
        let is_whole = coverage.bytes_judged == coverage.bytes_total && coverage.ranges.is_empty();
        let is_certain = match outcome {
            model::Outcome::Clean => is_whole,
            other => other.is_cacheable(),
        };
        is_certain
            && *generation == key.generation
            && *digest == Some(key.digest)
            && self.engines.len() <= ENGINES_MAX
    }

    /// The verdict.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Who judged.
    #[must_use]
    pub fn engines(&self) -> &[JudgedBy] {
        &self.engines
    }

    /// Seconds since 1970 UTC.
    #[must_use]
    pub fn judged_at_s(&self) -> u64 {
        self.judged_at_s
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let verdict = v1::Verdict {
            generation: Vec::new(),
            blake3: Vec::new(),
            ..v1::Verdict::from(&self.verdict)
        };
        let engines = self.engines.iter().map(|engine| v1::JudgedBy {
            name: engine.name.clone(),
            version: engine.version.clone(),
            generation: engine.generation.0.to_vec(),
        });
        v1::StoredVerdict {
            verdict: Some(verdict),
            engines: engines.collect(),
            judged_at_s: self.judged_at_s,
        }
        .encode_to_vec()
    }

    /// `None` for anything that [`of`](Self::of) does not make. Read only after its MAC was found
    /// good.
    pub(crate) fn decode(key: &CacheKey, bytes: &[u8]) -> Option<Self> {
        let stored = v1::StoredVerdict::decode(bytes).ok()?;
        let verdict = v1::Verdict {
            generation: key.generation.0.to_vec(),
            blake3: key.digest.0.to_vec(),
            ..stored.verdict?
        };
        let engines = stored.engines.into_iter().map(|engine| {
            Some(JudgedBy {
                name: engine.name,
                version: engine.version,
                generation: Generation::from_slice(&engine.generation)?,
            })
        });
        let entry = Self {
            verdict: Verdict::try_from(verdict).ok()?,
            engines: engines.collect::<Option<_>>()?,
            judged_at_s: stored.judged_at_s,
        };
        entry.fits(key).then_some(entry)
    }
}

/// Bytes of a [`place`].
pub(crate) const PLACE_BYTES: usize = 48;

/// Where a store keeps the entry of a key: the digest, so that all that is known of a content lies
/// together, and 16 bytes for the rest of the key. Two keys of one place would only be a bad MAC.
pub(crate) fn place(key: &CacheKey) -> [u8; PLACE_BYTES] {
    let bytes = key.to_bytes();
    let rest = blake3::derive_key("lazaret 1 place of a verdict", &bytes);
    let Digest(digest) = key.digest;
    std::array::from_fn(|at| match at.checked_sub(digest.len()) {
        None => digest[at],
        Some(at) => rest[at],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Coverage, Outcome, UnscannedReason};
    use scan_core::{ContextClass, Settings};

    fn key() -> CacheKey {
        CacheKey {
            digest: Digest::of(b"x"),
            context: ContextClass::ANY,
            generation: Generation([1; 16]),
            settings: Settings::of(&[]),
        }
    }

    fn verdict(outcome: Outcome, coverage: Coverage) -> Verdict {
        Verdict {
            outcome,
            coverage,
            generation: key().generation,
            digest: Some(key().digest),
            sha256: None,
        }
    }

    fn is_kept(verdict: &Verdict) -> bool {
        Entry::of(&key(), verdict, Vec::new(), 1).is_some()
    }

    #[test]
    fn only_what_is_certain_of_all_is_kept() {
        let whole = Coverage::whole(9);
        assert!(is_kept(&verdict(Outcome::Clean, whole.clone())));
        let unscanned = Outcome::unscanned(UnscannedReason::Deadline);
        assert!(!is_kept(&verdict(unscanned, whole.clone())));
        let message = "no".to_owned();
        assert!(!is_kept(&verdict(
            Outcome::Error { message },
            whole.clone()
        )));
        assert!(!is_kept(&verdict(Outcome::Clean, Coverage::none(9))));
        let some = Coverage {
            ranges: vec![(0, 4)],
            ..whole.clone()
        };
        assert!(!is_kept(&verdict(Outcome::Clean, some)));
        let other = Verdict {
            digest: Some(Digest::of(b"y")),
            ..verdict(Outcome::Clean, whole)
        };
        assert!(!is_kept(&other));
    }

    #[test]
    fn round_trip() {
        let engines = vec![JudgedBy {
            name: "yara".into(),
            version: "1".into(),
            generation: Generation([7; 16]),
        }];
        let clean = verdict(Outcome::Clean, Coverage::whole(9));
        let entry = Entry::of(&key(), &clean, engines, 1_700_000_000).unwrap();
        assert_eq!(Entry::decode(&key(), &entry.encode()), Some(entry));
    }

    #[test]
    fn every_part_of_a_key_has_its_place() {
        let others = [
            CacheKey {
                digest: Digest::of(b"y"),
                ..key()
            },
            CacheKey {
                generation: Generation([2; 16]),
                ..key()
            },
            CacheKey {
                settings: Settings::of(&[1]),
                ..key()
            },
        ];
        for other in others {
            assert_ne!(place(&other), place(&key()));
        }
        assert_eq!(place(&key())[..32], key().digest.0);
    }
}
