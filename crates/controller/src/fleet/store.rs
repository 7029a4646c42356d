//! What is written down of the fleet: SQLite in the state folder, or PostgreSQL by a URL. One
//! schema and one text of every statement for both.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fleet_core::{Event, Loaded, Row, StoredHost, StoredPlacement, StoredVm, VmSeen};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, QueryBuilder};

/// The file's name in the state folder.
const FILE: &str = "fleet.sqlite";
/// Rows in one statement.
pub(crate) const ROWS_AT_ONCE: usize = 200;
/// For a connection to be had.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long PostgreSQL waits for a lock, and for the end of a transaction whose client is silent.
const PATIENCE: [(&str, &str); 2] = [
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
];
/// Connections to PostgreSQL.
const CONNECTIONS_MAX: u32 = 4;
/// The database's version of the schema; another one is refused.
const SCHEMA: &str = "2";
/// The one before: it had neither members nor tokens, and nothing of it has changed.
const SCHEMA_BEFORE: &str = "1";

const TABLES: [&str; 11] = [
    "CREATE TABLE IF NOT EXISTS fleet_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_placer (id BIGINT PRIMARY KEY, holder TEXT NOT NULL, \
     address TEXT NOT NULL, term BIGINT NOT NULL, until_ms BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_hosts (id BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_vms (id BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_appliances (id BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_placements (id BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_events (id BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_turns (id BIGINT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_changes (id BIGINT PRIMARY KEY, last BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS fleet_identity (kind TEXT NOT NULL, id TEXT NOT NULL, \
     change BIGINT NOT NULL, at_s BIGINT NOT NULL, body TEXT, PRIMARY KEY (kind, id))",
    "CREATE INDEX IF NOT EXISTS fleet_identity_change ON fleet_identity (change)",
];

/// The database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A URL that names no database.
    #[error("controller.database: write postgres://USER@HOST/DATABASE")]
    Url(#[source] sqlx::Error),
    /// It cannot be opened, read or written.
    #[error("the fleet's database")]
    Database(#[from] sqlx::Error),
    /// Another version wrote it.
    #[error("the fleet's database has the schema {0}; this version knows {SCHEMA}")]
    Schema(String),
    /// A row makes no sense.
    #[error("the fleet's database: {table} {id}")]
    Row {
        /// Where.
        table: &'static str,
        /// Which.
        id: i64,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A row of a member, token, pool or of who waits makes no sense.
    #[error("the fleet's database: {kind} {id}: {why}")]
    Identity {
        /// Of what.
        kind: String,
        /// Which.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// Its members are another CA's.
    #[error(
        "the members in the fleet's database have certificates of the CA {its}, and this controller \
         has the CA {ours}: copy ca.crt and ca.key from the folder pki of a controller of this \
         fleet's into this one's, or give this controller a database of its own"
    )]
    OtherCa {
        /// Fingerprint of the database's.
        its: String,
        /// Fingerprint of this controller's.
        ours: String,
    },
}

/// A change was not written down.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another controller is the placer now.
    #[error("another controller has become the placer")]
    Fenced,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CommitError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(StoreError::Database(error))
    }
}

/// The placer's lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which process.
    pub holder: String,
    /// How appliances reach it; empty: only from its own process.
    pub address: String,
    /// Rises with each holder.
    pub term: u32,
}

/// The open database.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) pool: Pool,
}

#[derive(Debug, Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The same for either pool: statements and types are the same for both.
macro_rules! either {
    ($store:expr, $pool:ident => $work:expr) => {
        match &$store.pool {
            $crate::fleet::store::Pool::Sqlite($pool) => $work,
            $crate::fleet::store::Pool::Postgres($pool) => $work,
        }
    };
}
pub(crate) use either;

impl Store {
    /// Opens (or makes) the embedded database in `dir`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn embedded(dir: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(dir.join(FILE))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit is on disk: a list that was sent is not to be forgotten.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(CONNECT_TIMEOUT)
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new().max_connections(1);
        let pool = pool.connect_with(options).await?;
        Self::prepared(Pool::Sqlite(pool)).await
    }

    /// Connects to PostgreSQL.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn postgres(url: &str) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse().map_err(StoreError::Url)?;
        // A controller that vanished amid a transaction holds the placer's row, and keeps nobody
        // else from the lease for longer than this.
        let options = options.options(PATIENCE);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_with(options.disable_statement_logging())
            .await?;
        Self::prepared(Pool::Postgres(pool)).await
    }

    async fn prepared(pool: Pool) -> Result<Self, StoreError> {
        let store = Self { pool };
        either!(store, pool => {
            let mut all = pool.begin().await?;
            for table in TABLES {
                sqlx::query(table).execute(&mut *all).await?;
            }
            let first = "INSERT INTO fleet_placer VALUES (1, '', '', 0, 0) ON CONFLICT DO NOTHING";
            sqlx::query(first).execute(&mut *all).await?;
            let first = "INSERT INTO fleet_changes VALUES (1, 0) ON CONFLICT DO NOTHING";
            sqlx::query(first).execute(&mut *all).await?;
            let newer = "UPDATE fleet_meta SET value = $1 WHERE name = 'schema' AND value = $2";
            sqlx::query(newer).bind(SCHEMA).bind(SCHEMA_BEFORE).execute(&mut *all).await?;
            let schema = "INSERT INTO fleet_meta VALUES ('schema', $1) ON CONFLICT DO NOTHING";
            sqlx::query(schema).bind(SCHEMA).execute(&mut *all).await?;
            all.commit().await?;
        });
        match store.meta("schema").await? {
            Some(schema) if schema == SCHEMA => Ok(store),
            other => Err(StoreError::Schema(other.unwrap_or_default())),
        }
    }

    /// Whether other controllers may have it, too.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.pool, Pool::Postgres(_))
    }

    pub(crate) async fn meta(&self, name: &str) -> Result<Option<String>, StoreError> {
        let query = "SELECT value FROM fleet_meta WHERE name = $1";
        let row: Option<(String,)> = either!(self, pool => {
            sqlx::query_as(query).bind(name).fetch_optional(pool).await?
        });
        Ok(row.map(|(value,)| value))
    }

    /// What ranks appliances for every guest: drawn once for the life of the fleet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn seed(&self, drawn: u64) -> Result<u64, StoreError> {
        let query = "INSERT INTO fleet_meta VALUES ('seed', $1) ON CONFLICT DO NOTHING";
        either!(self, pool => {
            sqlx::query(query).bind(drawn.to_string()).execute(pool).await?;
        });
        let seed = self.meta("seed").await?;
        Ok(seed.and_then(|seed| seed.parse().ok()).unwrap_or(drawn))
    }

    /// Milliseconds since 1970 by the clock that all controllers share.
    async fn now_ms(&self) -> Result<i64, StoreError> {
        match &self.pool {
            Pool::Sqlite(_) => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let millis = since.unwrap_or_default().as_millis();
                Ok(i64::try_from(millis).unwrap_or(i64::MAX))
            }
            Pool::Postgres(pool) => {
                let clock = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
                let (now,): (i64,) = sqlx::query_as(clock).fetch_one(pool).await?;
                Ok(now)
            }
        }
    }

    /// Becomes the placer where nobody is, with a new term; `None`: somebody is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lead(
        &self,
        holder: &str,
        address: &str,
        valid: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let now = self.now_ms().await?;
        let query = "UPDATE fleet_placer SET holder = $1, address = $2, term = term + 1, \
                     until_ms = $3 WHERE id = 1 AND (until_ms < $4 OR holder = $1) RETURNING term";
        let row: Option<(i64,)> = either!(self, pool => {
            sqlx::query_as(query).bind(holder).bind(address).bind(now + millis(valid)).bind(now)
                .fetch_optional(pool).await?
        });
        Ok(row.map(|(term,)| Lease {
            holder: holder.to_owned(),
            address: address.to_owned(),
            term: u32::try_from(term).unwrap_or(u32::MAX),
        }))
    }

    /// How appliances reach the placer; empty where nobody is or only its own process can.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn leader(&self) -> Result<String, StoreError> {
        let now = self.now_ms().await?;
        let query = "SELECT address FROM fleet_placer WHERE id = 1 AND until_ms >= $1";
        let row: Option<(String,)> = either!(self, pool => {
            sqlx::query_as(query).bind(now).fetch_optional(pool).await?
        });
        Ok(row.map(|(address,)| address).unwrap_or_default())
    }

    /// Gives the lease up, so that another need not wait for its end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resign(&self, lease: &Lease) -> Result<(), StoreError> {
        let query =
            "UPDATE fleet_placer SET until_ms = 0 WHERE id = 1 AND term = $1 AND holder = $2";
        either!(self, pool => {
            sqlx::query(query).bind(i64::from(lease.term)).bind(&lease.holder).execute(pool).await?;
        });
        Ok(())
    }

    /// Everything that was written down, with the latest `events_max` events.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self, events_max: usize) -> Result<Loaded, StoreError> {
        let mut events: Vec<Event> = Vec::new();
        let latest = "SELECT id, body FROM fleet_events ORDER BY id DESC LIMIT $1";
        let limit = i64::try_from(events_max).unwrap_or(i64::MAX);
        let rows: Vec<(i64, String)> = either!(self, pool => {
            sqlx::query_as(latest).bind(limit).fetch_all(pool).await?
        });
        for (id, body) in rows.into_iter().rev() {
            events.push(parse("fleet_events", id, &body)?);
        }
        let turns_out: Vec<u32> = self
            .all("fleet_turns", "SELECT id, body FROM fleet_turns")
            .await?;
        Ok(Loaded {
            turns_out_s: turns_out.into_iter().max().unwrap_or(0),
            hosts: self
                .all("fleet_hosts", "SELECT id, body FROM fleet_hosts")
                .await?,
            vms: self
                .all("fleet_vms", "SELECT id, body FROM fleet_vms")
                .await?,
            appliances: self
                .all("fleet_appliances", "SELECT id, body FROM fleet_appliances")
                .await?,
            placements: self
                .all("fleet_placements", "SELECT id, body FROM fleet_placements")
                .await?,
            events,
        })
    }

    /// VMs that were written down with this uuid.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn vms_with_uuid(&self, uuid: [u8; 16]) -> Result<Vec<VmSeen>, StoreError> {
        // As it is within a row. A look at every row is made for a VM that joins alone.
        let within = serde_json::to_string(&uuid).unwrap_or_default();
        let query = "SELECT id, body FROM fleet_vms WHERE body LIKE $1";
        let rows: Vec<(i64, String)> = either!(self, pool => {
            sqlx::query_as(query).bind(format!("%\"uuid\":{within}%")).fetch_all(pool).await?
        });
        let vms = rows.iter().map(|(id, body)| parse("fleet_vms", *id, body));
        let vms: Vec<StoredVm> = vms.collect::<Result<_, _>>()?;
        if vms.is_empty() {
            return Ok(Vec::new());
        }
        let hosts: Vec<StoredHost> = self
            .all("fleet_hosts", "SELECT id, body FROM fleet_hosts")
            .await?;
        let cluster = |vm: &StoredVm| {
            let on = |host: &&StoredHost| {
                host.connector == vm.connector && Some(&host.record.id) == vm.record.host.as_ref()
            };
            hosts.iter().find(on)?.record.cluster.clone()
        };
        Ok(vms
            .iter()
            .filter_map(|vm| VmSeen::of(vm, cluster(vm)))
            .collect())
    }

    async fn all<T: DeserializeOwned>(
        &self,
        table: &'static str,
        query: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let rows: Vec<(i64, String)> = either!(self, pool => {
            sqlx::query_as(query).fetch_all(pool).await?
        });
        rows.iter()
            .map(|(id, body)| parse(table, *id, body))
            .collect()
    }

    /// Writes rows down and extends the lease, all or nothing, and only while it is held.
    ///
    /// # Errors
    /// [`CommitError`]; nothing is written then, or all of it where the connection broke at the
    /// very end: writing it again is right in any case.
    pub async fn commit(
        &self,
        lease: &Lease,
        valid: Duration,
        rows: &[Row],
        events_max: usize,
    ) -> Result<(), CommitError> {
        let now = self.now_ms().await.map_err(CommitError::Store)?;
        let batch = Batch::of(rows);
        either!(self, pool => {
            let mut all = pool.begin().await?;
            let held = "UPDATE fleet_placer SET until_ms = $1 WHERE id = 1 AND term = $2 AND holder = $3";
            let held = sqlx::query(held)
                .bind(now + millis(valid))
                .bind(i64::from(lease.term))
                .bind(&lease.holder)
                .execute(&mut *all)
                .await?;
            if held.rows_affected() != 1 {
                return Err(CommitError::Fenced);
            }
            for (table, changes) in &batch.tables {
                let gone: Vec<i64> = changes.iter().filter(|(_, body)| body.is_none()).map(|(id, _)| *id).collect();
                for ids in gone.chunks(ROWS_AT_ONCE) {
                    let mut delete = QueryBuilder::new("DELETE FROM ");
                    delete.push(*table).push(" WHERE id IN (");
                    let mut list = delete.separated(", ");
                    for id in ids {
                        list.push_bind(*id);
                    }
                    delete.push(")");
                    delete.build().execute(&mut *all).await?;
                }
                let put: Vec<(i64, &String)> = changes.iter().filter_map(|(id, body)| Some((*id, body.as_ref()?))).collect();
                for rows in put.chunks(ROWS_AT_ONCE) {
                    let mut insert = QueryBuilder::new("INSERT INTO ");
                    insert.push(*table).push(" (id, body) ");
                    insert.push_values(rows, |mut row, (id, body)| {
                        row.push_bind(*id).push_bind(body.as_str());
                    });
                    insert.push(" ON CONFLICT (id) DO UPDATE SET body = excluded.body");
                    insert.build().execute(&mut *all).await?;
                }
            }
            if let Some(last) = batch.last_event {
                let oldest = last.saturating_sub(i64::try_from(events_max).unwrap_or(i64::MAX));
                sqlx::query("DELETE FROM fleet_events WHERE id <= $1").bind(oldest).execute(&mut *all).await?;
            }
            all.commit().await?;
        });
        Ok(())
    }

    /// Closes every connection.
    pub async fn close(&self) {
        either!(self, pool => pool.close().await);
    }
}

/// The only row of its table.
const TURNS_ROW: u64 = 1;

/// Rows by table; the last change of each counts. `None`: it is deleted.
#[derive(Default)]
struct Batch {
    tables: BTreeMap<&'static str, BTreeMap<i64, Option<String>>>,
    last_event: Option<i64>,
}

impl Batch {
    fn of(rows: &[Row]) -> Self {
        let mut batch = Self::default();
        for row in rows {
            match row {
                Row::Host(host) => batch.put("fleet_hosts", host.id, host),
                Row::HostGone(id) => batch.delete("fleet_hosts", *id),
                Row::Vm(vm) => batch.put("fleet_vms", vm.id, vm),
                Row::VmGone(id) => {
                    batch.delete("fleet_vms", *id);
                    batch.delete("fleet_placements", *id);
                }
                Row::Appliance(appliance) => batch.put("fleet_appliances", appliance.id, appliance),
                Row::ApplianceGone(id) => batch.delete("fleet_appliances", *id),
                Row::Placement(list) => {
                    batch.put::<StoredPlacement>("fleet_placements", list.vm, list)
                }
                Row::TurnsOut(seconds) => batch.put("fleet_turns", TURNS_ROW, seconds),
                Row::Event(event) => {
                    batch.last_event = Some(signed(event.id));
                    batch.put("fleet_events", event.id, event);
                }
            }
        }
        batch
    }

    fn put<T: Serialize>(&mut self, table: &'static str, id: u64, body: &T) {
        // Plain data: this cannot fail.
        let body = serde_json::to_string(body).unwrap_or_default();
        self.tables
            .entry(table)
            .or_default()
            .insert(signed(id), Some(body));
    }

    fn delete(&mut self, table: &'static str, id: u64) {
        self.tables
            .entry(table)
            .or_default()
            .insert(signed(id), None);
    }
}

/// Ids count from 1.
fn signed(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn parse<T: DeserializeOwned>(table: &'static str, id: i64, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|source| StoreError::Row { table, id, source })
}
