//! What the agent pays: the digest, which it needs anyway, and the filter beside it.

use std::hint::black_box;
use std::ops::ControlFlow;

use anyhow::Result;
use engine_yara::Planned;
use literal_filter::Stream;
use serde_json::json;

use super::{Corpus, cpu_seconds};
use crate::report::Report;

/// Bytes that the agent reads at a time.
const PIECE: usize = 64 << 10;

/// The appliance's way: the whole content at once.
pub(crate) fn filter(planned: &Planned, bytes: &[u8]) {
    let mut hits = 0u64;
    let _ = planned.plan().filter().scan(bytes, &mut |_, _| {
        hits += 1;
        ControlFlow::Continue(())
    });
    black_box(hits);
}

/// The agent's way: piece by piece, beside the digest.
pub(crate) fn measure(
    report: &mut Report,
    set: &str,
    planned: &Planned,
    corpus: &Corpus,
) -> Result<()> {
    let filter = planned.plan().filter();
    let gigabytes = corpus.megabytes / 1e3;
    let digest = cpu_seconds(|| {
        for bytes in corpus.contents() {
            let mut hasher = blake3::Hasher::new();
            bytes.chunks(PIECE).for_each(|piece| {
                hasher.update(piece);
            });
            black_box(hasher.finalize());
        }
        Ok(())
    })?;
    let alone = cpu_seconds(|| {
        for bytes in corpus.contents() {
            let (mut stream, mut hits) = (Stream::new(filter), 0u64);
            for piece in bytes.chunks(PIECE) {
                let _ = stream.push(piece, &mut |_, _| {
                    hits += 1;
                    ControlFlow::Continue(())
                });
            }
            black_box((stream.finish(), hits));
        }
        Ok(())
    })?;
    let speed = gigabytes / alone;
    let cost = (digest + alone) / gigabytes;
    let modes = json!({
        "digest": digest / gigabytes, "digest_and_filter": cost,
        "filter_bytes": filter.to_bytes().len(),
    });
    report.figure(&format!("agent_modes_cpu_s_per_gb_{set}"), modes);
    report.figure(&format!("filter_gb_per_s_{set}"), speed);
    // The larger set stands for both.
    if set == "signature_base" {
        report.figure("filter_gb_per_s", speed);
        report.figure("agent_cpu_s_per_gb", cost);
    }
    println!("{set}: filter in pieces {speed:.2} GB/s; digest and filter {cost:.2} CPU-s/GB");
    Ok(())
}
