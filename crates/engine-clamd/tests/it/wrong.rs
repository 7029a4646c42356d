//! With a clamd that misbehaves.

use std::time::Duration;

use engine::host::Engine;
use model::UnscannedReason;

use crate::false_clamd::FalseClamd;
use crate::{assert_clean, scan, spec, start};

const OK: &str = "#: fd[9]: OK\0";

#[tokio::test]
async fn answers_that_are_none_are_errors_and_the_next_file_is_scanned() {
    let clamd = FalseClamd::start();
    let engine = start(&clamd.socket()).await;
    let long = format!("#: {}", "x".repeat(10_000));
    for answer in [
        "99: fd[9]: OK\0",
        "OK\0",
        "#: fd[9]: OK\0#: fd[9]: OK\0",
        "#: fd[9]: GOOD\0",
        "UNKNOWN COMMAND\0",
        "#: fd[9]: Can't allocate memory ERROR\0",
        &long,
    ] {
        clamd.answer(answer);
        let result = scan(&engine, b"file").await;
        assert!(result.error.is_some(), "{answer:?}: {result:?}");
        assert!(result.detections.is_empty() && result.incomplete.is_none());
        clamd.answer(OK);
        assert_clean(&scan(&engine, b"file").await);
    }
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let clamd = FalseClamd::start();
    let mut spec = spec(&clamd.socket(), &[]);
    spec.job_timeout = Duration::from_secs(2);
    let engine = Engine::start(spec).await.expect("starts");
    clamd.answer("");
    let result = scan(&engine, b"file").await;
    let (reason, _) = result.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::EngineTimeout);
    clamd.answer(OK);
    assert_clean(&scan(&engine, b"file").await);
}

#[tokio::test]
async fn a_new_database_is_a_new_generation() {
    let clamd = FalseClamd::start();
    let every_second = ["--poll-s".into(), "1".into()];
    let engine = Engine::start(spec(&clamd.socket(), &every_second)).await;
    let engine = engine.expect("starts");
    let before = engine.info();
    let new = "ClamAV 1.0.0/2/tomorrow";
    clamd.script.lock().expect("script").version = new.to_owned();
    for _ in 0..600 {
        if engine.info().version == new {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after = engine.info();
    assert_eq!(after.version, new);
    assert_ne!(after.generation, before.generation);
    clamd.answer(OK);
    let result = scan(&engine, b"file").await;
    assert_eq!(result.generation.0, after.generation[..]);
}
