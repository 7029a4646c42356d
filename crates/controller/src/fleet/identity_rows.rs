//! Rows of the fleet's identity: members, tokens, pools, who waits. Every controller of a database
//! may write them; each change has a number, and changes are made one after the other.

use std::time::Duration;

use sqlx::QueryBuilder;

use super::store::{ROWS_AT_ONCE, Store, StoreError, either};
use crate::members::Put;

/// A deleted row is remembered for so long, so that every controller hears of it.
const TOMBSTONE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Whoever has not looked for so long reads everything anew.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(12 * 3600);

/// A row, as of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentityRow {
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) change: i64,
    /// `None`: it is deleted.
    pub(crate) body: Option<String>,
}

type RawRow = (String, String, i64, Option<String>);

const NEWS: &str =
    "SELECT kind, id, change, body FROM fleet_identity WHERE change > $1 ORDER BY change";

fn rows_of(raw: Vec<RawRow>) -> Vec<IdentityRow> {
    let rows = raw.into_iter().map(|(kind, id, change, body)| IdentityRow {
        kind,
        id,
        change,
        body,
    });
    rows.collect()
}

impl Store {
    /// The number of the last change.
    pub(crate) async fn identity_last(&self) -> Result<i64, StoreError> {
        let query = "SELECT last FROM fleet_changes WHERE id = 1";
        let (last,): (i64,) = either!(self, pool => {
            sqlx::query_as(query).fetch_one(pool).await?
        });
        Ok(last)
    }

    /// Rows that are newer than a change.
    pub(crate) async fn identity_since(&self, change: i64) -> Result<Vec<IdentityRow>, StoreError> {
        let rows: Vec<RawRow> = either!(self, pool => {
            sqlx::query_as(NEWS).bind(change).fetch_all(pool).await?
        });
        Ok(rows_of(rows))
    }

    /// One change, all of it or nothing, after every other one: `decide` is given what is newer
    /// than `seen` and says what to write. What was written comes back.
    ///
    /// # Errors
    /// [`StoreError`] (nothing is written then, or all of it where the connection broke at the very
    /// end), or what `decide` refused.
    pub(crate) async fn change_identity<T, E: From<StoreError>>(
        &self,
        seen: i64,
        now_s: i64,
        decide: impl FnOnce(Vec<IdentityRow>) -> Result<(T, Vec<Put>), E> + Send,
    ) -> Result<(T, Vec<IdentityRow>), E> {
        let database = |error: sqlx::Error| E::from(StoreError::Database(error));
        // The row's lock is held until the end: there is one writer at a time, and whoever sees a
        // change sees all before it.
        let next = "UPDATE fleet_changes SET last = last + 1 WHERE id = 1 RETURNING last";
        let written = either!(self, pool => {
            let mut all = pool.begin().await.map_err(database)?;
            let (change,): (i64,) = sqlx::query_as(next).fetch_one(&mut *all).await.map_err(database)?;
            let news: Vec<RawRow> = if change - 1 > seen {
                sqlx::query_as(NEWS).bind(seen).fetch_all(&mut *all).await.map_err(database)?
            } else {
                Vec::new()
            };
            // Dropped without a commit, it is rolled back.
            let (answer, puts) = decide(rows_of(news))?;
            if puts.is_empty() {
                all.rollback().await.map_err(database)?;
                return Ok((answer, Vec::new()));
            }
            for some in puts.chunks(ROWS_AT_ONCE) {
                let mut insert = QueryBuilder::new("INSERT INTO fleet_identity (kind, id, change, at_s, body) ");
                insert.push_values(some, |mut row, put| {
                    row.push_bind(put.kind).push_bind(put.id.as_str()).push_bind(change)
                        .push_bind(now_s).push_bind(put.body.as_deref());
                });
                insert.push(" ON CONFLICT (kind, id) DO UPDATE SET change = excluded.change, at_s = excluded.at_s, body = excluded.body");
                insert.build().execute(&mut *all).await.map_err(database)?;
            }
            all.commit().await.map_err(database)?;
            let rows = puts.into_iter().map(|put| IdentityRow {
                kind: put.kind.to_owned(),
                id: put.id,
                change,
                body: put.body,
            });
            (answer, rows.collect())
        });
        Ok(written)
    }

    /// Forgets what was deleted long ago.
    pub(crate) async fn forget_deleted(&self, now_s: i64) -> Result<(), StoreError> {
        let life = i64::try_from(TOMBSTONE_LIFE.as_secs()).unwrap_or(i64::MAX);
        let query = "DELETE FROM fleet_identity WHERE body IS NULL AND at_s < $1";
        either!(self, pool => {
            sqlx::query(query).bind(now_s.saturating_sub(life)).execute(pool).await?;
        });
        Ok(())
    }

    /// The CA whose members the database has; this one from now on where it has none.
    ///
    /// # Errors
    /// [`StoreError::OtherCa`].
    pub(crate) async fn belongs_to(&self, ca: &str) -> Result<(), StoreError> {
        let query = "INSERT INTO fleet_meta VALUES ('ca', $1) ON CONFLICT DO NOTHING";
        either!(self, pool => {
            sqlx::query(query).bind(ca).execute(pool).await?;
        });
        match self.ca().await? {
            Some(its) if its == ca => Ok(()),
            its => Err(StoreError::OtherCa {
                its: its.unwrap_or_default(),
                ours: ca.to_owned(),
            }),
        }
    }

    /// Fingerprint of the CA whose members the database has; `None`: it has none yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ca(&self) -> Result<Option<String>, StoreError> {
        self.meta("ca").await
    }
}
