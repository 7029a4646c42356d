//! The clamd engine as the appliance runs it: with a real clamd of its own for each test, and with
//! a false one that misbehaves.

mod clamd;
mod false_clamd;
mod real;
mod wrong;

use std::ffi::OsString;
use std::path::Path;

use bytes::Bytes;
use engine::host::{Content, Engine, EngineSpec, Job, JobResult, StartError};

fn spec(socket: &Path, more: &[OsString]) -> EngineSpec {
    let mut spec = EngineSpec::new("clamd", env!("CARGO_BIN_EXE_lazaret-engine-clamd"));
    spec.args = vec!["--socket".into(), socket.into()];
    spec.args.extend_from_slice(more);
    spec.workers = 2;
    spec
}

async fn start(socket: &Path) -> Engine {
    let started = Engine::start(spec(socket, &[])).await;
    started.expect("the engine starts")
}

async fn start_error(socket: &Path) -> StartError {
    match Engine::start(spec(socket, &[])).await {
        Ok(_) => panic!("the engine started"),
        Err(error) => error,
    }
}

async fn scan(engine: &Engine, bytes: &[u8]) -> JobResult {
    let content = Content::from_bytes(Bytes::copy_from_slice(bytes)).expect("content");
    let job = Job {
        content,
        context: None,
        unpack: None,
    };
    engine.scan(job).await
}

/// Judged, and nothing was found.
fn assert_clean(result: &JobResult) {
    assert!(result.detections.is_empty(), "{result:?}");
    assert_eq!((&result.incomplete, &result.error), (&None, &None));
}
