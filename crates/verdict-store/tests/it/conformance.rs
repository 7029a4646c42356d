//! What every store promises.

use super::*;
use verdict_store::{BATCH_MAX, StoreError, VALUE_BYTES_MAX};

#[tokio::test(flavor = "multi_thread")]
async fn embedded_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(embedded(&dir)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    let server = testbed::Postgres::start().unwrap();
    conforms(open(&server.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_conforms() {
    let server = testbed::Redis::start().unwrap();
    conforms(open(&server.url())).await;
}

async fn conforms(store: Arc<dyn VerdictStore>) {
    nothing_is_asked_for_nothing(&*store).await;
    answers_come_in_order(&*store).await;
    the_last_of_equal_keys_stays(&*store).await;
    each_part_of_a_key_counts(&*store).await;
    bytes_are_bytes(&*store).await;
    batches_are_bounded(&*store).await;
    many_write_at_once(store).await;
}

async fn get(store: &dyn VerdictStore, key: CacheKey) -> Option<Sealed> {
    store.get(&[key]).await.unwrap().remove(0)
}

async fn nothing_is_asked_for_nothing(store: &dyn VerdictStore) {
    assert_eq!(store.get(&[]).await, Ok(Vec::new()));
    assert_eq!(store.put(&[]).await, Ok(()));
    assert_eq!(store.trim().await, Ok(()));
}

async fn answers_come_in_order(store: &dyn VerdictStore) {
    let (one, two, three) = (key(1), key(2), key(3));
    let entries = [(three, sealed(b"three")), (one, sealed(b"one"))];
    store.put(&entries).await.unwrap();
    let found = store.get(&[one, two, three, one]).await.unwrap();
    let expected = [Some("one"), None, Some("three"), Some("one")];
    assert_eq!(found, expected.map(|it| it.map(|it| sealed(it.as_bytes()))));
}

async fn the_last_of_equal_keys_stays(store: &dyn VerdictStore) {
    let key = key(10);
    store.put(&[(key, sealed(b"old"))]).await.unwrap();
    let twice = [(key, sealed(b"first")), (key, sealed(b"last"))];
    store.put(&twice).await.unwrap();
    assert_eq!(get(store, key).await, Some(sealed(b"last")));
}

async fn each_part_of_a_key_counts(store: &dyn VerdictStore) {
    let base = key(20);
    let context = scan_core::Context {
        path: b"/x".to_vec(),
        ..scan_core::Context::default()
    };
    let others = [
        CacheKey {
            digest: Digest::of(b"other"),
            ..base
        },
        CacheKey {
            context: ContextClass::of(&context),
            ..base
        },
        CacheKey {
            generation: Generation([2; 16]),
            ..base
        },
        CacheKey {
            settings: Settings::of(&[2]),
            ..base
        },
    ];
    store.put(&[(base, sealed(b"base"))]).await.unwrap();
    assert_eq!(store.get(&others).await.unwrap(), vec![None; others.len()]);
    let all: Vec<_> = others.iter().enumerate().collect();
    let all: Vec<_> = all
        .iter()
        .map(|(n, key)| (**key, sealed(&[*n as u8])))
        .collect();
    store.put(&all).await.unwrap();
    for (key, value) in all {
        assert_eq!(get(store, key).await, Some(value));
    }
    assert_eq!(get(store, base).await, Some(sealed(b"base")));
}

async fn bytes_are_bytes(store: &dyn VerdictStore) {
    let every: Vec<u8> = (0..=255).collect();
    let longest = vec![0; VALUE_BYTES_MAX];
    for (n, bytes) in [&every[..], b"\r\n$5\r\n'; --\\", b"", &longest]
        .iter()
        .enumerate()
    {
        let key = key(30 + n as u32);
        store.put(&[(key, sealed(bytes))]).await.unwrap();
        assert_eq!(get(store, key).await, Some(sealed(bytes)));
    }
}

async fn batches_are_bounded(store: &dyn VerdictStore) {
    let keys: Vec<CacheKey> = (1000..1000 + BATCH_MAX as u32).map(key).collect();
    let entries: Vec<_> = keys
        .iter()
        .map(|key| (*key, sealed(&key.digest.0)))
        .collect();
    store.put(&entries).await.unwrap();
    let found = store.get(&keys).await.unwrap();
    assert!(
        found
            .into_iter()
            .eq(entries.iter().map(|(_, it)| Some(it.clone())))
    );
    let too_many = StoreError::TooMany(BATCH_MAX + 1);
    let keys = [&keys[..], &[key(1)]].concat();
    assert_eq!(store.get(&keys).await, Err(too_many.clone()));
    let entries = [&entries[..], &[(key(1), sealed(b""))]].concat();
    assert_eq!(store.put(&entries).await, Err(too_many));
}

/// Overlapping batches in opposite orders: nobody waits for another for ever, all is kept.
async fn many_write_at_once(store: Arc<dyn VerdictStore>) {
    let writers = (0..8u32).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut entries: Vec<_> = (0..300).map(|n| (key(50_000 + n), sealed(b"x"))).collect();
            if writer % 2 == 0 {
                entries.reverse();
            }
            for _ in 0..5 {
                store.put(&entries).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let keys: Vec<_> = (0..300).map(|n| key(50_000 + n)).collect();
    assert_eq!(
        store.get(&keys).await.unwrap(),
        vec![Some(sealed(b"x")); 300]
    );
}
