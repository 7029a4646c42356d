//! What every store of sightings promises.

use super::*;
use model::GuestId;
use verdict_store::{BATCH_MAX, EmbeddedSightings, Holder, Seen, Sighting, Sightings, StoreError};

fn guest(n: u128) -> GuestId {
    GuestId(n.to_be_bytes())
}

fn content(n: u32) -> Digest {
    Digest::of(&n.to_be_bytes())
}

fn seen(first_s: u32, last_s: u32) -> Seen {
    Seen { first_s, last_s }
}

fn sighting(what: u32, who: u128, at: u32) -> Sighting {
    Sighting {
        digest: content(what),
        guest: guest(who),
        seen: Seen::at(at),
    }
}

fn in_postgres(server: &testbed::Postgres, settings: &SharedSettings) -> Arc<dyn Sightings> {
    let address: Address = server.url().parse().unwrap();
    address.open(settings).unwrap().sightings.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&EmbeddedSightings::open(dir.path(), 64 << 20).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    let server = testbed::Postgres::start().unwrap();
    conforms(&*in_postgres(&server, &settings())).await;
}

async fn conforms(store: &dyn Sightings) {
    assert_eq!(store.record(&[]).await, Ok(()));
    assert_eq!(store.trim().await, Ok(()));
    let nobody = store.holders(content(1), None, 10).await.unwrap();
    assert_eq!((nobody.guests, nobody.more), (Vec::new(), false));

    // First and last time, in whatever order and company they come.
    let batches = [
        vec![sighting(1, 7, 100), sighting(1, 7, 90), sighting(2, 7, 5)],
        vec![sighting(1, 7, 95), sighting(1, 3, u32::MAX)],
        vec![
            sighting(1, 7, 300),
            sighting(1, u128::MAX, 1),
            sighting(1, 0, 2),
        ],
    ];
    for batch in batches {
        store.record(&batch).await.unwrap();
    }
    let found = store.holders(content(1), None, 10).await.unwrap();
    let expected = [
        (guest(0), seen(2, 2)),
        (guest(3), seen(u32::MAX, u32::MAX)),
        (guest(7), seen(90, 300)),
        (guest(u128::MAX), seen(1, 1)),
    ];
    let expected = expected.map(|(guest, seen)| Holder { guest, seen });
    assert_eq!(found.guests, expected);
    assert!(!found.more);

    // Page by page: each once.
    let mut after = None;
    let mut paged = Vec::new();
    loop {
        let page = store.holders(content(1), after, 1).await.unwrap();
        after = page.guests.last().map(|holder| holder.guest);
        paged.extend(page.guests);
        if !page.more {
            break;
        }
    }
    assert_eq!(paged, expected);

    all_in_order(store, &expected).await;

    let many: Vec<_> = (0..BATCH_MAX as u32)
        .map(|n| sighting(9, n.into(), n))
        .collect();
    store.record(&many).await.unwrap();
    let found = store.holders(content(9), None, usize::MAX).await.unwrap();
    assert_eq!((found.guests.len(), found.more), (BATCH_MAX, false));
    let too_many = [&many[..], &many[..1]].concat();
    assert_eq!(
        store.record(&too_many).await,
        Err(StoreError::TooMany(BATCH_MAX + 1))
    );
}

/// All sightings are gone through, page by page: those of content 1, and one of content 2.
async fn all_in_order(store: &dyn Sightings, of_first: &[Holder]) {
    let mut after = (Digest([0; 32]), guest(0));
    let mut all = Vec::new();
    loop {
        let page = store.page(after, 2).await.unwrap();
        let Some(last) = page.last() else {
            break;
        };
        after = (last.digest, last.guest);
        all.extend(page);
    }
    let of_first = of_first.iter().map(|it| Sighting {
        digest: content(1),
        guest: it.guest,
        seen: it.seen,
    });
    let mut expected: Vec<_> = of_first.chain([sighting(2, 7, 5)]).collect();
    expected.sort_by_key(|it| (it.digest.0, it.guest.0));
    assert_eq!(all, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_disk_they_outlive_a_restart_and_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    // Room for about 1170 of 56 bytes.
    let open = || EmbeddedSightings::open(dir.path(), 65_536).unwrap();
    let store = open();
    store.record(&[sighting(1, 1, 50)]).await.unwrap();
    drop(store);
    let store = open();
    for n in 0..2000 {
        // One is seen again and again; it stays, and so does the time when it was first seen.
        let batch = [sighting(1, 1, 100 + n), sighting(1000 + n, 2, n)];
        store.record(&batch).await.unwrap();
    }
    let first = store.holders(content(1), None, 10).await.unwrap();
    assert_eq!(first.guests[0].seen, seen(50, 2099));
    assert!(
        store
            .holders(content(1000), None, 10)
            .await
            .unwrap()
            .guests
            .is_empty()
    );
    assert_eq!(
        store
            .holders(content(2999), None, 10)
            .await
            .unwrap()
            .guests
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_postgres_they_are_bounded_by_age_and_number() {
    let server = testbed::Postgres::start().unwrap();
    let bounded = SharedSettings {
        sightings_max: 100,
        ..settings()
    };
    let store = in_postgres(&server, &bounded);
    let now = server
        .sql("SELECT extract(epoch FROM now())::bigint")
        .unwrap();
    let now: u32 = now.trim().parse().unwrap();
    let old = (0..50).map(|n| sighting(n, 1, now - 4000));
    let recent = (100..300).map(|n| sighting(n, 1, now - 300 + n));
    store
        .record(&old.chain(recent).collect::<Vec<_>>())
        .await
        .unwrap();
    store.trim().await.unwrap();
    let left = server
        .sql("SELECT count(*), min(last_s) FROM lazaret_sightings")
        .unwrap();
    // 95 stay, the latest.
    assert_eq!(left.trim(), format!("95|{}", now - 300 + 205));
}
