//! Verdicts shared with other appliances.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use verdict_store::Address;

use super::Ranged;

/// The store that appliances share, if any.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerdictStoreConfig {
    /// PostgreSQL or Redis. Unset: each appliance keeps its own verdicts.
    #[serde(deserialize_with = "address")]
    pub url: Option<Address>,
    /// A file with the password, instead of one in the URL.
    pub password_file: Option<PathBuf>,
    /// PEM: the authority that the server's certificate must be from.
    pub ca_file: Option<PathBuf>,
    /// 32 random bytes, the same on all appliances.
    pub key_file: Option<PathBuf>,
    /// Another key that is believed too, while keys are changed.
    pub accepted_key_file: Option<PathBuf>,
    /// What a question may take. 100.
    pub timeout_ms: Ranged<1, 10_000>,
    /// Entries go after so many days. 30.
    pub keep_days: Ranged<1, 36_500>,
    /// Of more entries the oldest go. 100 million.
    pub entries_max: Ranged<1>,
    /// Connections to PostgreSQL. 8.
    pub connections_max: Ranged<1, 1000>,
}

impl Default for VerdictStoreConfig {
    fn default() -> Self {
        Self {
            url: None,
            password_file: None,
            ca_file: None,
            key_file: None,
            accepted_key_file: None,
            timeout_ms: Ranged::new(100),
            keep_days: Ranged::new(30),
            entries_max: Ranged::new(100_000_000),
            connections_max: Ranged::new(8),
        }
    }
}

impl VerdictStoreConfig {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.get())
    }

    pub(crate) fn keep(&self) -> Duration {
        Duration::from_secs(self.keep_days.get() * 86_400)
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Address>, D::Error> {
    let url = String::deserialize(deserializer)?;
    url.parse().map(Some).map_err(de::Error::custom)
}
