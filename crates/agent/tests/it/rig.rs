//! An agent on a file system of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent::{Agent, AgentConfig, control};
use daemon::signal::Stop;
use fanotify::lease::{LeaseRefused, ReadLease};
use model::{GuestId, Policy};
use pki::{GuestKey, LIFETIME, Validity};
use testbed::{FileSystem, LoopMount};

use crate::puppet::{Fleet, PATIENCE, Puppet, Shared};

/// Who the agent is.
pub(crate) const GUEST: GuestId = GuestId([9; 16]);

pub(crate) struct Rig {
    agent: Option<Agent>,
    stop: Stop,
    pub(crate) config: AgentConfig,
    pub(crate) fleet: Fleet,
    pub(crate) puppet: Option<Puppet>,
    pub(crate) mount: LoopMount,
    _dir: tempfile::TempDir,
}

/// What a process got that read a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Content(Vec<u8>),
    Denied,
    Other(String),
}

impl Rig {
    pub(crate) fn new(policy: Policy) -> Self {
        Self::with(policy, |_| {}, LIFETIME)
    }

    /// An agent with this configuration, and a certificate of which so much has passed already
    /// that `left` remains.
    pub(crate) fn with(
        policy: Policy,
        configure: impl FnOnce(&mut AgentConfig),
        left: Duration,
    ) -> Self {
        let mut rig = Self::prepare(policy, configure);
        rig.enrol_for(GUEST, left);
        rig.start();
        rig
    }

    /// An agent that is neither enrolled nor started.
    pub(crate) fn prepare(policy: Policy, configure: impl FnOnce(&mut AgentConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = LoopMount::new(FileSystem::Ext4, 256 << 20).unwrap();
        let fleet = Fleet::new(policy);
        let puppet = fleet.appliance(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = AgentConfig {
            state_dir: dir.path().join("state"),
            runtime_dir: dir.path().join("run"),
            sys_dir: dir.path().join("sys"),
            ..AgentConfig::default()
        };
        config.appliance.addresses = vec![puppet.address.to_string()];
        config.guard.include = vec![mount.path().to_owned()];
        config.guard.standing_filesystems = vec![mount.path().to_owned()];
        configure(&mut config);
        Self {
            agent: None,
            stop: Stop::manual().unwrap(),
            config,
            fleet,
            puppet: Some(puppet),
            mount,
            _dir: dir,
        }
    }

    pub(crate) fn start(&mut self) {
        self.start_only();
        self.wait_for_link();
    }

    pub(crate) fn start_only(&mut self) {
        self.stop = Stop::manual().unwrap();
        let agent = Agent::start(self.config.clone(), self.stop.clone());
        self.agent = Some(agent.unwrap_or_else(|error| panic!("{error}: {error:?}")));
    }

    pub(crate) fn enrol(&self, guest: GuestId) {
        self.enrol_for(guest, LIFETIME);
    }

    /// With a certificate of which so much remains.
    pub(crate) fn enrol_for(&self, guest: GuestId, left: Duration) {
        enrol(&self.fleet, &self.config, guest, left);
    }

    pub(crate) fn wait_for_link(&self) {
        self.wait_for("the link", |status| status["link"] == "up");
    }

    pub(crate) fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            self.stop.stop();
            agent.wait().unwrap();
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.fleet.shared)
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        control::status(&self.config.control_socket()).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
        let came = testbed::wait_until(PATIENCE, || wanted(&self.status()));
        assert!(came, "it never came: {what}: {}", self.status());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    /// Writes a file from this process, whose opens and closes are not judged.
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        wait_for_writers(&path);
        path
    }

    /// Reads a file from another process.
    pub(crate) fn read(&self, name: &str) -> Got {
        read(self.path(name))
    }

    pub(crate) fn shell(&self, script: &str) {
        let out = Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.mount.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{script}: {said}");
    }
}

/// Other tests start programs meanwhile: until such a child runs its program it has all our
/// descriptors, that of the file just written too, and what a writer has open is not remembered.
fn wait_for_writers(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    let is_written = || matches!(ReadLease::try_take(&file), Err(LeaseRefused::WriterHeld));
    assert!(testbed::wait_until(PATIENCE, || !is_written()), "{path:?}");
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Before the file system goes, or the last openers would wait for it.
        self.stop();
        if let Some(puppet) = self.puppet.take() {
            puppet.kill();
        }
    }
}

pub(crate) fn read(path: PathBuf) -> Got {
    let out = Command::new("cat")
        .arg("--")
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() {
        Got::Content(out.stdout)
    } else if said.contains("Operation not permitted") {
        Got::Denied
    } else {
        Got::Other(said)
    }
}

fn enrol(fleet: &Fleet, config: &AgentConfig, guest: GuestId, left: Duration) {
    let identity = identity_of(fleet, guest, left);
    std::fs::create_dir_all(&config.state_dir).unwrap();
    agent::credentials::Credentials::save_identity(&config.state_dir, &identity).unwrap();
    let anchors = config.state_dir.join("anchors.pem");
    pki::save_anchors(&anchors, &[fleet.ca.cert().clone()]).unwrap();
}

/// A guest's, with a certificate of which so much remains.
pub(crate) fn identity_of(fleet: &Fleet, guest: GuestId, left: Duration) -> pki::Identity {
    let key = GuestKey::generate().unwrap();
    let validity = Validity {
        not_before: SystemTime::now() + left - LIFETIME,
        not_after: SystemTime::now() + left,
    };
    let cert = fleet.ca.sign_guest(key.csr(), guest, validity).unwrap();
    key.certified(vec![cert]).unwrap()
}
