//! Redis or Valkey: one value for each entry, which goes by itself after a time. What the server
//! may hold in all is the server's `maxmemory`.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, TlsCertificates};
use scan_core::CacheKey;
use tokio::sync::Mutex;

use crate::entry::place;
use crate::store::{StoreError, StoreFuture, VerdictStore, check_batch};
use crate::{AddressError, Sealed, SharedSettings};

/// Before each key; another layout has another.
const PREFIX: &[u8] = b"lazaret:verdict:1:";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that all appliances share.
#[derive(Debug)]
pub(crate) struct Redis {
    client: Client,
    keep_s: u64,
    /// Carries any number of calls at once. `None`: not made yet, or broken.
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Redis {
    pub(crate) fn new(
        mut info: ConnectionInfo,
        settings: &SharedSettings,
    ) -> Result<Self, AddressError> {
        if let Some(password) = &settings.password {
            let with_password = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(with_password);
        }
        let client = match &settings.ca_file {
            None => Client::open(info),
            Some(path) => {
                let pem = std::fs::read(path).map_err(|source| AddressError::Ca {
                    path: path.clone(),
                    source,
                })?;
                let certificates = TlsCertificates {
                    client_tls: None,
                    root_cert: Some(pem),
                };
                Client::build_with_tls(info, certificates)
            }
        };
        Ok(Self {
            client: client.map_err(|error| AddressError::url("redis", error))?,
            keep_s: settings.keep.as_secs().max(1),
            connection: Mutex::new(None),
        })
    }

    async fn connection(&self) -> Result<MultiplexedConnection, StoreError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &*slot {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let made = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| StoreError::failed("connect", error))?;
        Ok(slot.insert(made).clone())
    }

    /// A connection that failed is not used again.
    async fn failed(&self, doing: &'static str, error: redis::RedisError) -> StoreError {
        if error.is_io_error() || error.is_unrecoverable_error() {
            self.connection.lock().await.take();
        }
        StoreError::failed(doing, error)
    }
}

fn name_of(key: &CacheKey) -> Vec<u8> {
    [PREFIX, &place(key)].concat()
}

impl VerdictStore for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> StoreFuture<'a, Vec<Option<Sealed>>> {
        Box::pin(async move {
            check_batch(keys.len())?;
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let mut command = redis::cmd("MGET");
            for key in keys {
                command.arg(name_of(key));
            }
            let mut connection = self.connection().await?;
            let found = command
                .query_async::<Vec<Option<Vec<u8>>>>(&mut connection)
                .await;
            match found {
                Ok(found) => Ok(found.into_iter().map(|it| it.map(Sealed)).collect()),
                Err(error) => Err(self.failed("get verdicts", error).await),
            }
        })
    }

    fn put<'a>(&'a self, entries: &'a [(CacheKey, Sealed)]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_batch(entries.len())?;
            // An empty pipeline is an error of the library.
            if entries.is_empty() {
                return Ok(());
            }
            let mut pipeline = redis::pipe();
            for (key, sealed) in entries {
                let command = pipeline.cmd("SET").arg(name_of(key)).arg(&sealed.0);
                command.arg("EX").arg(self.keep_s).ignore();
            }
            let mut connection = self.connection().await?;
            match pipeline.query_async::<()>(&mut connection).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.failed("keep verdicts", error).await),
            }
        })
    }
}
