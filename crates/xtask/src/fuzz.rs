//! `./x fuzz`: libFuzzer on the stable compiler. cargo-fuzz would need a nightly one for the
//! address sanitizer, which finds little in code without unsafe; coverage is what is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, succeeds};

/// The workspace of its own that holds the targets.
const FOLDER: &str = "fuzz";
/// Instrumentation as cargo-fuzz asks for it.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions --cfg fuzzing";
/// The triple must be spelled out, or build scripts and macros are instrumented too.
#[cfg(target_arch = "x86_64")]
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
#[cfg(target_arch = "aarch64")]
const TRIPLE: &str = "aarch64-unknown-linux-gnu";
/// Longest input, the most memory and time for one, and no running commentary.
const LIMITS: [&str; 4] = [
    "-max_len=65536",
    "-rss_limit_mb=2048",
    "-timeout=10",
    "-verbosity=0",
];

/// The names of all targets.
pub(crate) fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(Path::new(FOLDER).join("targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let stem = path.file_stem().context("no name")?;
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds and runs one; true where nothing was found.
pub(crate) fn run(target: &str, seconds: u32) -> Result<bool> {
    let known = targets()?;
    ensure!(
        known.iter().any(|name| name == target),
        "no fuzz target {target}; there are {}",
        known.join(", ")
    );
    let build = PathBuf::from(std::env::var_os("CARGO_TARGET_DIR").context("run through ./x")?)
        .join("fuzz");
    let built = succeeds(
        cargo("build")
            .args(["--release", "--quiet", "--manifest-path"])
            .arg(Path::new(FOLDER).join("Cargo.toml"))
            .args(["--target", TRIPLE, "--bin", target])
            .env("RUSTFLAGS", RUSTFLAGS)
            .env("CARGO_TARGET_DIR", &build),
    )?;
    if !built {
        return Ok(false);
    }
    let corpus = build.join("corpus").join(target);
    let seeds = Path::new(FOLDER).join("seeds").join(target);
    let artifacts = build.join("artifacts").join(target);
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(folder)?;
    }
    let program = build.join(TRIPLE).join("release").join(target);
    let mut fuzzer = Command::new(program);
    fuzzer
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(LIMITS)
        .arg(&corpus);
    if seeds.is_dir() {
        fuzzer.arg(seeds);
    }
    succeeds(&mut fuzzer)
}
