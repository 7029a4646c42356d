//! Whatever a file makes a worker do costs this file its verdict, and nothing else.

use std::time::Duration;

use bytes::Bytes;
use engine::host::{Content, Engine, Job};
use model::UnscannedReason;

use crate::{assert_clean, eventually, job, scan, spec, start};

/// The file is unscanned because the engine crashed; the next one is scanned.
async fn assert_contained(what: &str, why: &str) {
    let engine = start(&[]).await;
    let result = scan(&engine, what).await;
    let (reason, detail) = result.incomplete.expect(what);
    assert_eq!(reason, UnscannedReason::EngineCrashed, "{what}: {detail}");
    assert!(
        detail.contains(why),
        "{what}: {detail:?} should name {why:?}"
    );
    assert!(result.detections.is_empty() && result.error.is_none());
    assert_clean(&scan(&engine, "clean").await);
    let stats = engine.stats();
    assert_eq!(
        (stats.crashed_total, stats.timeouts_total),
        (1, 0),
        "{what}"
    );
    engine.stop().await;
}

#[tokio::test]
async fn crashes() {
    assert_contained("segv", "SIGSEGV").await;
    assert_contained("abort", "SIGABRT").await;
    assert_contained("overflow", "SIGABRT").await;
    assert_contained("exit", "code 7").await;
}

#[tokio::test]
async fn a_panic_is_a_crash_of_this_file_with_its_message() {
    let engine = start(&[]).await;
    let result = scan(&engine, "panic broken parser").await;
    let (reason, detail) = result.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::EngineCrashed);
    assert!(detail.contains("told to: broken parser"), "{detail}");
    assert_clean(&scan(&engine, "clean").await);
    assert_eq!(engine.stats().crashed_total, 1);
    // What was found before it still counts.
    let result = scan(&engine, "detect-and-panic Eicar").await;
    assert_eq!(result.detections[0].name, "Eicar");
}

#[tokio::test]
async fn forbidden_system_calls_kill_the_worker() {
    for what in [
        "open /etc/passwd",
        "tcp 127.0.0.1:1",
        "fork",
        "exec",
        "thread",
        "kill-parent",
    ] {
        assert_contained(what, "SIGSYS").await;
    }
}

#[tokio::test]
async fn unbounded_allocation_ends_at_the_limit() {
    assert_contained("allocate", "SIGABRT").await;
}

#[tokio::test]
async fn nonsense_from_a_worker_is_a_crash() {
    assert_contained("send garbage", "cannot be decoded").await;
    assert_contained("send oversized", "too large").await;
    assert_contained("send other-job", "another job").await;
    assert_contained("send nameless", "breaks the contract").await;
    assert_contained("send too-many", "breaks the contract").await;
}

#[tokio::test]
async fn hanging_and_spinning_workers_are_killed_at_the_limit() {
    let mut spec = spec(&[]);
    // Of jobs that are done, too.
    spec.job_timeout = Duration::from_secs(2);
    let engine = Engine::start(spec).await.expect("starts");
    for what in ["hang", "spin"] {
        let result = scan(&engine, what).await;
        let (reason, detail) = result.incomplete.expect(what);
        assert_eq!(reason, UnscannedReason::EngineTimeout, "{detail}");
        assert_clean(&scan(&engine, "clean").await);
    }
    let stats = engine.stats();
    assert_eq!((stats.timeouts_total, stats.killed_total), (2, 2));
    assert_eq!((stats.crashed_total, stats.scanned_total), (0, 2));
}

#[tokio::test]
async fn a_dropped_scan_kills_its_worker_and_leaks_nothing() {
    let engine = start(&[]).await;
    for _ in 0..5 {
        // Else it would be dropped while it waits for a worker, and take none along.
        eventually("a worker is idle", || engine.stats().workers_idle == 1).await;
        let scan = scan(&engine, "hang");
        assert!(
            tokio::time::timeout(Duration::from_millis(50), scan)
                .await
                .is_err()
        );
    }
    assert_clean(&scan(&engine, "clean").await);
    assert_eq!(engine.stats().killed_total, 5);
    eventually("the worker is idle", || {
        let stats = engine.stats();
        (stats.workers, stats.workers_idle) == (1, 1)
    })
    .await;
}

#[tokio::test]
async fn a_scan_that_gives_up_waiting_takes_no_worker_along() {
    let engine = start(&[]).await;
    let busy = tokio::spawn({
        let engine = engine.clone();
        async move { scan(&engine, "sleep 2000").await }
    });
    eventually("the worker is busy", || engine.stats().workers_idle == 0).await;
    let waiting = scan(&engine, "clean");
    assert!(
        tokio::time::timeout(Duration::from_millis(50), waiting)
            .await
            .is_err()
    );
    assert_clean(&busy.await.expect("joined"));
    assert_clean(&scan(&engine, "clean").await);
    assert_eq!(engine.stats().killed_total, 0);
}

#[tokio::test]
async fn content_of_every_form_arrives_whole() {
    let engine = start(&[]).await;
    for size in [0, 1, 65_536, 65_537, 3 << 20] {
        let bytes = Bytes::from(vec![b'x'; size]);
        let contents = [
            Content::from_bytes(bytes.clone()).expect("content"),
            Content::seal(&bytes).expect("sealed"),
            // Too large to travel inline: the host seals it.
            Content::Inline(bytes),
        ];
        for content in contents {
            let job = Job {
                content,
                context: None,
                unpack: None,
            };
            let result = engine.scan(job).await;
            assert_clean(&result);
            assert_eq!(result.member_bytes_judged, size as u64);
        }
    }
}

#[tokio::test]
async fn content_larger_than_the_memory_limit_is_an_error_of_that_file() {
    let mut spec = spec(&[]);
    spec.memory_max_bytes = 32 << 20;
    let engine = Engine::start(spec).await.expect("starts");
    let content = Content::seal(&vec![0; 200 << 20]).expect("sealed");
    let result = engine.scan(Job { content, ..job("") }).await;
    assert!(result.error.expect("an error").contains("cannot map"));
    assert_clean(&scan(&engine, "clean").await);
}

#[tokio::test]
async fn findings_and_context_arrive() {
    let engine = start(&[]).await;
    let found = scan(&engine, "detect Eicar").await;
    assert_eq!(found.detections[0].name, "Eicar");
    assert_eq!(found.detections[0].engine, "test");
    let many = scan(&engine, "many 70").await;
    assert_eq!((many.detections.len(), many.omitted), (64, 6));
    let locked = scan(&engine, "incomplete a.zip").await;
    let locked = locked.incomplete.expect("incomplete");
    assert_eq!(locked, (UnscannedReason::Encrypted, "a.zip".to_owned()));
    let context = proto::v1::FileContext {
        path: b"/tmp/\xff\n".to_vec(),
        ..Default::default()
    };
    let context = Some(context);
    let seen = engine
        .scan(Job {
            context,
            ..job("path")
        })
        .await;
    assert_eq!(seen.detections[0].path_inside, [b"/tmp/\xff\n".to_vec()]);
}

#[tokio::test]
async fn a_worker_that_retires_is_replaced_without_loss() {
    let engine = start(&[]).await;
    for _ in 0..5 {
        assert_clean(&scan(&engine, "last").await);
    }
    let stats = engine.stats();
    assert_eq!((stats.scanned_total, stats.crashed_total), (5, 0));
}

#[tokio::test]
async fn landlock_alone_denies_the_file_system() {
    // As if the system call filter had a hole.
    let engine = start(&["may-open"]).await;
    for path in ["/etc/passwd", "/", "/proc/self/maps", "/dev/null"] {
        let result = scan(&engine, &format!("try-open {path}")).await;
        assert_eq!(result.detections[0].name, "permission denied", "{path}");
    }
}
