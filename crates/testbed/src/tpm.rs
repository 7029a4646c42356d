//! TPMs of virtual machines: swtpm, each with its endorsement certificate of a hypervisor's CA. Needs
//! the packages swtpm and swtpm-tools.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Process, Spawn, run, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Tag, size and code of a TPM's response.
const HEADER_BYTES: usize = 10;

/// The CA that certifies the TPMs of a host's VMs, as swtpm-localca makes it: an issuer below a root.
#[derive(Debug)]
pub struct TpmCa {
    dir: PathBuf,
}

impl TpmCa {
    /// Its folder; keys and certificates are made with the first TPM.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let at = dir.display();
        let ca = format!(
            "statedir = {at}\nsigningkey = {at}/issuer-key.pem\n\
             issuercert = {at}/issuer.pem\ncertserial = {at}/serial\n"
        );
        std::fs::write(dir.join("localca.conf"), ca)?;
        let options = "--platform-manufacturer Test\n--platform-version 1\n--platform-model QEMU\n";
        std::fs::write(dir.join("localca.options"), options)?;
        let setup = format!(
            "create_certs_tool = /usr/bin/swtpm_localca\n\
             create_certs_tool_config = {at}/localca.conf\n\
             create_certs_tool_options = {at}/localca.options\nactive_pcr_banks = sha256\n"
        );
        std::fs::write(dir.join("setup.conf"), setup)?;
        let dir = dir.to_owned();
        Ok(Self { dir })
    }

    /// What signs endorsement certificates, PEM.
    #[must_use]
    pub fn issuer(&self) -> PathBuf {
        self.dir.join("issuer.pem")
    }

    /// What signs the issuer's, PEM.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("swtpm-localca-rootca-cert.pem")
    }

    /// Makes a TPM's state in `state`, as libvirt has it made for a VM: `vmid` is `name:uuid`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn manufacture(&self, state: &Path, vmid: &str) -> Result<()> {
        std::fs::create_dir_all(state)?;
        let mut setup = Command::new("swtpm_setup");
        setup.args(["--tpm2", "--create-ek-cert", "--create-platform-cert"]);
        setup.args(["--lock-nvram", "--overwrite", "--vmid", vmid]);
        setup.arg("--tpmstate").arg(state);
        setup.arg("--config").arg(self.dir.join("setup.conf"));
        run(&mut setup).map(drop)
    }
}

/// A running TPM; it ends with its guard.
#[derive(Debug)]
pub struct VirtualTpm {
    socket: PathBuf,
    _process: Process,
}

impl VirtualTpm {
    /// For one machine, with this state.
    ///
    /// # Errors
    /// It does not start.
    pub fn for_machine(state: &Path) -> Result<Self> {
        let socket = state.join("control");
        let control = format!("type=unixio,path={}", socket.display());
        Self::start(state, socket, &["--ctrl".to_owned(), control])
    }

    /// For [`TpmSocket`]s, one at a time, with this state; it is switched on.
    ///
    /// # Errors
    /// It does not start.
    pub fn serving(state: &Path) -> Result<Self> {
        let socket = state.join("data");
        let server = format!("type=unixio,path={}", socket.display());
        let control = format!("type=unixio,path={}", state.join("control").display());
        let flags = "not-need-init,startup-clear".to_owned();
        let args = ["--server", &server, "--ctrl", &control, "--flags", &flags];
        Self::start(state, socket, &args.map(str::to_owned))
    }

    fn start(state: &Path, socket: PathBuf, args: &[String]) -> Result<Self> {
        let process = Spawn::new("swtpm", "swtpm", state.join("swtpm.log"))
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .args(args)
            .start()?;
        let is_there = wait_until(PATIENCE, || socket.exists());
        ensure!(is_there, "no socket of swtpm: {}", process.log_tail());
        Ok(Self {
            socket,
            _process: process,
        })
    }

    /// QEMU's arguments for the machine that has it.
    #[must_use]
    pub fn machine_args(&self) -> Vec<String> {
        let chardev = format!("socket,id=tpm,path={}", self.socket.display());
        [
            "-chardev",
            &chardev,
            "-tpmdev",
            "emulator,id=tpm0,chardev=tpm",
            "-device",
            "tpm-tis,tpmdev=tpm0",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// A way to send it commands.
    ///
    /// # Errors
    /// It does not listen.
    pub fn connect(&self) -> Result<TpmSocket> {
        // Its socket is there a moment before it listens.
        let mut connected = UnixStream::connect(&self.socket);
        wait_until(PATIENCE, || {
            if connected.is_err() {
                connected = UnixStream::connect(&self.socket);
            }
            connected.is_ok()
        });
        Ok(TpmSocket(connected?))
    }
}

/// A TPM's commands over a socket.
#[derive(Debug)]
pub struct TpmSocket(UnixStream);

impl TpmSocket {
    /// One command, one response.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        let mut response = vec![0; HEADER_BYTES];
        self.0.read_exact(&mut response)?;
        let size = u32::from_be_bytes([response[2], response[3], response[4], response[5]]);
        response.resize((size as usize).max(HEADER_BYTES), 0);
        self.0.read_exact(&mut response[HEADER_BYTES..])?;
        Ok(response)
    }
}
