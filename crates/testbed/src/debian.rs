//! A Debian of its own, made once by debootstrap and kept in the cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;

/// The reference.
const SUITE: &str = "bookworm";

/// A minimal root with these packages beside; made where the cache has none. Nobody writes to it.
///
/// # Errors
/// Without `LAZARET_CACHE` (`./x` sets it), or where debootstrap fails.
pub fn debian_root(packages: &[&str]) -> Result<PathBuf> {
    let cache = std::env::var_os("LAZARET_CACHE").context("run through ./x")?;
    let name = [&["debootstrap", SUITE], packages].concat().join("-");
    let root = PathBuf::from(cache).join(name);
    if root.is_dir() {
        return Ok(root);
    }
    let unfinished = root.with_extension("unfinished");
    let _ = std::fs::remove_dir_all(&unfinished);
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.arg("--variant=minbase");
    if !packages.is_empty() {
        debootstrap.arg(format!("--include={}", packages.join(",")));
    }
    run(debootstrap.arg(SUITE).arg(&unfinished))?;
    std::fs::rename(&unfinished, &root)?;
    Ok(root)
}
