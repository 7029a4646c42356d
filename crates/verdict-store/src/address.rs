//! Which shared store a URL names.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo};
use sqlx::postgres::PgConnectOptions;

use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::{Sightings, VerdictStore};

/// What a shared store needs besides its address.
#[derive(Clone)]
pub struct SharedSettings {
    /// Instead of one in the URL.
    pub password: Option<String>,
    /// PEM: the only authority that the server's certificate may be from. The server must have
    /// one of it for the name in the URL.
    pub ca_file: Option<PathBuf>,
    /// Entries go this long after they were kept.
    pub keep: Duration,
    /// PostgreSQL: beyond these the oldest go. Redis has its `maxmemory`.
    pub entries_max: u64,
    /// PostgreSQL: beyond these the sightings go that were not seen again for longest.
    pub sightings_max: u64,
    /// PostgreSQL: sightings go this long after they were last seen.
    pub sightings_keep: Duration,
    /// PostgreSQL: connections at most.
    pub connections_max: u32,
}

impl std::fmt::Debug for SharedSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedSettings").finish_non_exhaustive()
    }
}

/// The store cannot be used. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Of no store that there is.
    #[error(
        "must begin with postgres://, postgresql://, redis://, rediss:// or unix:// (Redis by its socket)"
    )]
    Scheme,
    /// The rest of the URL is wrong.
    #[error("cannot be used as an address of {store}: {reason}")]
    Url {
        /// The store.
        store: &'static str,
        /// What the library says.
        reason: String,
    },
    /// The authority's certificate cannot be read.
    #[error("{}: cannot read the certificate", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl AddressError {
    pub(crate) fn url(store: &'static str, reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string();
        Self::Url { store, reason }
    }
}

/// What appliances share at one address.
#[derive(Debug, Clone)]
pub struct SharedStores {
    /// Always.
    pub verdicts: Arc<dyn VerdictStore>,
    /// In PostgreSQL only.
    pub sightings: Option<Arc<dyn Sightings>>,
}

/// The address of a shared store, read from a URL. May hold a password, and does not show it.
#[derive(Clone)]
pub struct Address(Server);

#[derive(Clone)]
enum Server {
    Postgres(Box<PgConnectOptions>),
    Redis(Box<ConnectionInfo>),
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Address").field(&self.store()).finish()
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(url: &str) -> Result<Self, AddressError> {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        Ok(Self(match scheme {
            Some("postgres" | "postgresql") => {
                let options = PgConnectOptions::from_str(url);
                let options = options.map_err(|error| AddressError::url("postgres", error))?;
                Server::Postgres(Box::new(options))
            }
            Some("redis" | "rediss" | "unix") => {
                let info = url.into_connection_info();
                let info = info.map_err(|error| AddressError::url("redis", error))?;
                Server::Redis(Box::new(info))
            }
            _ => return Err(AddressError::Scheme),
        }))
    }
}

impl Address {
    /// The kind of store: `postgres` or `redis`.
    #[must_use]
    pub fn store(&self) -> &'static str {
        match self.0 {
            Server::Postgres(_) => "postgres",
            Server::Redis(_) => "redis",
        }
    }

    /// The stores there. Nothing is connected yet: one that is down at the start is one that is down.
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn open(&self, settings: &SharedSettings) -> Result<SharedStores, AddressError> {
        Ok(match &self.0 {
            Server::Postgres(options) => {
                let postgres = Arc::new(Postgres::new((**options).clone(), settings));
                SharedStores {
                    verdicts: postgres.clone(),
                    sightings: Some(postgres),
                }
            }
            Server::Redis(info) => SharedStores {
                verdicts: Arc::new(Redis::new((**info).clone(), settings)?),
                sightings: None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parsed = |url: &str| match url.parse::<Address>() {
            Ok(address) => address.store().to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(parsed("postgres://lazaret@db.example/lazaret"), "postgres");
        assert_eq!(parsed("redis://cache.example:6379/3"), "redis");
        assert_eq!(parsed("rediss://cache.example"), "redis");
        assert_eq!(parsed("unix:///run/redis.sock"), "redis");
        assert!(parsed("mysql://x").contains("must begin with"));
        assert!(parsed("redis://:hunter2@").contains("cannot be used"));
    }

    #[test]
    fn passwords_are_not_shown() {
        for url in [
            "redis://:hunter2@host/x",
            "postgres://u:hunter2@host:x/",
            "redis://:hunter2@",
        ] {
            let error = url.parse::<Address>().unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
        let good: Address = "postgres://u:hunter2@host/".parse().unwrap();
        assert!(!format!("{good:?}").contains("hunter2"));
    }
}
