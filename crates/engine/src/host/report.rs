//! Reports of workers, checked and capped: a worker that a file has taken over may send anything.

use model::{DETECTIONS_MAX, Detection, Generation};
use proto::v1;

use super::spec::JobResult;
use crate::packet::{PATH_COMPONENT_MAX_BYTES, PATH_COMPONENTS_MAX, TEXT_MAX_BYTES};

/// False for what no honest worker sends.
pub(super) fn is_well_formed(report: &v1::ScanReport) -> bool {
    report.detections.len() <= DETECTIONS_MAX
        && report.detections.iter().all(|detection| {
            !detection.name.is_empty() && detection.path_inside.len() <= PATH_COMPONENTS_MAX
        })
}

/// True for a worker's last report: it panicked over this file.
pub(super) fn is_crash(report: &v1::ScanReport) -> bool {
    let crashed = v1::UnscannedReason::EngineCrashed;
    let incomplete = report.incomplete.as_ref();
    incomplete.is_some_and(|unscanned| unscanned.reason() == crashed)
}

/// The result, with every text capped and the engine named by the host.
pub(super) fn accept(report: v1::ScanReport, ready: &v1::EngineReady) -> JobResult {
    let detections = report.detections.into_iter().map(|found| Detection {
        name: capped(found.name),
        engine: ready.name.clone(),
        path_inside: found
            .path_inside
            .into_iter()
            .map(|mut component| {
                component.truncate(PATH_COMPONENT_MAX_BYTES);
                component
            })
            .collect(),
    });
    JobResult {
        detections: detections.take(DETECTIONS_MAX).collect(),
        omitted: report.omitted,
        incomplete: report.incomplete.map(|unscanned| {
            let reason = unscanned.reason().into();
            (reason, capped(unscanned.detail))
        }),
        error: (!report.error.is_empty()).then(|| capped(report.error)),
        members_judged: report.members_judged,
        member_bytes_judged: report.member_bytes_judged,
        generation: generation(ready),
    }
}

/// The generation that a template announced; its form was checked when it started.
pub(super) fn generation(ready: &v1::EngineReady) -> Generation {
    Generation::from_slice(&ready.generation).unwrap_or_default()
}

fn capped(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::UnscannedReason;

    fn detection(name: &str, components: usize) -> v1::Detection {
        v1::Detection {
            name: name.to_owned(),
            engine: "liar".to_owned(),
            path_inside: vec![b"x".repeat(5000); components],
        }
    }

    #[test]
    fn what_no_honest_worker_sends_is_refused() {
        let with = |detections| v1::ScanReport {
            detections,
            ..Default::default()
        };
        assert!(is_well_formed(&with(vec![detection("a", 64); 64])));
        assert!(!is_well_formed(&with(vec![detection("a", 0); 65])));
        assert!(!is_well_formed(&with(vec![detection("", 0)])));
        assert!(!is_well_formed(&with(vec![detection("a", 65)])));
    }

    #[test]
    fn texts_are_capped_and_the_engine_is_named_by_the_host() {
        let report = v1::ScanReport {
            detections: vec![detection(&"é".repeat(1000), 1)],
            incomplete: Some(v1::Unscanned {
                reason: 9999,
                detail: "d".repeat(10_000),
            }),
            error: "e".repeat(10_000),
            ..Default::default()
        };
        let ready = v1::EngineReady {
            name: "yara".to_owned(),
            generation: vec![7; 16],
            ..Default::default()
        };
        let result = accept(report, &ready);
        let found = &result.detections[0];
        assert_eq!(found.engine, "yara");
        assert_eq!(found.name.len(), TEXT_MAX_BYTES);
        assert_eq!(found.path_inside[0].len(), PATH_COMPONENT_MAX_BYTES);
        let (reason, detail) = result.incomplete.expect("incomplete");
        assert_eq!(reason, UnscannedReason::Other);
        assert_eq!(detail.len(), TEXT_MAX_BYTES);
        assert_eq!(result.error.map(|e| e.len()), Some(TEXT_MAX_BYTES));
        assert_eq!(result.generation, Generation([7; 16]));
    }
}
