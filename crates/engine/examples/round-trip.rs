//! Measures a warm engine's round trip: `round-trip PROGRAM [ARG…]`. Sizes inline and sealed, and
//! files of which the head is known and an agent found nothing; one file at a time, one worker;
//! microseconds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::host::{Content, Engine, EngineSpec, Job, PartialJob, PartialResult};
use engine::sparse::lay_out;
use model::{FilterId, Ranges};

const ROUNDS: usize = 5000;

#[tokio::main]
async fn main() {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().expect("usage: round-trip PROGRAM [ARG...]");
    let mut spec = EngineSpec::new("measured", program);
    spec.args = args.collect();
    spec.workers = 1;
    let began = Instant::now();
    let engine = Engine::start(spec).await.expect("engine starts");
    println!("ready after {} ms", began.elapsed().as_millis());
    for size in [0, 68, 4096, 65_536, 1 << 20] {
        let bytes = Bytes::from(vec![b'a'; size]);
        let mut times = Times::default();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let content = Content::from_bytes(bytes.clone()).expect("content");
            let result = engine.scan(job(content)).await;
            times.0.push(began.elapsed());
            assert!(
                result.error.is_none() && result.incomplete.is_none(),
                "{result:?}"
            );
        }
        times.print(&format!("{size:>8} bytes"));
    }
    if let Some(filter) = engine.filter() {
        for size in [4096, 1 << 20, 64 << 20] {
            let mut times = Times::default();
            for _ in 0..ROUNDS {
                let began = Instant::now();
                let result = engine.judge_partial(part(size, filter.id)).await;
                times.0.push(began.elapsed());
                assert!(!matches!(result, PartialResult::Failed(_)), "{result:?}");
            }
            times.print(&format!("the head of {size:>8} bytes"));
        }
    }
    engine.stop().await;
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn print(&mut self, what: &str) {
        self.0.sort_unstable();
        let at = |share: usize| self.0[(self.0.len() - 1) * share / 100].as_nanos() as f64 / 1000.0;
        println!("{what}: p50 {:.1} p99 {:.1}", at(50), at(99));
    }
}

/// What an appliance has of a file in which an agent found nothing.
fn part(size: u64, filter: FilterId) -> PartialJob {
    let known = Ranges::of(0..512);
    let mut read = |_: u64, buffer: &mut [u8]| {
        buffer.fill(b'a');
        Ok(())
    };
    PartialJob {
        content: lay_out(size, &known, &mut read).expect("laid out"),
        size,
        known,
        filter,
        report: Bytes::new(),
        context: None,
        unpack: None,
    }
}

fn job(content: Content) -> Job {
    Job {
        content,
        context: None,
        unpack: None,
    }
}
