//! Whatever a store does, its guard makes no verdict of it and waits for nothing.

use super::*;
use daemon::metrics::Registry;
use verdict_store::{BreakerSettings, Guarded, StoreFuture, StoreMetrics};

struct Rig {
    guarded: Arc<Guarded>,
    store: Arc<dyn VerdictStore>,
    registry: Registry,
}

fn rig(store: Arc<dyn VerdictStore>, timeout: Duration) -> Rig {
    let registry = Registry::new();
    let breaker = BreakerSettings {
        failures_max: 2,
        rest_min: Duration::from_millis(50),
        rest_max: Duration::from_millis(100),
    };
    let metrics = StoreMetrics::new(&registry);
    Rig {
        guarded: Arc::new(Guarded::new(
            store.clone(),
            ring(),
            timeout,
            breaker,
            metrics,
        )),
        store,
        registry,
    }
}

/// Long enough for a busy machine.
const PATIENT: Duration = Duration::from_secs(30);

impl Rig {
    fn count(&self, what: &str) -> bool {
        let text = self.registry.render();
        text.lines().any(|line| line == what)
    }

    fn gets(&self, result: &str, n: u32) -> bool {
        let name = self.store.name();
        self.count(&format!(
            r#"lazaret_verdict_store_gets_total{{store="{name}",result="{result}"}} {n}"#
        ))
    }

    fn puts(&self, result: &str, n: u32) -> bool {
        let name = self.store.name();
        self.count(&format!(
            r#"lazaret_verdict_store_puts_total{{store="{name}",result="{result}"}} {n}"#
        ))
    }

    fn resting(&self, resting: u32) -> bool {
        let name = self.store.name();
        self.count(&format!(
            r#"lazaret_verdict_store_resting{{store="{name}"}} {resting}"#
        ))
    }

    /// Until a call succeeds again.
    async fn recovers(&self, key: &CacheKey) {
        let over = std::time::Instant::now() + PATIENT;
        while !self.resting(0) {
            assert!(
                std::time::Instant::now() < over,
                "the store does not come back"
            );
            self.guarded.get(key).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_found_by_another_appliance() {
    let server = testbed::Postgres::start().unwrap();
    let one = rig(open(&server.url()), PATIENT);
    let other = rig(open(&server.url()), PATIENT);
    for (n, outcome) in [Outcome::Clean, malicious()].into_iter().enumerate() {
        let key = key(n as u32);
        let entry = entry(&key, outcome);
        assert_eq!(other.guarded.get(&key).await, None);
        one.guarded.put(&key, &entry).await;
        assert_eq!(other.guarded.get(&key).await, Some(entry));
    }
    assert!(other.gets("hit", 2) && other.gets("miss", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_soon_is_found_and_the_last_of_a_key_stays() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(embedded(&dir), PATIENT);
    let keys: Vec<_> = (0..100).map(key).collect();
    for outcome in [Outcome::Clean, malicious()] {
        for key in &keys {
            rig.guarded.put_soon(key, &entry(key, outcome.clone()));
        }
    }
    rig.guarded.flush().await;
    assert!(rig.puts("kept", 200));
    for key in &keys {
        let kept = rig.guarded.get(key).await;
        assert_eq!(kept, Some(entry(key, malicious())));
    }
}

/// Each put waits until it is let go.
#[derive(Debug)]
struct Slow {
    calls: std::sync::atomic::AtomicUsize,
    go: tokio::sync::Semaphore,
}

impl VerdictStore for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> StoreFuture<'a, Vec<Option<Sealed>>> {
        Box::pin(std::future::ready(Ok(vec![None; keys.len()])))
    }

    fn put<'a>(&'a self, _: &'a [(CacheKey, Sealed)]) -> StoreFuture<'a, ()> {
        self.calls
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::pin(async {
            let _go = self.go.acquire().await;
            Ok(())
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_is_given_so_much_and_no_more() {
    const MAX: u32 = 16 << 10;
    let slow = Arc::new(Slow {
        calls: 0.into(),
        go: tokio::sync::Semaphore::new(0),
    });
    let rig = rig(slow.clone(), PATIENT);
    for n in 0..MAX + 10 {
        let key = key(n);
        rig.guarded.put_soon(&key, &entry(&key, Outcome::Clean));
    }
    assert!(rig.puts("overloaded", 10));
    slow.go.add_permits(1);
    rig.guarded.flush().await;
    assert!(rig.puts("kept", MAX));
    let calls = slow.calls.load(std::sync::atomic::Ordering::Relaxed);
    assert!(calls < MAX as usize / 10, "{calls} calls");
    rig.guarded
        .put_soon(&key(0), &entry(&key(0), Outcome::Clean));
    assert!(rig.puts("overloaded", 10), "there is room again");
}

/// Poisoned: another key's entry, a changed one, one of a thief's key, rubbish.
async fn poison_is_a_miss(store: Arc<dyn VerdictStore>) {
    let rig = rig(store, PATIENT);
    let (evil, good) = (key(1), key(2));
    let good_entry = ring().seal(&good, &entry(&good, Outcome::Clean)).unwrap();
    let mut changed = ring().seal(&evil, &entry(&evil, malicious())).unwrap();
    *changed.0.last_mut().unwrap() ^= 1;
    let thief = Keyring::new(FleetKey::new(&[8; 32]), None);
    let forged = thief.seal(&evil, &entry(&evil, Outcome::Clean)).unwrap();
    let poison = [good_entry, changed, forged, sealed(b""), sealed(&[1; 500])];
    for (n, poison) in poison.into_iter().enumerate() {
        rig.store.put(&[(evil, poison)]).await.unwrap();
        assert_eq!(rig.guarded.get(&evil).await, None);
        assert!(rig.gets("bad", n as u32 + 1));
    }
    let honest = entry(&evil, malicious());
    rig.guarded.put(&evil, &honest).await;
    assert_eq!(rig.guarded.get(&evil).await, Some(honest));
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_on_disk_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    poison_is_a_miss(embedded(&dir)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_in_postgres_is_a_miss() {
    let server = testbed::Postgres::start().unwrap();
    poison_is_a_miss(open(&server.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_in_redis_is_a_miss() {
    let server = testbed::Redis::start().unwrap();
    poison_is_a_miss(open(&server.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_down_is_left_alone_until_it_is_back() {
    let mut server = testbed::Redis::start().unwrap();
    let rig = rig(open(&server.url()), PATIENT);
    let key = key(1);
    rig.guarded.put(&key, &entry(&key, Outcome::Clean)).await;
    server.stop().unwrap();
    for _ in 0..2 {
        assert_eq!(rig.guarded.get(&key).await, None);
    }
    assert!(rig.gets("failed", 2) && rig.resting(1));
    server.restart().unwrap();
    rig.recovers(&key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_down_is_left_alone_until_it_is_back() {
    let mut server = testbed::Postgres::start().unwrap();
    let url = server.url();
    server.stop().unwrap();
    // Down at the start already: the tables are made when it comes.
    let rig = rig(open(&url), PATIENT);
    let key = key(1);
    for _ in 0..2 {
        assert_eq!(rig.guarded.get(&key).await, None);
    }
    assert!(rig.resting(1));
    server.restart().unwrap();
    rig.recovers(&key).await;
    let entry = entry(&key, Outcome::Clean);
    rig.guarded.put(&key, &entry).await;
    assert_eq!(rig.guarded.get(&key).await, Some(entry));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_not_waited_for() {
    let mut server = testbed::Postgres::start().unwrap();
    let store = open(&server.url());
    store.get(&[key(1)]).await.unwrap();
    let rig = rig(store, Duration::from_millis(20));
    let pids = server.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'lazaret'");
    let pids: Vec<u32> = pids
        .unwrap()
        .lines()
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert!(!pids.is_empty());
    server.process().freeze().unwrap();
    for pid in &pids {
        signal(*pid, "STOP");
    }
    for _ in 0..2 {
        assert_eq!(rig.guarded.get(&key(1)).await, None);
    }
    for pid in &pids {
        signal(*pid, "CONT");
    }
    server
        .process()
        .signal(rustix::process::Signal::CONT)
        .unwrap();
    assert!(rig.gets("late", 2) && rig.resting(1));
}

fn signal(pid: u32, name: &str) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let signal = match name {
        "STOP" => rustix::process::Signal::STOP,
        _ => rustix::process::Signal::CONT,
    };
    rustix::process::kill_process(pid, signal).unwrap();
}
