//! The YARA-X engine as the appliance runs it: real processes, real rules, real containers.

mod containers;
mod judging;
mod loading;
mod partial;
mod planned;
mod real_rules;
mod rules;
mod samples;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use engine::host::{Content, Engine, EngineSpec, Job, JobResult};
use proto::v1;

/// The project's own rules.
fn own_rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rules")
}

fn spec(rules: &Path) -> EngineSpec {
    let mut spec = EngineSpec::new("yara", env!("CARGO_BIN_EXE_lazaret-engine-yara"));
    spec.args = vec!["--rules".into(), rules.into()];
    spec.workers = 1;
    // A whole rule set takes long to load where all processors are busy.
    for limit in [
        &mut spec.job_timeout,
        &mut spec.load_timeout,
        &mut spec.wait_max,
    ] {
        *limit = PATIENCE;
    }
    spec
}

async fn start(rules: &Path) -> Engine {
    Engine::start(spec(rules)).await.expect("the engine starts")
}

/// A folder with one rule file.
fn folder(source: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("rules.yar"), source).expect("written");
    folder
}

fn unpack_limits() -> v1::UnpackLimits {
    v1::UnpackLimits {
        depth_max: 8,
        entries_max: 100,
        entry_bytes_max: 10 << 20,
        total_bytes_max: 20 << 20,
        ratio_max: 1000,
    }
}

fn job(bytes: &[u8]) -> Job {
    Job {
        content: Content::from_bytes(Bytes::copy_from_slice(bytes)).expect("content"),
        context: None,
        unpack: Some(unpack_limits()),
    }
}

fn named(path: &[u8], uid: u32) -> Option<v1::FileContext> {
    Some(v1::FileContext {
        path: path.to_vec(),
        uid,
        ..Default::default()
    })
}

async fn scan(engine: &Engine, bytes: &[u8]) -> JobResult {
    engine.scan(job(bytes)).await
}

/// Names found; the scan must have been complete.
fn names(result: &JobResult) -> Vec<&str> {
    assert_eq!((&result.incomplete, &result.error), (&None, &None));
    result
        .detections
        .iter()
        .map(|found| found.name.as_str())
        .collect()
}

/// For what has to happen, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(600);

const SHORT: Duration = Duration::from_millis(1500);
