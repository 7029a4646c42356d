//! Enrols a guest that has no identity, in the background: a golden image carries a token and the
//! controller's address, or the hypervisor injects them, and each clone asks at its first start.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use daemon::log::escape;
use daemon::signal::Stop;
use link::client::Backoff;
use link::enrol::EnrolError;
use pki::{FileError, GuestKey, JoinToken, TokenError};

use crate::bell::{Bell, wait};
use crate::credentials::{Credentials, CredentialsError, boot_seed, waiting_key};
use crate::membership::{Asking, Membership};
use crate::orders::chain;
use crate::{AgentConfig, machine};

/// The first pause after a failure; it doubles up to `enrol.retry_max_s`.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest that a controller can make a guest wait that a person is to approve.
const PENDING_RETRY_MAX: Duration = Duration::from_secs(3600);
/// How often a guest that waits looks whether `lazaret-agent enrol` was run meanwhile.
const LOOK: Duration = Duration::from_secs(2);

/// Why there is no identity yet.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("nobody says where to enrol: set enrol.controller, or run lazaret-agent enrol")]
    NoController,
    #[error("there is no join token: set enrol.token_file, or run lazaret-agent enrol")]
    NoToken,
    #[error("{from}")]
    Token {
        from: String,
        #[source]
        source: TokenError,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// What the enrolling thread has.
pub(crate) struct Enroller {
    pub(crate) config: Arc<AgentConfig>,
    pub(crate) stop: Stop,
    /// Takes the credentials, and is told by the bell.
    pub(crate) enrolled: Sender<Credentials>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) membership: Arc<Membership>,
}

impl Enroller {
    /// Asks until it has an identity, or the agent ends.
    pub(crate) fn run(self) {
        let mut key = None;
        let enrol = &self.config.enrol;
        let retry_max = Duration::from_secs(enrol.retry_max_s);
        let mut backoff = Backoff::new(RETRY_MIN, retry_max, boot_seed());
        // Who was refused once is most likely refused again.
        let slow = Duration::from_secs(enrol.refused_retry_s);
        let mut slow = Backoff::new(slow, slow, boot_seed());
        while !self.stop.is_set() {
            let (asking, pause) = match self.attempt(&mut key) {
                Ok(credentials) => return self.hand_over(credentials),
                Err(NotYet::Credentials(CredentialsError::Enrol(EnrolError::Pending {
                    retry_after,
                }))) => (Asking::Pending, retry_after.min(PENDING_RETRY_MAX)),
                Err(error) => {
                    let is_refused = matches!(
                        error,
                        NotYet::Credentials(CredentialsError::Enrol(EnrolError::Refused(_)))
                    );
                    let why = escape(chain(&error).as_bytes()).to_string();
                    if is_refused {
                        // It may be the key that is refused: a certificate for it that was lost has
                        // expired, say. The key of one that waits is that of its entry.
                        key = waiting_key(&self.config);
                        (Asking::Refused(why), slow.next_delay())
                    } else {
                        (Asking::Failed(why), backoff.next_delay())
                    }
                }
            };
            self.tell(asking, pause);
            if let Some(credentials) = self.wait(pause) {
                return self.hand_over(credentials);
            }
        }
    }

    /// Asks once. The key stays the same unless it is refused: a controller that has seen it before,
    /// and whose answer was lost, knows it.
    fn attempt(&self, key: &mut Option<GuestKey>) -> Result<Credentials, NotYet> {
        let config = &self.config;
        let injected = machine::injected(&config.sys_dir);
        let controller = injected
            .controller
            .or_else(|| config.enrol.controller.clone());
        let controller = controller.ok_or(NotYet::NoController)?;
        let token = match (injected.token, &config.enrol.token_file) {
            (Some(text), _) => token_of(&text, "the token that the hypervisor injected")?,
            (None, Some(path)) => token_in(path)?,
            (None, None) => return Err(NotYet::NoToken),
        };
        let key = match key {
            Some(key) => key,
            None => key.insert(match waiting_key(config) {
                Some(key) => key,
                None => GuestKey::generate().map_err(CredentialsError::Key)?,
            }),
        };
        Ok(Credentials::enrol_with(config, &controller, &token, key)?)
    }

    fn tell(&self, asking: Asking, pause: Duration) {
        let pause_s = pause.as_secs_f64().ceil();
        match &asking {
            Asking::Pending => {
                tracing::info!(pause_s, "enrolment waits for a person's approval");
            }
            Asking::Refused(why) => tracing::error!(why, pause_s, "enrolment refused"),
            Asking::Failed(why) => tracing::warn!(why, pause_s, "not enrolled"),
        }
        self.membership.asking(asking);
    }

    /// Waits, and looks whether somebody enrolled this guest by hand.
    fn wait(&self, pause: Duration) -> Option<Credentials> {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.is_set() {
                return None;
            }
            wait(self.stop.as_fd(), left.min(LOOK));
            let found = Credentials::load(&self.config);
            if let Ok(credentials) = found
                && !credentials.are_over()
            {
                return Some(credentials);
            }
        }
    }

    fn hand_over(&self, credentials: Credentials) {
        tracing::info!(guest = %credentials.guest, kept = credentials.home.name(), "enrolled");
        // Nobody takes it only where the agent ends.
        let _ = self.enrolled.send(credentials);
        self.bell.ring();
    }
}

fn token_in(path: &Path) -> Result<JoinToken, NotYet> {
    let text = pki::read_secret(path)?;
    token_of(&String::from_utf8_lossy(&text), &path.display().to_string())
}

fn token_of(text: &str, from: &str) -> Result<JoinToken, NotYet> {
    text.parse().map_err(|source| NotYet::Token {
        from: from.to_owned(),
        source,
    })
}
