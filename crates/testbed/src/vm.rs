//! A virtual machine: QEMU, emulated, since KVM within a virtual machine may be there and not serve.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Console, GuestImage, Process, Spawn};

/// What it has besides its kernel.
#[derive(Debug, Clone, Default)]
pub struct VmOptions {
    /// Runs in this network namespace. Its card is at 10.0.2.15 behind QEMU's own translation: what
    /// it dials is dialled from there.
    pub netns: Option<String>,
    /// Further arguments of QEMU.
    pub args: Vec<String>,
}

/// A booted machine; it ends with its guard.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    console: Console,
}

impl Vm {
    /// Boots it; its console is written to a file in `dir`.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn boot(dir: &Path, image: &GuestImage, options: &VmOptions) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let console = Console::at(dir.join("console.log"));
        let log = dir.join("qemu.log");
        let program = "qemu-system-x86_64";
        let spawn = match &options.netns {
            Some(netns) => {
                Spawn::new("qemu", "ip", log).args(["netns", "exec", netns.as_str(), program])
            }
            None => Spawn::new("qemu", program, log),
        };
        let process = spawn
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256",
            ])
            .args(["-kernel", &image.kernel.display().to_string()])
            .args(["-initrd", &image.initrd.display().to_string()])
            .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
            .args(["-serial", &format!("file:{}", console.path().display())])
            .args([
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net",
            ])
            .args(["-device", "virtio-rng-pci"])
            .args(&options.args)
            .start()?;
        Ok(Self { process, console })
    }

    /// What its console said so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// Waits until something is found in what the console said.
    ///
    /// # Errors
    /// It ended, or that was not said in time; with the end of what was.
    pub fn wait<T>(
        &mut self,
        patience: Duration,
        otherwise: &str,
        found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let Self { process, console } = self;
        let waited = console.wait_while(patience, otherwise, || process.is_running(), found);
        waited.with_context(|| process.log_tail())
    }
}
