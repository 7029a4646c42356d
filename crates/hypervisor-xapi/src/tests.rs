//! Against a fake, which the vendor's own client (PyPI `XenAPI`) is checked to understand: no server
//! is to be had. That check needs python3 and pip, and the package index once.

mod fake;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hypervisor_conformance::{Rig, conform};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_against_the_fake() -> Result<()> {
    conform(&mut fake::Fake::start().await?).await
}

/// What the vendor's client reads from the fake.
const CHECK: &str = r#"
import sys, XenAPI
session = XenAPI.Session(sys.argv[1])
try:
    session.xenapi.login_with_password("lazaret", "wrong", "1.0", "check")
    raise SystemExit("a wrong password was accepted")
except XenAPI.Failure as failure:
    assert failure.details[0] == "SESSION_AUTHENTICATION_FAILED", failure.details
session.xenapi.login_with_password("lazaret", sys.argv[2], "1.0", "check")
batch = getattr(session.xenapi.event, "from")(["vm", "host", "vif", "pool"], "", 1.0)
assert batch["token"] and isinstance(batch["valid_ref_counts"], dict), batch
names = set()
for event in batch["events"]:
    assert set(event) >= {"id", "timestamp", "class", "operation", "ref", "snapshot"}, event
    assert event["operation"] in ("add", "mod", "del"), event
    names.add(event["snapshot"].get("name_label"))
assert "checked" in names, names
vm = session.xenapi.VM.get_by_uuid(sys.argv[3])
session.xenapi.VM.add_tags(vm, "x")
host = session.xenapi.VM.get_resident_on(vm)
assert session.xenapi.host.get_uuid(host)
print("good")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vendors_client_understands_the_fake() -> Result<()> {
    let mut fake = fake::Fake::start().await?;
    let vm = fake.create("checked").await?;
    let url = fake.plain_url();
    let vm = vm.as_str().to_owned();
    let said = tokio::task::spawn_blocking(move || -> Result<String> {
        let out = Command::new("python3")
            .args(["-c", CHECK, &url, fake::PASSWORD, &vm])
            .env("PYTHONPATH", vendors_client()?)
            .output()?;
        let errors = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "{errors}");
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    });
    assert_eq!(said.await??, "good");
    Ok(())
}

/// Installed once, kept in the cache that `./x` names.
fn vendors_client() -> Result<PathBuf> {
    let cache = std::env::var_os("LAZARET_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/lazaret"));
    let cache = cache
        .or_else(home)
        .context("neither LAZARET_CACHE nor HOME")?;
    let dir = cache.join("python-xenapi");
    if !dir.join("XenAPI").exists() && !dir.join("XenAPI.py").exists() {
        let done = Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .arg("--target")
            .arg(&dir)
            .arg("XenAPI==2.14")
            .status()?;
        ensure!(
            done.success(),
            "pip cannot install XenAPI: install python3-pip"
        );
    }
    Ok(dir)
}
