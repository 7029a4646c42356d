//! The link, which begins when there is an identity to show.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use link::client::Client;
use proto::v1;

use crate::AgentConfig;
use crate::credentials::{Credentials, CredentialsError, hello};
use crate::gate::Gate;
use crate::placed::Placed;
use crate::session::Session;

/// Why the link does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("cannot start the link")]
    Thread(#[source] io::Error),
}

/// Starts the link once, or never.
pub(crate) struct Dialer {
    state: Mutex<State>,
}

enum State {
    /// For the link's handler, which the hands wait for, too.
    Waiting(Arc<Session>),
    Running,
    /// The agent ends.
    Ended,
}

impl Dialer {
    pub(crate) fn new(session: Session) -> Self {
        Self {
            state: Mutex::new(State::Waiting(Arc::new(session))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with these, or goes on with them. `is_other`: they are of a guest that it was not before.
    ///
    /// # Errors
    /// [`DialError`]; it is as before then.
    pub(crate) fn use_credentials(
        &self,
        gate: &Gate,
        config: &AgentConfig,
        credentials: &Credentials,
        is_other: bool,
    ) -> Result<Option<Placed>, DialError> {
        let mut state = self.lock();
        match &*state {
            State::Ended => Ok(None),
            State::Running => {
                let tls = credentials.tls()?;
                if let Some(client) = gate.client() {
                    client.set_tls(tls);
                    if is_other {
                        let mut appliances = client.route().appliances().to_vec();
                        appliances.extend_from_slice(&credentials.appliances);
                        client.restart_route(without_repeats(appliances));
                    }
                }
                Ok(None)
            }
            State::Waiting(session) => {
                let (placed, route) = route_of(config, credentials);
                let client = start_link(config, credentials, route, Arc::clone(session))?;
                gate.set_client(client);
                *state = State::Running;
                Ok(placed)
            }
        }
    }

    /// No session is left when this returns, and none begins.
    pub(crate) fn end(&self, gate: &Gate) {
        let before = std::mem::replace(&mut *self.lock(), State::Ended);
        drop(before);
        if let Some(client) = gate.client() {
            client.stop();
        }
    }
}

fn without_repeats(appliances: Vec<String>) -> Vec<String> {
    let mut once: Vec<String> = Vec::new();
    for appliance in appliances {
        if !once.contains(&appliance) {
            once.push(appliance);
        }
    }
    once
}

/// The placer's last list, with what is configured behind it; or what is configured alone.
fn route_of(
    config: &AgentConfig,
    credentials: &Credentials,
) -> (Option<Placed>, (u64, Vec<String>)) {
    if !config.appliance.follows_lists() {
        return (None, (0, credentials.appliances.clone()));
    }
    let (placed, epoch, list) = Placed::load(&config.state_dir, &credentials.appliances);
    (Some(placed), (epoch, list))
}

fn start_link(
    config: &AgentConfig,
    credentials: &Credentials,
    (epoch, appliances): (u64, Vec<String>),
    session: Arc<Session>,
) -> Result<Client, DialError> {
    let config = link::client::Config {
        appliances,
        epoch,
        tls: credentials.tls()?,
        hello: hello(v1::SessionRole::Gate, &config.sys_dir),
        seed: credentials.seed(),
        limits: link::client::Limits::default(),
    };
    Client::start(config, session).map_err(DialError::Thread)
}
