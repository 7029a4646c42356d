//! The running agent beside this scan: it must not gate the scan's own opens, and its openers go
//! first.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::{Exclusion, exclude_this_process, status};

/// Between attempts to find an agent that was not there.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The agent on the same machine, if it runs.
pub(crate) struct Neighbour {
    socket: PathBuf,
    /// Held for the life of the scan: the agent lets this process's opens through meanwhile.
    exclusion: Option<Exclusion>,
    tried: Instant,
}

impl Neighbour {
    /// Registers this process with the agent; without one the scan goes on alone.
    pub(crate) fn find(socket: &Path) -> Self {
        Self {
            exclusion: exclude_this_process(socket).ok(),
            socket: socket.to_owned(),
            tried: Instant::now(),
        }
    }

    /// Whether processes wait for the gate's answer; false where there is no agent.
    pub(crate) fn has_openers(&mut self) -> bool {
        if self.exclusion.is_none() {
            if self.tried.elapsed() < RETRY_AFTER {
                return false;
            }
            *self = Self::find(&self.socket);
        }
        match status(&self.socket) {
            Ok(status) => status.get("openers").and_then(serde_json::Value::as_u64) > Some(0),
            Err(_) => {
                // It has ended; the next one has to be told anew.
                self.exclusion = None;
                self.tried = Instant::now();
                false
            }
        }
    }
}
