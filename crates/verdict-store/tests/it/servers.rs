//! What is particular to a server.

use super::*;
use verdict_store::StoreError;

#[tokio::test(flavor = "multi_thread")]
async fn many_appliances_lay_out_one_postgres() {
    let server = testbed::Postgres::start().unwrap();
    let starts = (0..12).map(|n| {
        let store = open(&server.url());
        tokio::spawn(async move { store.put(&[(key(n), sealed(b"x"))]).await })
    });
    for start in starts.collect::<Vec<_>>() {
        assert_eq!(start.await.unwrap(), Ok(()));
    }
    let rows =
        server.sql("SELECT count(*) FROM lazaret_layout; SELECT count(*) FROM lazaret_verdicts");
    assert_eq!(rows.unwrap(), "1\n12\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_use_the_tables_is_enough() {
    let server = testbed::Postgres::start().unwrap();
    let owner = open(&server.url());
    owner.put(&[(key(1), sealed(b"x"))]).await.unwrap();
    server
        .sql(
            "CREATE ROLE guest LOGIN; GRANT SELECT ON lazaret_layout TO guest;
              GRANT SELECT, INSERT, UPDATE, DELETE ON lazaret_verdicts TO guest",
        )
        .unwrap();
    let guest = open(&server.url().replace("lazaret@", "guest@"));
    guest.put(&[(key(2), sealed(b"y"))]).await.unwrap();
    let found = guest.get(&[key(1), key(2)]).await.unwrap();
    assert_eq!(found, [Some(sealed(b"x")), Some(sealed(b"y"))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_a_newer_version_are_left_alone() {
    let server = testbed::Postgres::start().unwrap();
    let store = open(&server.url());
    store.put(&[(key(1), sealed(b"x"))]).await.unwrap();
    server.sql("UPDATE lazaret_layout SET version = 7").unwrap();
    let error = open(&server.url()).get(&[key(1)]).await.unwrap_err();
    assert_eq!(error, StoreError::Newer { found: 7, known: 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_bounded_and_forgets_the_oldest() {
    let server = testbed::Postgres::start().unwrap();
    let bounded = SharedSettings {
        entries_max: 100,
        ..settings()
    };
    let store = open_with(&server.url(), &bounded);
    let entries: Vec<_> = (0..250).map(|n| (key(n), sealed(b"x"))).collect();
    store.put(&entries[..150]).await.unwrap();
    server
        .sql("UPDATE lazaret_verdicts SET kept_at = kept_at - 60")
        .unwrap();
    store.put(&entries[150..]).await.unwrap();
    store.trim().await.unwrap();
    let keys: Vec<_> = entries.iter().map(|(key, _)| *key).collect();
    let found = store.get(&keys).await.unwrap();
    assert!(found[..150].iter().all(Option::is_none));
    assert!(found[150..].iter().all(Option::is_some));
    // By age, too.
    server
        .sql("UPDATE lazaret_verdicts SET kept_at = kept_at - 4000")
        .unwrap();
    store.put(&entries[..1]).await.unwrap();
    store.trim().await.unwrap();
    assert_eq!(
        server.sql("SELECT count(*) FROM lazaret_verdicts").unwrap(),
        "1\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_in_redis_go_by_themselves() {
    let server = testbed::Redis::start().unwrap();
    for (keep, expected) in [
        (Duration::ZERO, 0..=1000),
        (Duration::from_secs(3600), 3_500_000..=3_600_000),
    ] {
        assert!(server.command("FLUSHALL").unwrap().starts_with("+OK"));
        let store = open_with(&server.url(), &SharedSettings { keep, ..settings() });
        store.put(&[(key(1), sealed(b"x"))]).await.unwrap();
        let left = server
            .command("EVAL \"return redis.call('PTTL', redis.call('KEYS', '*')[1] or '')\" 0");
        // -2: gone already; -1 would be for ever.
        let left: i64 = left.unwrap().trim_start_matches(':').parse().unwrap();
        assert!(left == -2 || expected.contains(&left), "{left}");
    }
}
