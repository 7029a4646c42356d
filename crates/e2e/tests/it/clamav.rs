//! Real clamd behind the gate.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{Setup, System, open, scratch};
use testbed::{Clamd, ClamdListen, Pin, ServerOptions};

/// The files of Debian's clamav-testfiles: each holds ClamAV's harmless clam.exe in some format.
fn test_files() -> Result<Vec<PathBuf>> {
    let dir = Path::new("/usr/share/clamav-testfiles");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).context("needs the package clamav-testfiles")? {
        files.push(entry?.path());
    }
    files.sort();
    ensure!(files.len() >= 40, "only {} test files", files.len());
    Ok(files)
}

/// One line of a `.hdb` that finds clam.exe.
fn hash_line() -> Result<String> {
    let exe = "/usr/share/clamav-testfiles/clam.exe";
    let line = testbed::run(Command::new("sigtool").args(["--md5", exe]))?;
    Ok(line.replace(":clam.exe", ":Clamav.Test.File"))
}

fn guarded_by_clamd(database: &str) -> Result<(Vec<PathBuf>, System, Clamd, tempfile::TempDir)> {
    let dir = scratch("clamd")?;
    let clamd = Clamd::start(
        dir.path(),
        &[("test.hdb", database)],
        ClamdListen::Unix,
        Pin::Free,
    )?;
    let files = test_files()?;
    let system = System::start(Setup {
        server: ServerOptions {
            rules: Vec::new(),
            clamd: Some(clamd.socket().to_owned()),
            extra: "[removal]\non_malicious = \"deny\"\n".to_owned(),
            ..ServerOptions::default()
        },
        files: files.clone(),
        ..Setup::default()
    })?;
    let names = files.iter().filter_map(|file| file.file_name());
    let files = names.map(|name| system.mount.path().join(name)).collect();
    Ok((files, system, clamd, dir))
}

#[test]
fn each_test_file_is_denied_with_one_hash_line() -> Result<()> {
    let (files, system, _clamd, _dir) = guarded_by_clamd(&hash_line()?)?;
    let mut missed = Vec::new();
    for file in &files {
        if !open(file)?.denied {
            missed.push(file);
        }
    }
    ensure!(missed.is_empty(), "not denied: {missed:?}");
    let all = serde_json::to_string(&system.detections()?)?;
    ensure!(all.contains("Clamav.Test.File"), "{all}");
    Ok(())
}

#[test]
fn the_same_files_are_clean_under_an_empty_database() -> Result<()> {
    let nothing = "00000000000000000000000000000000:1:Nothing\n";
    let (files, system, _clamd, _dir) = guarded_by_clamd(nothing)?;
    for file in &files {
        let opened = open(file)?;
        ensure!(opened.allowed, "{}: {}", file.display(), opened.said);
    }
    ensure!(system.detections()?.is_empty());
    ensure!(system.agent.status()?["ledger"]["entries_total"] == 0);
    Ok(())
}
