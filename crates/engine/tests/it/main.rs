//! The engine host against a real engine program that misbehaves on command.

mod containment;
mod lifecycle;
mod partial;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use engine::host::{Content, Engine, EngineSpec, Job, JobResult};

/// The puppet engine, `examples/lazaret-engine-test.rs`.
fn program() -> PathBuf {
    example("lazaret-engine-test")
}

/// A program of `examples/`, which `cargo test` builds.
fn example(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the test's own path");
    let build = this.parent().and_then(|deps| deps.parent());
    let program = build.expect("a build folder").join("examples").join(name);
    assert!(
        program.exists(),
        "{} is built by `cargo test -p engine`",
        program.display()
    );
    program
}

fn spec(args: &[&str]) -> EngineSpec {
    let mut spec = EngineSpec::new("test", program());
    spec.args = args.iter().map(Into::into).collect();
    spec.workers = 1;
    spec.memory_max_bytes = 256 << 20;
    spec
}

async fn start(args: &[&str]) -> Engine {
    Engine::start(spec(args)).await.expect("the engine starts")
}

fn job(text: &str) -> Job {
    Job {
        content: Content::Inline(Bytes::copy_from_slice(text.as_bytes())),
        context: None,
        unpack: None,
    }
}

async fn scan(engine: &Engine, text: &str) -> JobResult {
    engine.scan(job(text)).await
}

/// Waits for what happens soon on its own; a minute is only the end of patience.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Judged, and nothing was found.
fn assert_clean(result: &JobResult) {
    assert!(result.detections.is_empty(), "{result:?}");
    assert_eq!((&result.incomplete, &result.error), (&None, &None));
}
