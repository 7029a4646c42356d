//! Reports of workers, checked and capped: a worker that a file has taken over may send anything.

use model::{DETECTIONS_MAX, Detection, Generation, Ranges};
use proto::{ASK_RANGES_MAX, v1};

use super::process::{Broken, Work};
use super::spec::{Content, JobResult, PartialJob, PartialResult};
use crate::packet::{PATH_COMPONENT_MAX_BYTES, PATH_COMPONENTS_MAX, TEXT_MAX_BYTES};
use crate::ranges;

/// False for what no honest worker sends.
pub(super) fn is_well_formed(report: &v1::ScanReport) -> bool {
    report.detections.len() <= DETECTIONS_MAX
        && report.detections.iter().all(|detection| {
            !detection.name.is_empty() && detection.path_inside.len() <= PATH_COMPONENTS_MAX
        })
}

/// The report, if it is one to this work.
pub(super) fn fits(report: v1::ScanReport, work: Work<'_>) -> Result<v1::ScanReport, Broken> {
    let failed = report.incomplete.is_some() || !report.error.is_empty();
    let good = match (work, &report.partial) {
        (Work::Whole(_), step) => step.is_none(),
        (Work::Partial(_), None) => failed,
        (Work::Partial(job), Some(step)) if step.lay_out => {
            let is_alone = step.ask.is_empty() && step.whole.is_empty();
            is_alone && report.detections.is_empty() && matches!(job.content, Content::Inline(_))
        }
        (Work::Partial(job), Some(step)) => match asked(step, job) {
            // A verdict, or the whole.
            Some(None) => step.whole.is_empty() || report.detections.is_empty(),
            Some(Some(_)) => step.whole.is_empty() && report.detections.is_empty(),
            None => false,
        },
    };
    match good {
        true => Ok(report),
        false => Err(Broken::Nonsense("a report that does not answer the job")),
    }
}

/// What a step asks for, that is not known; `Some(None)`: nothing. `None`: no honest worker does.
fn asked(step: &v1::PartialStep, job: &PartialJob) -> Option<Option<Ranges>> {
    if step.ask.is_empty() {
        return Some(None);
    }
    if step.ask.len() > ASK_RANGES_MAX {
        return None;
    }
    let new = ranges::read(&step.ask, job.size)?.without(&job.known);
    (1..=ASK_RANGES_MAX)
        .contains(&new.len())
        .then_some(Some(new))
}

/// Whether the worker wants the job once more, laid out.
pub(super) fn wants_layout(report: &v1::ScanReport) -> bool {
    report.partial.as_ref().is_some_and(|step| step.lay_out)
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

/// How far a partial job led: a report that [`fits`].
pub(super) fn accept_partial(
    mut report: v1::ScanReport,
    job: &PartialJob,
    ready: &v1::EngineReady,
) -> PartialResult {
    let step = report.partial.take();
    let failed = report.incomplete.is_some() || !report.error.is_empty();
    let Some(step) = step.filter(|_| !failed) else {
        return PartialResult::Failed(accept(report, ready));
    };
    if !step.whole.is_empty() {
        return PartialResult::Whole(capped(step.whole));
    }
    match asked(&step, job).flatten() {
        Some(ranges) => PartialResult::Ask(ranges),
        None => PartialResult::Judged(accept(report, ready)),
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
    use bytes::Bytes;
    use model::{FilterId, UnscannedReason};

    use crate::host::{Content, Job};

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

    fn partial_job() -> PartialJob {
        PartialJob {
            content: Content::Inline(Bytes::new()),
            size: 10_000,
            known: [0..100, 200..300].into_iter().collect(),
            filter: FilterId::default(),
            report: Bytes::new(),
            context: None,
            unpack: None,
        }
    }

    fn step(ask: &[(u64, u64)], whole: &str) -> v1::ScanReport {
        let range = |&(offset, length): &(u64, u64)| v1::ByteRange { offset, length };
        let step = v1::PartialStep {
            ask: ask.iter().map(range).collect(),
            whole: whole.to_owned(),
            lay_out: false,
        };
        v1::ScanReport {
            partial: Some(step),
            ..Default::default()
        }
    }

    #[test]
    fn a_layout_is_wanted_of_what_came_packed_and_instead_of_all_else() {
        let wants = |report: &mut v1::ScanReport, change: &dyn Fn(&mut v1::ScanReport)| {
            report.partial.as_mut().unwrap().lay_out = true;
            change(report);
            let mut job = partial_job();
            let packed = Content::Inline(Bytes::new());
            let laid_out = Content::seal(b"x").unwrap();
            [packed, laid_out].map(|content| {
                job.content = content;
                fits(report.clone(), Work::Partial(&job)).is_ok_and(|it| wants_layout(&it))
            })
        };
        assert_eq!(wants(&mut step(&[], ""), &|_| {}), [true, false]);
        assert_eq!(wants(&mut step(&[(400, 1)], ""), &|_| {}), [false, false]);
        assert_eq!(wants(&mut step(&[], "why"), &|_| {}), [false, false]);
        let found = |report: &mut v1::ScanReport| report.detections.push(detection("a", 0));
        assert_eq!(wants(&mut step(&[], ""), &found), [false, false]);
    }

    fn led(report: v1::ScanReport) -> Option<PartialResult> {
        let job = partial_job();
        let report = fits(report, Work::Partial(&job)).ok()?;
        Some(accept_partial(report, &job, &v1::EngineReady::default()))
    }

    #[test]
    fn steps_lead_where_they_say() {
        let ask = led(step(&[(50, 200), (400, 1)], ""));
        let expected = [100..200, 400..401].into_iter().collect();
        assert_eq!(ask, Some(PartialResult::Ask(expected)), "only what is new");
        let long = "w".repeat(10_000);
        let whole = led(step(&[], &long));
        assert_eq!(
            whole,
            Some(PartialResult::Whole("w".repeat(TEXT_MAX_BYTES)))
        );
        let mut found = step(&[], "");
        found.detections.push(detection("a", 0));
        let judged = led(found);
        assert!(
            matches!(judged, Some(PartialResult::Judged(result)) if result.detections.len() == 1)
        );
        // What went wrong counts more than what was found.
        let mut failed = step(&[], "");
        failed.error = "broken".to_owned();
        assert!(matches!(
            led(failed.clone()),
            Some(PartialResult::Failed(_))
        ));
        failed.partial = None;
        let failed = led(failed);
        assert!(matches!(failed, Some(PartialResult::Failed(result)) if result.error.is_some()));
    }

    #[test]
    fn steps_of_no_honest_worker_are_refused() {
        let many: Vec<_> = (0..ASK_RANGES_MAX as u64 + 1)
            .map(|n| (1000 + 2 * n, 1))
            .collect();
        assert!(led(step(&many[1..], "")).is_some());
        for ask in [
            &many[..],
            &[(10, 20)],
            &[(200, 100)],
            &[(500, 1), (400, 1)],
            &[(500, 0)],
            &[(9_999, 2)],
            &[(u64::MAX, u64::MAX)],
        ] {
            assert_eq!(led(step(ask, "")), None, "{ask:?}");
        }
        assert_eq!(led(step(&[(500, 1)], "both")), None);
        for mut found in [step(&[(500, 1)], ""), step(&[], "whole")] {
            found.detections.push(detection("a", 0));
            assert_eq!(led(found), None);
        }
        assert_eq!(led(v1::ScanReport::default()), None, "no answer at all");
        let whole = Job {
            content: Content::Inline(Bytes::new()),
            context: None,
            unpack: None,
        };
        assert!(fits(step(&[], ""), Work::Whole(&whole)).is_err());
        assert!(fits(v1::ScanReport::default(), Work::Whole(&whole)).is_ok());
    }
}
