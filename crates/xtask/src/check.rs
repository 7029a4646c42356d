//! Checks that run no test: formatting, lints, licences, documentation.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{cargo, succeeds};
use crate::tally::Tally;

/// The cargo-deny that is installed where none is: measured 64 CPU-seconds to build unoptimised.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Formatting and clippy.
pub(crate) fn lint(tally: &mut Tally) -> Result<()> {
    tally.step("fmt", || succeeds(cargo("fmt").args(["--all", "--check"])));
    tally.step("clippy", || {
        succeeds(cargo("clippy").args([
            "--release",
            "--workspace",
            "--all-targets",
            "--",
            "-Dwarnings",
        ]))
    });
    Ok(())
}

/// The documentation builds without a warning.
pub(crate) fn doc() -> Result<bool> {
    succeeds(
        cargo("doc")
            .args(["--release", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )
}

/// Licences, bans and sources; advisories only where asked for, as they need the network.
pub(crate) fn deny(advisories: bool) -> Result<bool> {
    let program = cargo_deny()?;
    let mut checks = vec!["licenses", "bans", "sources"];
    if advisories {
        checks.push("advisories");
    } else {
        eprintln!(
            "deny: advisories are not checked (no RustSec database); ./x deny --advisories does"
        );
    }
    // Silences what is allowed; denials are errors and stay.
    let quiet = ["--log-level", "error"];
    succeeds(Command::new(program).args(quiet).arg("check").args(checks))
}

/// Finds cargo-deny, or builds it into the cache.
fn cargo_deny() -> Result<OsString> {
    let cache = std::env::var_os("LAZARET_CACHE").context("run through ./x")?;
    let tools = PathBuf::from(cache).join("tools");
    let program = tools.join("bin/cargo-deny");
    let version = Command::new(&program).arg("--version").output();
    let wanted = format!("cargo-deny {CARGO_DENY_VERSION}");
    let found = version.is_ok_and(|output| output.stdout.starts_with(wanted.as_bytes()));
    if !found {
        eprintln!(
            "deny: building {wanted} into {} (about a minute)",
            tools.display()
        );
        let build = tempfile::tempdir()?;
        let installed = succeeds(
            cargo("install")
                .args(["cargo-deny", "--locked", "--quiet", "--profile", "dev"])
                .args(["--version", CARGO_DENY_VERSION, "--root"])
                .arg(&tools)
                .env("CARGO_PROFILE_DEV_DEBUG", "0")
                .env("CARGO_TARGET_DIR", build.path()),
        )?;
        anyhow::ensure!(installed, "cargo-deny cannot be built");
    }
    Ok(program.into())
}
