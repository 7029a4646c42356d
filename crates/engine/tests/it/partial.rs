//! Filters on their way to the host, and jobs of which a part of the content is known.

use std::time::Duration;

use bytes::Bytes;
use engine::host::{Content, Engine, KNOWN_RANGES_MAX, PartialJob, PartialResult};
use engine::sparse::{CONTENT_MAX_BYTES, ReadAt, lay_out, pack};
use model::{Generation, Ranges, UnscannedReason};

use crate::{assert_clean, eventually, scan, spec, start};

const SIZE: u64 = 100_000;

async fn with_filter() -> Engine {
    start(&["filter=what to look for"]).await
}

/// A file whose first line says what the engine is to do; the line and some more is known.
fn partial(engine: &Engine, line: &str) -> PartialJob {
    carried(engine, line, |known, read| lay_out(SIZE, known, read))
}

/// The same, packed into the job.
fn packed(engine: &Engine, line: &str) -> PartialJob {
    carried(engine, line, |known, read| pack(SIZE, known, read))
}

fn carried(
    engine: &Engine,
    line: &str,
    carry: impl Fn(&Ranges, ReadAt<'_>) -> std::io::Result<Content>,
) -> PartialJob {
    let known: Ranges = [0..512, 50_000..50_010].into_iter().collect();
    let text = format!("{line}\n");
    let mut read = |at: u64, buffer: &mut [u8]| {
        buffer.fill(b'.');
        if at == 0 {
            buffer[..text.len()].copy_from_slice(text.as_bytes());
        }
        Ok(())
    };
    PartialJob {
        content: carry(&known, &mut read).expect("carried"),
        size: SIZE,
        known,
        filter: engine.filter().map(|filter| filter.id).unwrap_or_default(),
        report: Bytes::new(),
        context: None,
        unpack: None,
    }
}

async fn judge(engine: &Engine, line: &str) -> PartialResult {
    engine.judge_partial(partial(engine, line)).await
}

/// Nothing came of it, for this reason.
#[track_caller]
fn assert_failed(result: PartialResult, why: UnscannedReason, detail: &str) {
    let PartialResult::Failed(result) = result else {
        panic!("{result:?}");
    };
    let (reason, said) = result.incomplete.expect("incomplete");
    assert_eq!(reason, why, "{said}");
    assert!(said.contains(detail), "{said:?} should name {detail:?}");
}

#[tokio::test]
async fn a_filter_comes_with_the_rules() {
    let engine = start(&["generation=1", "filter=old"]).await;
    let old = engine.filter().expect("a filter");
    assert_eq!(
        (&*old.bytes, old.generation),
        (&b"old"[..], Generation([1; 16]))
    );
    let args = ["generation=2", "filter=new"].map(Into::into).to_vec();
    engine.reload(Some(args)).await.expect("reloaded");
    let new = engine.filter().expect("a filter");
    assert_eq!(
        (&*new.bytes, new.generation),
        (&b"new"[..], Generation([2; 16]))
    );
    assert_ne!(old.id, new.id);
    let args = vec!["generation=3".into()];
    engine.reload(Some(args)).await.expect("reloaded");
    assert_eq!(engine.filter(), None);
}

#[tokio::test]
async fn a_template_that_is_replaced_for_a_change_tells_its_filter_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let sign = folder.path().join("changed");
    let changed = format!("changed-when={}", sign.display());
    let engine = start(&[&changed, "filter=same"]).await;
    let first = engine.filter().expect("a filter");
    std::fs::write(&sign, "").expect("written");
    eventually("it is replaced", || engine.stats().reloads_total > 0).await;
    let next = engine.filter().expect("a filter");
    assert_eq!(first, next);
}

#[tokio::test]
async fn an_engine_without_the_filter_it_should_have_goes_on() {
    for (filter, why) in [("fail", "no filter can be built"), ("huge", "16 MiB")] {
        let engine = start(&[&format!("filter={filter}")]).await;
        assert_eq!(engine.filter(), None);
        let warnings = engine.info().warnings.join("; ");
        assert!(warnings.contains(why), "{warnings}");
        assert_clean(&scan(&engine, "clean").await);
    }
}

#[tokio::test]
async fn steps_arrive() {
    let engine = with_filter().await;
    let asked = judge(&engine, "ask 100+500,60000+1").await;
    let expected = [512..600, 60_000..60_001].into_iter().collect();
    assert_eq!(asked, PartialResult::Ask(expected));
    let whole = judge(&engine, "whole for no reason").await;
    assert_eq!(whole, PartialResult::Whole("for no reason".to_owned()));
    let PartialResult::Judged(found) = judge(&engine, "detect Eicar").await else {
        panic!("not judged");
    };
    assert_eq!(found.detections[0].name, "Eicar");
    let PartialResult::Judged(clean) = judge(&engine, "clean").await else {
        panic!("not judged");
    };
    assert_clean(&clean);
    let stats = engine.stats();
    assert_eq!((stats.partial_total, stats.scanned_total), (4, 0));
}

/// The kernel tells what was read, in the sandbox too.
#[tokio::test]
async fn pages_that_are_read_are_seen() {
    let engine = with_filter().await;
    let read = judge(&engine, "read 8192+1,50000+1,99999+1").await;
    let expected = [8192..12_288, 49_152..50_000, 50_010..53_248, 98_304..SIZE];
    assert_eq!(read, PartialResult::Ask(expected.into_iter().collect()));
}

/// What came packed is judged as what is laid out, and laid out where parsers want to see it.
#[tokio::test]
async fn what_is_packed_leads_as_far() {
    let engine = with_filter().await;
    for line in ["ask 100+500,60000+1", "detect Eicar", "clean"] {
        let job = packed(&engine, line);
        assert!(matches!(job.content, Content::Inline(_)));
        assert_eq!(
            engine.judge_partial(job).await,
            judge(&engine, line).await,
            "{line}"
        );
    }
    assert_eq!(engine.stats().partial_total, 6);
    let line = "read 8192+1,50000+1,99999+1";
    let read = engine.judge_partial(packed(&engine, line)).await;
    assert_eq!(read, judge(&engine, line).await);
    assert_eq!(engine.stats().partial_total, 9, "asked for the layout once");
    // Laid out, it is laid out: whoever asks again lies.
    let lied = engine.judge_partial(packed(&engine, "lay-out")).await;
    assert_failed(lied, UnscannedReason::EngineCrashed, "does not answer");
}

#[tokio::test]
async fn what_another_filter_found_is_of_no_use() {
    let engine = with_filter().await;
    let mut job = partial(&engine, "clean");
    job.filter.0[0] ^= 1;
    let PartialResult::Whole(why) = engine.judge_partial(job).await else {
        panic!("not whole");
    };
    assert!(why.contains("another filter"), "{why}");
    let without = start(&[]).await;
    let led = judge(&without, "clean").await;
    assert!(matches!(led, PartialResult::Whole(_)), "{led:?}");
}

#[tokio::test]
async fn what_no_worker_is_told_travels_whole() {
    let engine = with_filter().await;
    let good = partial(&engine, "clean");
    let large = PartialJob {
        size: CONTENT_MAX_BYTES + 1,
        ..good.clone()
    };
    let many = PartialJob {
        known: (0..KNOWN_RANGES_MAX as u64 + 1)
            .map(|n| 2 * n..2 * n + 1)
            .collect(),
        ..good.clone()
    };
    let long = PartialJob {
        report: vec![0; proto::REPORT_MAX_BYTES + 1].into(),
        ..good.clone()
    };
    for job in [large, many, long] {
        let led = engine.judge_partial(job).await;
        assert!(matches!(led, PartialResult::Whole(_)), "{led:?}");
    }
    // As many as there may be, and the longest report.
    let size = CONTENT_MAX_BYTES;
    let last = size - 2 * KNOWN_RANGES_MAX as u64;
    let known = (0..KNOWN_RANGES_MAX as u64).map(|n| last + 2 * n..last + 2 * n + 1);
    let known: Ranges = known.collect();
    let mut read = |_: u64, buffer: &mut [u8]| {
        buffer.fill(1);
        Ok(())
    };
    let mut spec = spec(&["filter=what to look for"]);
    spec.memory_max_bytes = 4 << 30;
    let roomy = Engine::start(spec).await.expect("starts");
    let led = roomy
        .judge_partial(PartialJob {
            content: lay_out(size, &known, &mut read).expect("laid out"),
            size,
            known,
            report: vec![0; proto::REPORT_MAX_BYTES].into(),
            ..good
        })
        .await;
    assert!(matches!(led, PartialResult::Judged(_)), "{led:?}");
}

#[tokio::test]
async fn a_layout_that_is_not_as_announced_is_an_error_of_that_file() {
    let engine = with_filter().await;
    let good = partial(&engine, "clean");
    let short = PartialJob {
        content: Content::seal(&[b'x'; 600]).expect("sealed"),
        ..good.clone()
    };
    let inline = PartialJob {
        content: Content::Inline(Bytes::from_static(b"clean")),
        ..good.clone()
    };
    let beyond = PartialJob {
        known: Ranges::of(0..SIZE + 1),
        ..good.clone()
    };
    for job in [short, inline, beyond] {
        let PartialResult::Failed(result) = engine.judge_partial(job).await else {
            panic!("not failed");
        };
        assert!(result.error.is_some(), "{result:?}");
    }
    let led = engine.judge_partial(good).await;
    assert!(matches!(led, PartialResult::Judged(_)), "{led:?}");
    assert_eq!(engine.stats().crashed_total, 0);
}

#[tokio::test]
async fn lies_of_a_worker_are_a_crash() {
    let engine = with_filter().await;
    for (lie, times) in [
        ("lie 10+20", 1),
        ("lie 60000+1,50500+1", 2),
        ("lie 60000+0", 3),
        ("lie 99999+2", 4),
        ("lie 18446744073709551615+18446744073709551615", 5),
        ("silent", 6),
        ("send other-job", 7),
    ] {
        let result = judge(&engine, lie).await;
        assert_failed(result, UnscannedReason::EngineCrashed, "killed for");
        assert_eq!(engine.stats().crashed_total, times, "{lie}");
    }
    assert_clean(&scan(&engine, "clean").await);
}

#[tokio::test]
async fn crashes_and_hangs_over_a_part_are_contained() {
    let mut spec = spec(&["filter=what to look for"]);
    spec.job_timeout = Duration::from_secs(2);
    let engine = Engine::start(spec).await.expect("starts");
    let crashed = UnscannedReason::EngineCrashed;
    assert_failed(judge(&engine, "segv").await, crashed, "SIGSEGV");
    assert_failed(judge(&engine, "open /etc/passwd").await, crashed, "SIGSYS");
    assert_failed(
        judge(&engine, "panic parser").await,
        crashed,
        "told to: parser",
    );
    let hung = judge(&engine, "hang").await;
    assert_failed(hung, UnscannedReason::EngineTimeout, "killed after");
    assert_clean(&scan(&engine, "clean").await);
}
