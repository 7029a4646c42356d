//! The agent as its unit runs it, and in a mount namespace of its own as PrivateTmp would give it:
//! marks see what is opened outside.

use std::path::Path;

use anyhow::{Result, ensure};
use e2e::{Setup, System, open};
use testbed::{ServerOptions, samples};

/// Directives that give a unit its own view of the mounts.
const OWN_VIEW: [&str; 16] = [
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "ProtectSystem",
    "ProtectHome",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "InaccessiblePaths",
    "BindPaths",
    "RootDirectory",
    "TemporaryFileSystem",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectControlGroups",
    "ProcSubset",
    "ProtectProc",
];

#[test]
fn the_unit_leaves_the_view_of_mounts_alone() -> Result<()> {
    let unit =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/lazaret-agent.service");
    let unit = std::fs::read_to_string(unit)?;
    for line in unit.lines().filter(|line| !line.starts_with('#')) {
        let key = line.split('=').next().unwrap_or_default();
        ensure!(!OWN_VIEW.contains(&key), "{line}");
    }
    Ok(())
}

#[test]
fn marks_placed_in_a_namespace_of_its_own_hold_outside() -> Result<()> {
    let system = System::start(Setup {
        server: ServerOptions {
            extra: "[removal]\non_malicious = \"deny\"\n".to_owned(),
            ..ServerOptions::default()
        },
        private_mounts: true,
        ..Setup::default()
    })?;
    let pids = system.agent.pids()?;
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt"));
    let worker = pids.worker.as_raw_nonzero().to_string();
    ensure!(namespace(&worker)? != namespace("self")?, "no namespace");
    let bad = system.write("bad.com", &samples::eicar())?;
    ensure!(open(&bad)?.denied, "an open outside is not seen");
    Ok(())
}
