//! The fleet's sightings, one row each.

use std::collections::BTreeMap;

use model::{Digest, GuestId};
use sqlx::postgres::PgConnection;

use super::{Postgres, failed};
use crate::sightings::{HOLDERS_MAX, Holder, Holders, Seen, Sighting, Sightings};
use crate::store::{StoreError, StoreFuture, check_batch};

impl Sightings for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn record<'a>(&'a self, sightings: &'a [Sighting]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_batch(sightings.len())?;
            if sightings.is_empty() {
                return Ok(());
            }
            // As for verdicts: one row for each, in one order for everybody.
            let mut rows: BTreeMap<([u8; 32], [u8; 16]), Seen> = BTreeMap::new();
            for Sighting {
                digest,
                guest,
                seen,
            } in sightings
            {
                rows.entry((digest.0, guest.0))
                    .and_modify(|known| *known = known.and(*seen))
                    .or_insert(*seen);
            }
            let digests: Vec<&[u8]> = rows.keys().map(|(digest, _)| digest.as_slice()).collect();
            let guests: Vec<&[u8]> = rows.keys().map(|(_, guest)| guest.as_slice()).collect();
            let first: Vec<i64> = rows.values().map(|seen| seen.first_s.into()).collect();
            let last: Vec<i64> = rows.values().map(|seen| seen.last_s.into()).collect();
            sqlx::query(
                "INSERT INTO lazaret_sightings AS known (digest, guest, first_s, last_s)
                 SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[])
                 ON CONFLICT (digest, guest) DO UPDATE
                 SET first_s = least(known.first_s, excluded.first_s),
                     last_s = greatest(known.last_s, excluded.last_s)
                 WHERE known.first_s > excluded.first_s OR known.last_s < excluded.last_s",
            )
            .bind(digests)
            .bind(guests)
            .bind(first)
            .bind(last)
            .execute(self.ready().await?)
            .await
            .map_err(failed("record sightings"))?;
            Ok(())
        })
    }

    fn holders(
        &self,
        digest: Digest,
        after: Option<GuestId>,
        limit: usize,
    ) -> StoreFuture<'_, Holders> {
        Box::pin(async move {
            let limit = limit.min(HOLDERS_MAX);
            let rows: Vec<(Vec<u8>, i64, i64)> = sqlx::query_as(
                "SELECT guest, first_s, last_s FROM lazaret_sightings
                 WHERE digest = $1 AND guest > $2 ORDER BY guest LIMIT $3",
            )
            .bind(digest.0.to_vec())
            .bind(after.map_or_else(Vec::new, |guest| guest.0.to_vec()))
            .bind(limit as i64 + 1)
            .fetch_all(self.ready().await?)
            .await
            .map_err(failed("list holders"))?;
            let holders = rows.into_iter().filter_map(|(guest, first, last)| {
                Some(Holder {
                    guest: GuestId::from_slice(&guest)?,
                    seen: seen(first, last),
                })
            });
            Ok(Holders::page(holders.collect(), limit))
        })
    }

    fn page(&self, after: (Digest, GuestId), limit: usize) -> StoreFuture<'_, Vec<Sighting>> {
        Box::pin(async move {
            let rows: Vec<(Vec<u8>, Vec<u8>, i64, i64)> = sqlx::query_as(
                "SELECT digest, guest, first_s, last_s FROM lazaret_sightings
                 WHERE (digest, guest) > ($1, $2) ORDER BY digest, guest LIMIT $3",
            )
            .bind(after.0.0.to_vec())
            .bind(after.1.0.to_vec())
            .bind(limit.min(HOLDERS_MAX) as i64)
            .fetch_all(self.ready().await?)
            .await
            .map_err(failed("list sightings"))?;
            let sightings = rows.into_iter().filter_map(|(digest, guest, first, last)| {
                Some(Sighting {
                    digest: Digest::from_slice(&digest)?,
                    guest: GuestId::from_slice(&guest)?,
                    seen: seen(first, last),
                })
            });
            Ok(sightings.collect())
        })
    }

    fn trim(&self) -> StoreFuture<'_, ()> {
        let (rows_max, keep_s) = (self.sightings_max, self.sightings_keep_s);
        Box::pin(
            self.trim_alone(move |connection| {
                Box::pin(trim_sightings(connection, rows_max, keep_s))
            }),
        )
    }
}

fn seen(first: i64, last: i64) -> Seen {
    let seconds = |s: i64| u32::try_from(s.max(0)).unwrap_or(u32::MAX);
    Seen {
        first_s: seconds(first),
        last_s: seconds(last),
    }
}

/// The whole table is read, so that recording needs no second index: nobody waits for it.
async fn trim_sightings(
    connection: &mut PgConnection,
    rows_max: i64,
    keep_s: i64,
) -> Result<(), StoreError> {
    let trimming = "trim sightings";
    let by_age = "DELETE FROM lazaret_sightings
         WHERE last_s < extract(epoch FROM now())::bigint - $1";
    sqlx::query(by_age)
        .bind(keep_s)
        .execute(&mut *connection)
        .await
        .map_err(failed(trimming))?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM lazaret_sightings")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(trimming))?;
    if count <= rows_max {
        return Ok(());
    }
    // A little more than needed, so that the next is not soon.
    let beyond = count - rows_max + rows_max / 20;
    let oldest = "DELETE FROM lazaret_sightings WHERE ctid IN
         (SELECT ctid FROM lazaret_sightings ORDER BY last_s LIMIT $1)";
    sqlx::query(oldest)
        .bind(beyond)
        .execute(connection)
        .await
        .map_err(failed(trimming))?;
    Ok(())
}
