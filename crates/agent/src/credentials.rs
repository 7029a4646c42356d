//! The guest's key and certificate, whom it trusts, and whom it asks: files in the state
//! directory, written at enrolment.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use link::enrol::{EnrolError, Enrolled, enrol};
use model::{GuestId, Machine};
use pki::{CertificateDer, FileError, Identity, JoinToken};

use crate::AgentConfig;

const IDENTITY_FILE: &str = "guest.pem";
const ANCHORS_FILE: &str = "anchors.pem";
const APPLIANCES_FILE: &str = "appliances";

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
}

/// Credentials cannot be read, made or written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// `lazaret-agent enrol` never succeeded here.
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
    /// The controller did not give any.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// They do not fit each other.
    #[error(transparent)]
    Tls(#[from] link::tls::TlsError),
}

impl Credentials {
    /// Reads what [`Self::enrol`] wrote. Appliances in the configuration replace those named at
    /// enrolment.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be used.
    pub fn load(config: &AgentConfig) -> Result<Self, CredentialsError> {
        let path = config.state_dir.join(IDENTITY_FILE);
        if !path.exists() {
            return Err(CredentialsError::NotEnrolled(path));
        }
        let identity = Identity::load(&path)?;
        let leaf = identity.leaf().map(|leaf| &leaf[..]).unwrap_or_default();
        let guest = pki::guest_id_of(leaf);
        let guest = guest.map_err(|source| CredentialsError::Certificate { path, source })?;
        let anchors = pki::load_anchors(&config.state_dir.join(ANCHORS_FILE))?;
        let appliances = if config.appliance.addresses.is_empty() {
            load_appliances(&config.state_dir.join(APPLIANCES_FILE))?
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
        })
    }

    /// Exchanges a join token for credentials and writes them down. The identity comes last, so
    /// that a crash leaves a guest that is enrolled or one that is not.
    ///
    /// # Errors
    /// Why there are none; what was there before still counts.
    pub fn enrol(
        config: &AgentConfig,
        controller: &str,
        token: &JoinToken,
    ) -> Result<GuestId, CredentialsError> {
        make_private_dir(&config.state_dir)?;
        let enrolled = enrol(controller, token, &hostname(), &machine())?;
        let Enrolled {
            guest,
            identity,
            anchors,
            appliances,
        } = enrolled;
        pki::save_anchors(&config.state_dir.join(ANCHORS_FILE), &anchors)?;
        let list: String = appliances.iter().map(|a| format!("{a}\n")).collect();
        let path = config.state_dir.join(APPLIANCES_FILE);
        pki::write_atomic(&path, 0o644, list.as_bytes())?;
        identity.save(&config.state_dir.join(IDENTITY_FILE))?;
        Ok(guest)
    }

    /// Writes a renewed identity over the old one, whole or not at all.
    ///
    /// # Errors
    /// The old one is still there then.
    pub fn save_identity(state_dir: &Path, identity: &Identity) -> Result<(), FileError> {
        identity.save(&state_dir.join(IDENTITY_FILE))
    }

    /// For the link.
    ///
    /// # Errors
    /// The files do not fit each other.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>, CredentialsError> {
        Ok(link::tls::client_config(&self.identity, &self.anchors)?)
    }

    /// Spreads what a fleet would else do at once; differs between guests.
    #[must_use]
    pub fn seed(&self) -> u64 {
        let (low, high) = self.guest.0.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b));
        number(low) ^ number(high)
    }
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

/// What this machine says that it is; a part is missing where the firmware or the rights do not tell.
fn machine() -> Machine {
    Machine {
        system_uuid: read_uuid("/sys/class/dmi/id/product_uuid"),
        ..Machine::default()
    }
}

/// Tells a restart of the agent from one of the guest.
#[must_use]
pub fn boot_id() -> Option<[u8; 16]> {
    read_uuid("/proc/sys/kernel/random/boot_id")
}

fn read_uuid(path: &str) -> Option<[u8; 16]> {
    let text = std::fs::read_to_string(path).ok()?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    GuestId::from_hex(&digits.to_ascii_lowercase()).map(|id| id.0)
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
    fn the_kernel_tells_its_boot() {
        assert!(boot_id().is_some_and(|id| id != [0; 16]));
        assert!(!hostname().is_empty());
    }
}
