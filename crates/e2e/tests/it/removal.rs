//! Denied, quarantined, listed, restored, released.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Setup, System, open};
use testbed::{ServerOptions, samples, wait_until};

fn system(removal: &str) -> Result<System> {
    System::start(Setup {
        server: ServerOptions {
            // Nothing happens before the open, so that a test can give its file an owner.
            extra: format!(
                "[removal]\non_malicious = \"{removal}\"\n[policy]\nscan_on_close = false\n"
            ),
            ..ServerOptions::default()
        },
        ..Setup::default()
    })
}

#[test]
fn eicar_is_denied_and_quarantined_and_comes_back_whole() -> Result<()> {
    let system = system("quarantine")?;
    let path = system.write("eicar.com", &samples::eicar())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4751))?;
    testbed::run(Command::new("chown").arg("1234:4321").arg(&path))?;
    // chown clears the setuid bit.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4751))?;
    testbed::run(
        Command::new("touch")
            // Without -c, touch would open the file.
            .args(["-c", "-d", "2001-02-03 04:05:06.789"])
            .arg(&path),
    )?;
    let first = open(&path)?;
    ensure!(!first.allowed, "EICAR was opened");
    ensure!(
        wait_until(Duration::from_secs(60), || !path.exists()),
        "EICAR is still there"
    );
    let listed = system.server.cli(&["quarantine", "list", "--json"])?;
    let items: serde_json::Value = serde_json::from_str(&listed)?;
    let item = &items[0];
    ensure!(item["path"].as_str() == path.to_str(), "{listed}");
    let id = item["item_id"].as_str().context("no item id")?;
    system
        .server
        .cli(&["quarantine", "restore", id, "--release"])?;
    let back = std::fs::metadata(&path)?;
    ensure!(back.mode() & 0o7777 == 0o4751, "mode {:o}", back.mode());
    ensure!((back.uid(), back.gid()) == (1234, 4321));
    ensure!(back.mtime() == 981_173_106 && back.mtime_nsec() == 789_000_000);
    let again = open(&path)?;
    ensure!(again.allowed, "a released file is denied: {}", again.said);
    ensure!(std::fs::read(&path)? == samples::eicar());
    Ok(())
}

#[test]
fn nested_and_yara_detections_are_named() -> Result<()> {
    let system = system("deny")?;
    let zip = samples::zip("eicar.com", &samples::eicar());
    let nested = samples::tar_gz("inner.zip", &zip)?;
    let nested = system.write("outer.tar.gz", &nested)?;
    let planted = system.write("planted.txt", &samples::test_file())?;
    let clean = system.write("clean.txt", b"nothing to see here\n")?;
    ensure!(open(&nested)?.denied);
    ensure!(open(&planted)?.denied);
    ensure!(open(&clean)?.allowed);
    let all = serde_json::to_string(&system.detections()?)?;
    ensure!(
        all.contains("inner.zip") && all.contains("eicar.com"),
        "{all}"
    );
    ensure!(all.contains("Lazaret_Test_File"), "{all}");
    Ok(())
}

#[test]
fn delete_removes_and_denies() -> Result<()> {
    let system = system("delete")?;
    let path = system.write("eicar.com", &samples::eicar())?;
    ensure!(!open(&path)?.allowed);
    ensure!(wait_until(Duration::from_secs(60), || !path.exists()));
    let listed = system.server.cli(&["quarantine", "list", "--json"])?;
    ensure!(listed.trim() == "[]", "{listed}");
    Ok(())
}
