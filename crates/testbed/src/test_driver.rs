//! A hypervisor host without guests: libvirtd's test driver, whose domains are names that are on or
//! off.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{LibvirtHost, LibvirtListen, Process, Spawn};

const DRIVER: &str = "test:///default";

/// A libvirtd whose domains are told of and do nothing. All ends with the guard.
#[derive(Debug)]
pub struct TestDriver {
    /// The driver forgets everything with its last connection.
    _keeper: Process,
    host: LibvirtHost,
}

impl TestDriver {
    /// Starts one; `dir` must not exist yet. `index` (1 to 9) makes its uuid.
    ///
    /// # Errors
    /// Those of [`LibvirtHost::start`].
    pub fn start(dir: &Path, index: u8) -> Result<Self> {
        let host = LibvirtHost::start(dir, index, None, &LibvirtListen::UnixOnly)?;
        let command = host.virsh_command(DRIVER);
        let keeper = Spawn::new("virsh", command.get_program(), dir.join("keeper.log"))
            .args(command.get_args())
            .args(["event", "--event", "lifecycle", "--loop"])
            .start()?;
        // Whatever is defined before it is connected would be forgotten.
        let log = dir.join("keeper.log");
        let is_there = || host.virsh(DRIVER, &["list"]).is_ok() && log.exists();
        anyhow::ensure!(
            crate::wait_until(crate::daemons::PATIENCE, is_there),
            "the test driver does not answer"
        );
        Ok(Self {
            _keeper: keeper,
            host,
        })
    }

    /// How a connector reaches it.
    #[must_use]
    pub fn uri(&self) -> String {
        let socket = self.host.socket();
        format!("test+unix:///default?socket={}", socket.display())
    }

    /// A domain with this uuid runs here from now on.
    ///
    /// # Errors
    /// Those of virsh.
    pub fn run(&self, name: &str, uuid: &str) -> Result<()> {
        let xml = tempfile::NamedTempFile::new()?;
        let text = format!(
            "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory>\
             <os><type>hvm</type></os></domain>"
        );
        std::fs::write(xml.path(), text)?;
        let path = xml.path().to_str().context("a path")?;
        self.host.virsh(DRIVER, &["create", path]).map(drop)
    }

    /// A domain is here no more.
    ///
    /// # Errors
    /// Those of virsh.
    pub fn end(&self, name: &str) -> Result<()> {
        self.host.virsh(DRIVER, &["destroy", name]).map(drop)
    }
}
