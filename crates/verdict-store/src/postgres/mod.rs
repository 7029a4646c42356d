//! PostgreSQL, 15 or newer: one table for each kind of thing, the oldest rows of which go.

mod sightings;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use scan_core::CacheKey;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{Connection, Executor};
use tokio::sync::OnceCell;

use crate::entry::{PLACE_BYTES, place};
use crate::store::{StoreError, StoreFuture, VerdictStore, check_batch};
use crate::{Sealed, SharedSettings};

/// Version of the tables' layout.
const LAYOUT: i32 = 1;
/// Held while tables are made: `CREATE TABLE IF NOT EXISTS` alone fails where two appliances start
/// at once.
const LAYOUT_LOCK: i64 = 0x6c61_7a61_7265_7401;
/// Held while entries are trimmed, so that one appliance does it for all.
const TRIM_LOCK: i64 = LAYOUT_LOCK + 1;
/// Entries deleted by one statement.
const TRIM_STEP: i64 = 10_000;
/// Statements of one [`VerdictStore::trim`]: what is left has time until the next.
const TRIM_STEPS_MAX: usize = 100;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS lazaret_layout (version integer NOT NULL);
    CREATE TABLE IF NOT EXISTS lazaret_verdicts (
        place bytea PRIMARY KEY,
        sealed bytea NOT NULL,
        kept_at bigint NOT NULL DEFAULT extract(epoch FROM now())::bigint
    );
    CREATE INDEX IF NOT EXISTS lazaret_verdicts_kept_at ON lazaret_verdicts (kept_at);
    CREATE TABLE IF NOT EXISTS lazaret_sightings (
        digest bytea, guest bytea, first_s bigint NOT NULL, last_s bigint NOT NULL,
        PRIMARY KEY (digest, guest)
    );
    INSERT INTO lazaret_layout SELECT 1 WHERE NOT EXISTS (SELECT FROM lazaret_layout);
";

/// Tables that all appliances share.
#[derive(Debug)]
pub(crate) struct Postgres {
    pool: PgPool,
    entries_max: i64,
    keep_s: i64,
    sightings_max: i64,
    sightings_keep_s: i64,
    layout: OnceCell<()>,
}

fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| StoreError::failed(doing, error)
}

/// As the server takes it.
fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What is done while no other appliance trims.
type Trimming<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

impl Postgres {
    pub(crate) fn new(options: PgConnectOptions, settings: &SharedSettings) -> Self {
        let mut options = options.application_name("lazaret");
        if let Some(password) = &settings.password {
            options = options.password(password);
        }
        if let Some(ca) = &settings.ca_file {
            options = options.ssl_root_cert(ca).ssl_mode(PgSslMode::VerifyFull);
        }
        let pool = PgPoolOptions::new()
            .max_connections(settings.connections_max)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(options);
        Self {
            pool,
            entries_max: number(settings.entries_max),
            keep_s: number(settings.keep.as_secs()),
            sightings_max: number(settings.sightings_max),
            sightings_keep_s: number(settings.sightings_keep.as_secs()),
            layout: OnceCell::new(),
        }
    }

    /// The pool, once the tables are known to be there.
    async fn ready(&self) -> Result<&PgPool, StoreError> {
        self.layout
            .get_or_try_init(|| async { check_layout(&self.pool).await })
            .await?;
        Ok(&self.pool)
    }

    /// A connection of its own for a lock: however this ends, the lock ends with it.
    async fn alone(&self) -> Result<PgConnection, StoreError> {
        let connection = self.ready().await?.acquire().await;
        Ok(connection.map_err(failed("connect"))?.detach())
    }

    /// Runs `trim` if no other appliance does just now.
    async fn trim_alone(
        &self,
        trim: impl for<'a> FnOnce(&'a mut PgConnection) -> Trimming<'a> + Send,
    ) -> Result<(), StoreError> {
        let mut connection = self.alone().await?;
        let is_ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(TRIM_LOCK)
            .fetch_one(&mut connection)
            .await
            .map_err(failed("lock"))?;
        if is_ours {
            trim(&mut connection).await?;
        }
        connection.close().await.map_err(failed("close"))
    }
}

async fn trim_verdicts(
    connection: &mut PgConnection,
    entries_max: i64,
    keep_s: i64,
) -> Result<(), StoreError> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM lazaret_verdicts")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("trim verdicts"))?;
    let mut beyond = count.saturating_sub(entries_max).max(0);
    for _ in 0..TRIM_STEPS_MAX {
        let step = beyond.min(TRIM_STEP);
        let deleted = sqlx::query(
            "DELETE FROM lazaret_verdicts WHERE place IN (
                (SELECT place FROM lazaret_verdicts ORDER BY kept_at LIMIT $1)
                UNION
                (SELECT place FROM lazaret_verdicts
                 WHERE kept_at < extract(epoch FROM now())::bigint - $2 LIMIT $3))",
        )
        .bind(step)
        .bind(keep_s)
        .bind(TRIM_STEP)
        .execute(&mut *connection)
        .await
        .map_err(failed("trim verdicts"))?;
        beyond -= step;
        if beyond == 0 && deleted.rows_affected() < TRIM_STEP as u64 {
            break;
        }
    }
    Ok(())
}

async fn check_layout(pool: &PgPool) -> Result<(), StoreError> {
    let doing = "lay out tables";
    // A role that may only use the tables must not be refused for what it need not do.
    let found = version(pool).await.map_err(failed(doing))?;
    let found = match found {
        Some(found) => found,
        None => {
            let connection = pool.acquire().await.map_err(failed("connect"))?;
            // Not in a transaction: the lock must outlive each of the statements, and must be had
            // before the first of them looks at what is there.
            let mut connection = connection.detach();
            sqlx::query("SELECT pg_advisory_lock($1)")
                .bind(LAYOUT_LOCK)
                .execute(&mut connection)
                .await
                .map_err(failed(doing))?;
            connection.execute(TABLES).await.map_err(failed(doing))?;
            connection.close().await.map_err(failed(doing))?;
            version(pool)
                .await
                .map_err(failed(doing))?
                .unwrap_or(LAYOUT)
        }
    };
    if found > LAYOUT {
        return Err(StoreError::Newer {
            found: found.unsigned_abs(),
            known: LAYOUT.unsigned_abs(),
        });
    }
    Ok(())
}

async fn version(pool: &PgPool) -> Result<Option<i32>, sqlx::Error> {
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass('lazaret_layout') IS NOT NULL")
        .fetch_one(pool)
        .await?;
    if !is_there {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT version FROM lazaret_layout")
        .fetch_optional(pool)
        .await
}

impl VerdictStore for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> StoreFuture<'a, Vec<Option<Sealed>>> {
        Box::pin(async move {
            check_batch(keys.len())?;
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let places: Vec<[u8; PLACE_BYTES]> = keys.iter().map(place).collect();
            let asked: Vec<&[u8]> = places.iter().map(<[u8; PLACE_BYTES]>::as_slice).collect();
            let rows: Vec<(Vec<u8>, Vec<u8>)> =
                sqlx::query_as("SELECT place, sealed FROM lazaret_verdicts WHERE place = ANY($1)")
                    .bind(asked)
                    .fetch_all(self.ready().await?)
                    .await
                    .map_err(failed("get verdicts"))?;
            let found: BTreeMap<Vec<u8>, Vec<u8>> = rows.into_iter().collect();
            let answers = places
                .iter()
                .map(|place| found.get(place.as_slice()).cloned());
            Ok(answers.map(|found| found.map(Sealed)).collect())
        })
    }

    fn put<'a>(&'a self, entries: &'a [(CacheKey, Sealed)]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_batch(entries.len())?;
            if entries.is_empty() {
                return Ok(());
            }
            // One row for each key, and in one order for everybody: no statement touches a row
            // twice, and two appliances never wait for each other's rows in a circle.
            let rows: BTreeMap<[u8; PLACE_BYTES], &[u8]> = entries
                .iter()
                .map(|(key, sealed)| (place(key), sealed.0.as_slice()))
                .collect();
            let (places, sealed): (Vec<&[u8]>, Vec<&[u8]>) = rows
                .iter()
                .map(|(place, sealed)| (place.as_slice(), *sealed))
                .unzip();
            sqlx::query(
                "INSERT INTO lazaret_verdicts (place, sealed)
                 SELECT * FROM unnest($1::bytea[], $2::bytea[])
                 ON CONFLICT (place) DO UPDATE
                 SET sealed = excluded.sealed, kept_at = excluded.kept_at",
            )
            .bind(places)
            .bind(sealed)
            .execute(self.ready().await?)
            .await
            .map_err(failed("keep verdicts"))?;
            Ok(())
        })
    }

    fn trim(&self) -> StoreFuture<'_, ()> {
        let (entries_max, keep_s) = (self.entries_max, self.keep_s);
        Box::pin(
            self.trim_alone(move |connection| {
                Box::pin(trim_verdicts(connection, entries_max, keep_s))
            }),
        )
    }
}
