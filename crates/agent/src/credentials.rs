//! The guest's key and certificate, whom it trusts, and whom it asks: files written at enrolment, in
//! the state directory or, where the machine does not outlive its user, in the runtime directory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use link::enrol::{EnrolError, GuestTpm, enrol};
use model::{GuestId, Machine};
use pki::{CertificateDer, FileError, GuestKey, Identity, JoinToken, RENEW_GRACE, Validity};
use proto::v1;

use crate::guest_tpm::MachineTpm;
use crate::placed::Placed;
use crate::{AgentConfig, machine, origin};

const IDENTITY_FILE: &str = "guest.pem";
const ANCHORS_FILE: &str = "anchors.pem";
const APPLIANCES_FILE: &str = "appliances";
/// A key that waits for a person's approval, with its request.
const PENDING_FILE: &str = "pending.pem";

/// What a guest needs to talk to an appliance.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Its key and certificate.
    pub identity: Identity,
    /// Whom it trusts.
    pub anchors: Vec<CertificateDer<'static>>,
    /// Whom it asks, as host:port, best first.
    pub appliances: Vec<String>,
    /// Who it is.
    pub guest: GuestId,
    /// Where they are kept.
    pub home: Home,
}

/// Where a guest's key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// In the state directory: over reboots.
    Disk,
    /// In the runtime directory, which is in memory: over restarts of the agent. For machines that do
    /// not outlive their users.
    Runtime,
    /// In this process alone: the same where the runtime directory is on a disk.
    Process,
}

/// Credentials cannot be read, made or written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Nobody ever enrolled this guest, or its key was not to be kept.
    #[error("{}: this guest is not enrolled; run lazaret-agent enrol", .0.display())]
    NotEnrolled(PathBuf),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state directory cannot be made or a file in it not be read.
    #[error("cannot use {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate is not a guest's.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        source: pki::CertError,
    },
    /// Nobody to ask.
    #[error("no appliance is known: set appliance.addresses, or enrol again")]
    NoAppliance,
    /// No key can be made.
    #[error("cannot make a key")]
    Key(#[from] pki::KeyError),
    /// The controller did not give any.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// They do not fit each other.
    #[error(transparent)]
    Tls(#[from] link::tls::TlsError),
}

impl Home {
    /// The folder; `None`: there is none.
    pub(crate) fn dir(self, config: &AgentConfig) -> Option<&Path> {
        match self {
            Self::Disk => Some(&config.state_dir),
            Self::Runtime => Some(&config.runtime_dir),
            Self::Process => None,
        }
    }

    /// For a key that is never to reach a disk.
    fn in_memory(config: &AgentConfig) -> Self {
        if is_in_memory(&config.runtime_dir) {
            return Self::Runtime;
        }
        tracing::warn!(
            runtime_dir = %config.runtime_dir.display(),
            "the runtime directory is not in memory: the key is lost when the agent restarts"
        );
        Self::Process
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Runtime => "runtime",
            Self::Process => "process",
        }
    }
}

impl Credentials {
    /// Reads what enrolment wrote. Appliances in the configuration replace those named at enrolment.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be used.
    pub fn load(config: &AgentConfig) -> Result<Self, CredentialsError> {
        if config.runtime_dir.join(IDENTITY_FILE).exists() {
            match Self::load_from(Home::Runtime, &config.runtime_dir, config) {
                Ok(credentials) => return Ok(credentials),
                // The machine gets another one; that is what such machines do all the time.
                Err(error) => tracing::debug!(%error, "the identity in memory cannot be used"),
            }
        }
        Self::load_from(Home::Disk, &config.state_dir, config)
    }

    fn load_from(home: Home, dir: &Path, config: &AgentConfig) -> Result<Self, CredentialsError> {
        let path = dir.join(IDENTITY_FILE);
        if !path.exists() {
            return Err(CredentialsError::NotEnrolled(path));
        }
        let identity = Identity::load(&path)?;
        let leaf = identity.leaf().map(|leaf| &leaf[..]).unwrap_or_default();
        let guest = pki::guest_id_of(leaf);
        let guest = guest.map_err(|source| CredentialsError::Certificate { path, source })?;
        let anchors = pki::load_anchors(&dir.join(ANCHORS_FILE))?;
        let appliances = if config.appliance.addresses.is_empty() {
            load_appliances(&dir.join(APPLIANCES_FILE))?
        } else {
            config.appliance.addresses.clone()
        };
        if appliances.is_empty() {
            return Err(CredentialsError::NoAppliance);
        }
        Ok(Self {
            identity,
            anchors,
            appliances,
            guest,
            home,
        })
    }

    /// Exchanges a join token for credentials and writes them down. While a person is to approve
    /// this guest, its key waits in the runtime directory: whoever asks next asks for the same.
    ///
    /// # Errors
    /// Why there are none; what was there before still counts.
    pub fn enrol(
        config: &AgentConfig,
        controller: &str,
        token: &JoinToken,
    ) -> Result<Self, CredentialsError> {
        make_private_dir(&config.state_dir)?;
        make_private_dir(&config.runtime_dir)?;
        let key = match waiting_key(config) {
            Some(key) => key,
            None => GuestKey::generate()?,
        };
        Self::enrol_with(config, controller, token, &key)
    }

    /// As [`enrol`](Self::enrol), with this key.
    pub(crate) fn enrol_with(
        config: &AgentConfig,
        controller: &str,
        token: &JoinToken,
        key: &GuestKey,
    ) -> Result<Self, CredentialsError> {
        let machine = machine::facts(&config.sys_dir);
        let pending = config.runtime_dir.join(PENDING_FILE);
        let mut tpm = MachineTpm::find();
        let tpm = tpm.as_mut().map(|it| it as &mut dyn GuestTpm);
        let enrolled = match enrol(controller, token, key, &hostname(), &machine, tpm) {
            Ok(enrolled) => enrolled,
            Err(error) => {
                // Whether this key may ever reach a disk is not known yet.
                if matches!(error, EnrolError::Pending { .. }) && is_in_memory(&config.runtime_dir)
                {
                    key.save(&pending)?;
                }
                return Err(error.into());
            }
        };
        let home = if enrolled.ephemeral {
            Home::in_memory(config)
        } else {
            Home::Disk
        };
        let mut credentials = Self {
            identity: enrolled.identity,
            anchors: enrolled.anchors,
            appliances: enrolled.appliances,
            guest: enrolled.guest,
            home,
        };
        if let Some(dir) = home.dir(config) {
            pki::save_anchors(&dir.join(ANCHORS_FILE), &credentials.anchors)?;
            let list = credentials.appliances.iter().map(|it| format!("{it}\n"));
            let list: String = list.collect();
            pki::write_atomic(&dir.join(APPLIANCES_FILE), 0o644, list.as_bytes())?;
        }
        credentials.save_new(config, &machine, None)?;
        // It may not be there; left behind, it is a key that nobody certified.
        let _ = std::fs::remove_file(pending);
        if !config.appliance.addresses.is_empty() {
            credentials
                .appliances
                .clone_from(&config.appliance.addresses);
        }
        Ok(credentials)
    }

    /// Writes down an identity that the guest did not have before. The identity itself comes last, so
    /// that a crash leaves the old one or the new one, each with its machine's facts; `before` names
    /// the old one where it is kept in the same place.
    ///
    /// # Errors
    /// The old one counts then.
    pub(crate) fn save_new(
        &self,
        config: &AgentConfig,
        machine: &Machine,
        before: Option<GuestId>,
    ) -> Result<(), CredentialsError> {
        // Another guest's list may be later than any that this one will get.
        Placed::forget(&config.state_dir);
        if let Some(dir) = self.home.dir(config) {
            origin::note(dir, self.guest, machine, before)?;
            self.identity.save(&dir.join(IDENTITY_FILE))?;
        }
        let others = [Home::Disk, Home::Runtime].into_iter();
        for other in others.filter(|other| *other != self.home) {
            // In the runtime directory it would come first; on the disk it is a key too many.
            let path = other.dir(config).map(|dir| dir.join(IDENTITY_FILE));
            if let Some(path) = path.filter(|path| path.exists()) {
                std::fs::remove_file(&path)
                    .map_err(|source| CredentialsError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// Writes a renewed identity over the old one, whole or not at all.
    ///
    /// # Errors
    /// The old one is still there then.
    pub fn save_identity(dir: &Path, identity: &Identity) -> Result<(), FileError> {
        identity.save(&dir.join(IDENTITY_FILE))
    }

    /// For the link.
    ///
    /// # Errors
    /// The files do not fit each other.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>, CredentialsError> {
        Ok(link::tls::client_config(&self.identity, &self.anchors)?)
    }

    /// When the certificate is valid; `None`: there is none that can be read.
    pub(crate) fn validity(&self) -> Option<Validity> {
        pki::validity_of(self.identity.leaf()?).ok()
    }

    /// Whether the certificate has ended.
    pub(crate) fn is_expired(&self) -> bool {
        self.validity()
            .is_none_or(|validity| validity.is_expired(SystemTime::now()))
    }

    /// Whether nothing can be done with them any more: an expired certificate is not renewed for ever,
    /// and not at all where the key is never on a disk.
    pub(crate) fn are_over(&self) -> bool {
        let grace = match self.home {
            Home::Disk => RENEW_GRACE,
            Home::Runtime | Home::Process => Duration::ZERO,
        };
        self.validity()
            .is_some_and(|validity| SystemTime::now() > validity.not_after + grace)
    }

    /// Spreads what a fleet would else do at once; differs between guests.
    #[must_use]
    pub fn seed(&self) -> u64 {
        seed_of(&self.guest.0)
    }
}

/// A number from an id.
fn seed_of(id: &[u8; 16]) -> u64 {
    let (low, high) = id.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b));
    number(low) ^ number(high)
}

/// Spreads what a fleet's machines would else do at once before they have an identity.
pub(crate) fn boot_seed() -> u64 {
    machine::boot_id().map_or(0, |id| seed_of(&id))
}

/// The key that waits for approval.
pub(crate) fn waiting_key(config: &AgentConfig) -> Option<GuestKey> {
    GuestKey::load(&config.runtime_dir.join(PENDING_FILE)).ok()
}

/// Whether what is written to this folder stays in memory (or in swap).
fn is_in_memory(dir: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    let found = rustix::fs::statfs(dir).map(|found| found.f_type as u64);
    found.is_ok_and(|kind| kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

/// Makes a directory for this user alone.
///
/// # Errors
/// Why it cannot be made or closed to others.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), CredentialsError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let failed = |source| CredentialsError::Io {
        path: path.to_owned(),
        source,
    };
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

fn load_appliances(path: &Path) -> Result<Vec<String>, CredentialsError> {
    let text = std::fs::read_to_string(path).map_err(|source| CredentialsError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The guest's name, for people.
#[must_use]
pub fn hostname() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}

/// How this machine greets an appliance. The link adds what it knows itself.
pub(crate) fn hello(role: v1::SessionRole, sys: &Path) -> v1::Hello {
    v1::Hello {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        role: role as i32,
        hostname: hostname(),
        boot_id: machine::boot_id().map_or_else(Vec::new, |id| id.to_vec()),
        machine: Some((&machine::facts(sys)).into()),
        ..v1::Hello::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_not_enrolled_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let config = AgentConfig {
            state_dir: dir.path().to_owned(),
            ..AgentConfig::default()
        };
        let error = Credentials::load(&config).unwrap_err().to_string();
        assert!(error.contains("lazaret-agent enrol"), "{error}");
    }

    #[test]
    fn a_machine_has_a_name() {
        assert!(!hostname().is_empty());
    }
}
