//! Measures a warm engine's round trip: `round-trip PROGRAM [ARG…]`. Sizes inline and sealed, one
//! file at a time, one worker; microseconds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::host::{Content, Engine, EngineSpec, Job};

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
        let mut times: Vec<Duration> = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let content = Content::from_bytes(bytes.clone()).expect("content");
            let result = engine.scan(job(content)).await;
            times.push(began.elapsed());
            assert!(
                result.error.is_none() && result.incomplete.is_none(),
                "{result:?}"
            );
        }
        times.sort_unstable();
        let at = |share: usize| times[(ROUNDS - 1) * share / 100].as_nanos() as f64 / 1000.0;
        println!("{size:>8} bytes: p50 {:.1} p99 {:.1}", at(50), at(99));
    }
    engine.stop().await;
}

fn job(content: Content) -> Job {
    Job {
        content,
        context: None,
        unpack: None,
    }
}
