//! Why a connector cannot do something.

use std::io;

/// A connector's failure. Never holds a credential; text from the other side is hostile and shown
/// through [`daemon::log::escape`] by whoever logs it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// Its configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// No connection, or it broke.
    #[error("{endpoint}: no connection")]
    Unreachable {
        /// Whom it was made to.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// The other side's certificate is not trusted, or it speaks no TLS that we do.
    #[error("{endpoint}: its certificate or TLS is not accepted: {reason}")]
    Untrusted {
        /// Whom the connection was made to.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// Name, password, key or client certificate are not accepted.
    #[error("{endpoint}: the credentials are not accepted: {reason}")]
    Credentials {
        /// Who says so.
        endpoint: String,
        /// What it says.
        reason: String,
    },
    /// The account lacks a right.
    #[error("{endpoint}: {what} is not allowed to this account")]
    Forbidden {
        /// Who says so.
        endpoint: String,
        /// What was asked for.
        what: String,
    },
    /// No answer in time.
    #[error("{endpoint}: no answer to {what} within {limit_ms} ms")]
    Timeout {
        /// Who did not answer.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The limit.
        limit_ms: u64,
    },
    /// An answer that makes no sense, or an error that the other side reports.
    #[error("{endpoint}: {what}")]
    Answer {
        /// Whose answer.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
    /// More than a limit of ours allows.
    #[error("{endpoint}: {what} is over the limit of {limit}")]
    TooMuch {
        /// Who sends it.
        endpoint: String,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// This connector cannot do that.
    #[error("{0} is not possible with this hypervisor")]
    Unsupported(&'static str),
}

impl ConnectorError {
    /// True where trying again soon can only do harm: an account that is tried too often with a
    /// wrong password is locked.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::Untrusted { .. }
                | Self::Credentials { .. }
                | Self::Forbidden { .. }
        )
    }

    /// One word for a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Config(_) => "config",
            Self::Unreachable { .. } => "unreachable",
            Self::Untrusted { .. } => "untrusted",
            Self::Credentials { .. } => "credentials",
            Self::Forbidden { .. } => "forbidden",
            Self::Timeout { .. } => "timeout",
            Self::Answer { .. } => "answer",
            Self::TooMuch { .. } => "too_much",
            Self::Unsupported(_) => "unsupported",
        }
    }
}
