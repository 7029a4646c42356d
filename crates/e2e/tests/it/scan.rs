//! The on-demand scan beside a running gate.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use e2e::{Setup, System, open};
use testbed::{ServerOptions, samples};

fn system(removal: &str) -> Result<System> {
    System::start(Setup {
        server: ServerOptions {
            extra: format!("[removal]\non_malicious = \"{removal}\"\n"),
            ..ServerOptions::default()
        },
        ..Setup::default()
    })
}

fn scan(system: &System, path: &Path, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(testbed::binary("lazaret-agent")?);
    command.arg("scan").args(more).arg(path);
    if !more.contains(&"--config") {
        command.arg("--config").arg(system.agent.config());
    }
    Ok(command.output()?)
}

fn code(out: &Output) -> Option<i32> {
    out.status.code()
}

#[test]
fn exit_codes_are_clamscans() -> Result<()> {
    let system = system("deny")?;
    // Outside the guarded file system: only the scan looks at it.
    let dir = system.scratch.path().join("tree");
    std::fs::create_dir(&dir)?;
    for i in 0..50 {
        std::fs::write(dir.join(format!("f{i}")), format!("plain text {i}\n"))?;
    }
    let clean = scan(&system, &dir, &[])?;
    ensure!(code(&clean) == Some(0), "{clean:?}");
    std::fs::write(dir.join("eicar.com"), samples::eicar())?;
    let found = scan(&system, &dir, &["--json"])?;
    ensure!(code(&found) == Some(1), "{found:?}");
    let text = String::from_utf8(found.stdout)?;
    let summary: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    ensure!(summary["complete"] == true, "{text}");
    ensure!(text.contains("eicar.com"), "{text}");
    std::fs::remove_file(dir.join("eicar.com"))?;
    let missing = scan(&system, &dir.join("not-there"), &[])?;
    ensure!(code(&missing) == Some(2), "{missing:?}");
    let unusable = scan(&system, &dir, &["--config", "/nowhere"])?;
    ensure!(code(&unusable) == Some(2), "{unusable:?}");
    Ok(())
}

#[test]
fn a_scan_of_the_guarded_tree_removes_and_does_not_wait_for_the_gate() -> Result<()> {
    let system = system("quarantine")?;
    let dir = system.path("tree");
    std::fs::create_dir(&dir)?;
    for i in 0..50 {
        std::fs::write(dir.join(format!("f{i}")), format!("plain text {i}\n"))?;
    }
    let eicar = dir.join("eicar.com");
    std::fs::write(system.scratch.path().join("eicar"), samples::eicar())?;
    testbed::run(
        Command::new("cp")
            .arg(system.scratch.path().join("eicar"))
            .arg(&eicar),
    )?;
    let out = scan(&system, &dir, &["--json"])?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    // Either the scan found it or the gate had taken it away on close before.
    ensure!(matches!(code(&out), Some(0 | 1)), "{out:?}");
    let gone = testbed::wait_until(std::time::Duration::from_secs(60), || !eicar.exists());
    ensure!(gone, "still there: {text}");
    let listed = system.agent.cli(&["quarantine", "list"])?;
    ensure!(listed.contains("eicar.com"), "{listed}");
    ensure!(open(&dir.join("f1"))?.allowed);
    Ok(())
}
