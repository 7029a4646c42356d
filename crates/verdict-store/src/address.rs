//! Which shared store a URL names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::VerdictStore;

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
    /// PostgreSQL: connections at most.
    pub connections_max: u32,
}

impl std::fmt::Debug for SharedSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedSettings").finish_non_exhaustive()
    }
}

/// The store cannot be named like this. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Of no store that there is.
    #[error("must begin with postgres://, postgresql://, redis://, rediss:// or unix:// (Redis by its socket)")]
    Scheme,
    /// The rest of the URL is wrong.
    #[error("cannot be used: {0}")]
    Url(String),
    /// The authority's certificate cannot be read.
    #[error("{}: cannot read the certificate", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The shared store at a URL. Nothing is connected yet. Must be called within a runtime.
///
/// # Errors
/// [`AddressError`].
pub fn shared_store(
    url: &str,
    settings: &SharedSettings,
) -> Result<Arc<dyn VerdictStore>, AddressError> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    Ok(match scheme {
        Some("postgres" | "postgresql") => Arc::new(Postgres::new(url, settings)?),
        Some("redis" | "rediss" | "unix") => Arc::new(Redis::new(url, settings)?),
        _ => return Err(AddressError::Scheme),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses() {
        let settings = SharedSettings {
            password: Some("hunter2".into()),
            ca_file: None,
            keep: Duration::from_secs(1),
            entries_max: 1,
            connections_max: 1,
        };
        let name = |url: &str| match shared_store(url, &settings) {
            Ok(store) => store.name().to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(name("postgres://lazaret@db.example/lazaret"), "postgres");
        assert_eq!(name("redis://cache.example:6379/3"), "redis");
        assert_eq!(name("rediss://cache.example"), "redis");
        assert_eq!(name("unix:///run/redis.sock"), "redis");
        assert!(name("mysql://x").contains("must begin with"));
        assert!(name("redis://:hunter2@").contains("cannot be used"));
        assert!(!name("redis://:hunter2@").contains("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
