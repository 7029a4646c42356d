//! The supervisor becomes a newer program.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use super::Supervisor;
use crate::board::Reader;
use crate::takeover::GROUP_VARIABLE;

impl Supervisor {
    pub(super) fn begin_upgrade(&mut self) {
        // Without a worker that reads, nobody would answer the open of the program.
        let is_guarded = self.board.reader() == Reader::Worker as u64;
        if !is_guarded || self.check.is_some() || self.stopping_since_ms.is_some() {
            tracing::warn!("no upgrade now: there is no worker that guards meanwhile");
            return;
        }
        let check = Command::new(&self.options.program)
            .args(&self.options.check_arguments)
            .spawn();
        match check {
            Ok(check) => self.check = Some(check),
            Err(error) => tracing::error!(%error, "no upgrade: the program cannot be started"),
        }
    }

    /// Becomes the newer program, in the same process. The worker goes on meanwhile, and the
    /// newer supervisor takes over from it.
    pub(super) fn upgrade(&mut self, check: ExitStatus) {
        if !check.success() || self.board.reader() != Reader::Worker as u64 {
            tracing::error!(%check, "no upgrade: the program says that it cannot run");
            return;
        }
        let group = match rustix::io::dup(self.group.as_fd()) {
            Ok(group) => group,
            Err(error) => return tracing::error!(%error, "no upgrade"),
        };
        tracing::info!(program = %self.options.program.display(), "upgrading");
        let error = Command::new(&self.options.program)
            .args(&self.options.arguments)
            .env(GROUP_VARIABLE, group.as_raw_fd().to_string())
            .exec();
        tracing::error!(%error, "no upgrade: the program cannot be run");
    }
}
