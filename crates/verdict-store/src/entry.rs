//! What is kept about content.

use model::{Coverage, Detection, Generation, Outcome, Verdict};
use scan_core::CacheKey;

/// The outcomes that may be kept; the other two cannot even be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// Nothing matched.
    Clean,
    /// At least one engine calls it malicious.
    Malicious {
        /// Never empty, at most [`model::DETECTIONS_MAX`].
        detections: Vec<Detection>,
        /// Detections beyond those.
        omitted: u32,
    },
}

/// An engine that judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineVersion {
    /// As in detections.
    pub name: String,
    /// For people.
    pub version: String,
}

/// A verdict with its evidence, as the fleet shares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Clean or malicious.
    pub judged: Judged,
    /// Who judged, at most 16.
    pub engines: Vec<EngineVersion>,
    /// Which bytes were judged.
    pub coverage: Coverage,
    /// The read plan that chose those bytes; `None`: the whole content was there.
    pub plan: Option<Generation>,
    /// Unix seconds.
    pub judged_at: u64,
}

impl Entry {
    /// The entry for a verdict; `None` for one that is neither clean nor malicious.
    #[must_use]
    pub fn of(
        verdict: &Verdict,
        engines: Vec<EngineVersion>,
        plan: Option<Generation>,
        judged_at: u64,
    ) -> Option<Self> {
        let judged = match &verdict.outcome {
            Outcome::Clean => Judged::Clean,
            Outcome::Malicious {
                detections,
                omitted,
            } => Judged::Malicious {
                detections: detections.clone(),
                omitted: *omitted,
            },
            Outcome::Unscanned { .. } | Outcome::Error { .. } => return None,
        };
        Some(Self {
            judged,
            engines,
            coverage: verdict.coverage.clone(),
            plan,
            judged_at,
        })
    }

    /// The verdict under the key that the entry was found by.
    #[must_use]
    pub fn verdict(&self, key: &CacheKey) -> Verdict {
        let outcome = match &self.judged {
            Judged::Clean => Outcome::Clean,
            Judged::Malicious {
                detections,
                omitted,
            } => Outcome::Malicious {
                detections: detections.clone(),
                omitted: *omitted,
            },
        };
        Verdict {
            outcome,
            coverage: self.coverage.clone(),
            generation: key.generation,
            digest: Some(key.digest),
            sha256: None,
        }
    }
}
