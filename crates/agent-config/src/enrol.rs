//! How a guest gets its identity.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{UnusableConfig, check_address, check_path};

/// How a guest that has no identity gets one by itself. What its hypervisor injects comes first.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Enrol {
    /// The controller, as host:port.
    pub controller: Option<String>,
    /// A file with a join token, that only its owner may read.
    pub token_file: Option<PathBuf>,
    /// The longest pause between attempts that reached nobody, in seconds.
    pub retry_max_s: u64,
    /// The pause after a refusal, in seconds.
    pub refused_retry_s: u64,
}

impl Default for Enrol {
    fn default() -> Self {
        Self {
            controller: None,
            token_file: None,
            retry_max_s: 60,
            refused_retry_s: 600,
        }
    }
}

impl Enrol {
    pub(crate) fn validate(&self) -> Result<(), UnusableConfig> {
        if let Some(controller) = &self.controller {
            check_address("enrol.controller", controller)?;
        }
        if let Some(path) = &self.token_file {
            check_path("enrol.token_file", path)?;
        }
        let times = [
            ("retry_max_s", self.retry_max_s),
            ("refused_retry_s", self.refused_retry_s),
        ];
        let (min, max) = (1, 86_400);
        match times.into_iter().find(|(_, s)| !(min..=max).contains(s)) {
            Some((key, value)) => Err(UnusableConfig::Limit {
                key: format!("enrol.{key}"),
                value,
                min,
                max,
            }),
            None => Ok(()),
        }
    }
}
