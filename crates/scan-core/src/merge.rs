//! Several engines' findings become one verdict.

use model::{
    Coverage, DETECTIONS_MAX, Detection, Digest, Generation, Outcome, UnscannedReason, Verdict,
};

use crate::Finding;

/// The verdict of all engines together.
///
/// Any detection makes it malicious; else the first engine that could not judge all makes it
/// unscanned; else the first that failed makes it an error; only then is it clean. No finding at
/// all is unscanned(engine_unavailable).
///
/// Coverage: bytes that *every* engine judged, so clean always means all of them; for malicious,
/// bytes that the engine which judged most has seen, since one engine is enough there. Members
/// are those of the engine that judged most of them. SHA-256 is whoever has the content's to add.
#[must_use]
pub fn merge(
    size: u64,
    generation: Generation,
    digest: Option<Digest>,
    findings: &[Finding],
) -> Verdict {
    let outcome = outcome(findings);
    let judged = findings.iter().map(|finding| bytes_judged(finding, size));
    let bytes_judged = match outcome {
        Outcome::Malicious { .. } => judged.max(),
        _ => judged.min(),
    };
    let most_members = findings.iter().max_by_key(|f| f.member_bytes_judged);
    let coverage = Coverage {
        bytes_judged: bytes_judged.unwrap_or(0),
        members_judged: most_members.map_or(0, |f| f.members_judged),
        member_bytes_judged: most_members.map_or(0, |f| f.member_bytes_judged),
        ..Coverage::none(size)
    };
    Verdict {
        outcome,
        coverage,
        generation,
        digest,
        sha256: None,
    }
}

fn outcome(findings: &[Finding]) -> Outcome {
    if findings.is_empty() {
        return Outcome::Unscanned {
            reason: UnscannedReason::EngineUnavailable,
            detail: "no engine is configured".into(),
        };
    }
    if let Some(malicious) = malicious(findings) {
        return malicious;
    }
    if let Some((reason, detail)) = findings.iter().find_map(|f| f.incomplete.clone()) {
        return Outcome::Unscanned { reason, detail };
    }
    if let Some(message) = findings.iter().find_map(|f| f.error.clone()) {
        return Outcome::Error { message };
    }
    Outcome::Clean
}

fn malicious(findings: &[Finding]) -> Option<Outcome> {
    let all: Vec<&Detection> = findings.iter().flat_map(|f| &f.detections).collect();
    if all.is_empty() {
        return None;
    }
    let beyond = u32::try_from(all.len().saturating_sub(DETECTIONS_MAX)).unwrap_or(u32::MAX);
    let omitted = findings.iter().map(|f| f.omitted);
    Some(Outcome::Malicious {
        detections: all.into_iter().take(DETECTIONS_MAX).cloned().collect(),
        omitted: omitted.fold(beyond, u32::saturating_add),
    })
}

/// Bytes of the file itself that this engine has judged for certain. A limit met while unpacking
/// concerns members, so the file's own bytes were judged; after anything else nothing is certain.
fn bytes_judged(finding: &Finding, size: u64) -> u64 {
    use UnscannedReason as R;
    let only_members_missing = matches!(
        finding.incomplete,
        None | Some((
            R::Encrypted
                | R::UnpackDepth
                | R::UnpackEntries
                | R::UnpackRatio
                | R::UnpackEntryBytes
                | R::UnpackTotalBytes
                | R::UnpackMalformed
                | R::UnpackUnsupported,
            _
        ))
    );
    if finding.error.is_none() && only_members_missing {
        size
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(name: &str) -> Finding {
        Finding {
            detections: vec![Detection {
                name: name.into(),
                engine: "double".into(),
                path_inside: vec![],
            }],
            ..Finding::default()
        }
    }
    fn failed() -> Finding {
        Finding {
            error: Some("no rules".into()),
            ..Finding::default()
        }
    }
    fn encrypted() -> Finding {
        Finding::incomplete(Generation::default(), UnscannedReason::Encrypted, "a.zip")
    }
    fn crashed() -> Finding {
        Finding::incomplete(
            Generation::default(),
            UnscannedReason::EngineCrashed,
            "signal 11",
        )
    }

    #[track_caller]
    fn check(findings: &[Finding], outcome: &str, bytes_judged: u64) {
        let verdict = merge(100, Generation([1; 16]), None, findings);
        assert_eq!(verdict.outcome.name(), outcome);
        assert_eq!(verdict.coverage.bytes_judged, bytes_judged);
        assert_eq!(verdict.coverage.bytes_total, 100);
    }

    #[test]
    fn precedence() {
        check(&[], "unscanned", 0);
        check(&[Finding::default()], "clean", 100);
        check(&[Finding::default(), crashed()], "unscanned", 0);
        check(&[Finding::default(), encrypted()], "unscanned", 100);
        check(&[failed(), crashed()], "unscanned", 0);
        check(&[Finding::default(), failed()], "error", 0);
        check(&[failed(), crashed(), bad("x")], "malicious", 100);
    }

    #[test]
    fn detections_are_bounded_and_counted() {
        let many = Finding {
            detections: vec![bad("x").detections[0].clone(); 50],
            omitted: 3,
            ..Finding::default()
        };
        let verdict = merge(1, Generation([1; 16]), None, &[many.clone(), many]);
        let Outcome::Malicious {
            detections,
            omitted,
        } = verdict.outcome
        else {
            panic!("not malicious");
        };
        assert_eq!((detections.len(), omitted), (DETECTIONS_MAX, 100 - 64 + 6));
    }

    mod any_findings {
        use super::*;
        use proptest::prelude::*;

        fn finding() -> impl Strategy<Value = Finding> {
            let reason = proptest::sample::select(UnscannedReason::ALL.to_vec());
            (
                any::<bool>(),
                proptest::option::weighted(0.3, reason),
                proptest::bool::weighted(0.2),
            )
                .prop_map(|(is_bad, reason, is_error)| Finding {
                    detections: if is_bad { bad("x").detections } else { vec![] },
                    incomplete: reason.map(|r| (r, String::new())),
                    error: is_error.then(|| "broken".to_owned()),
                    ..Finding::default()
                })
        }

        proptest! {
            #[test]
            fn clean_only_where_every_engine_judged_everything(
                findings in proptest::collection::vec(finding(), 0..5)
            ) {
                let verdict = merge(100, Generation([1; 16]), None, &findings);
                let all_complete = !findings.is_empty() && findings.iter().all(|f| {
                    f.detections.is_empty() && f.incomplete.is_none() && f.error.is_none()
                });
                prop_assert_eq!(verdict.outcome == Outcome::Clean, all_complete);
                let any_bad = findings.iter().any(|f| !f.detections.is_empty());
                prop_assert_eq!(verdict.outcome.name() == "malicious", any_bad);
                if verdict.outcome == Outcome::Clean {
                    prop_assert_eq!(verdict.coverage.bytes_judged, 100);
                }
            }
        }
    }
}
