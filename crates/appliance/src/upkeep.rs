//! What an appliance does again and again.

use std::sync::Arc;
use std::time::Duration;

use daemon::notify::Progress;
use tokio::sync::Mutex as AsyncMutex;

use crate::appliance::put_in_force;
use crate::config::Config;
use crate::metrics::gauge_of;
use crate::shared::Shared;

/// How often gauges are set and engines are asked for their generation.
const TICK: Duration = Duration::from_secs(1);
/// How often verdict stores are brought back within their bounds.
const TRIM_EVERY: Duration = Duration::from_secs(300);

/// Sets gauges, forgets idle guests, notices engines whose rules changed by themselves.
pub(crate) async fn tick(
    shared: Arc<Shared>,
    config: Arc<AsyncMutex<Config>>,
    progress: Arc<Progress>,
) {
    let mut every = tokio::time::interval(TICK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        shared.budget.lock().forget_idle(shared.now());
        shared.chunks.forget_idle();
        // A reload under way brings its own engines in, and must not be overwritten by an older
        // view.
        if let Ok(_no_reload) = config.try_lock() {
            follow_engines(&shared);
            shared.follow_filter().await;
        }
        let lists = shared.clone();
        let reloaded = tokio::task::spawn_blocking(move || lists.reload_allowlists());
        if let Err(error) = reloaded.await {
            tracing::error!(%error, "allowlists were not looked at");
        }
        set_gauges(&shared);
        progress.beat();
    }
}

/// Brings verdict stores back within their bounds.
pub(crate) async fn trim_stores(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(TRIM_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        shared.verdicts.trim().await;
        shared.sightings.trim().await;
    }
}

/// Has what was seen recorded.
pub(crate) async fn record_sightings(shared: Arc<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        shared.sightings.flush().await;
    }
}

fn follow_engines(shared: &Shared) {
    let facts = shared.engines().facts();
    let force = shared.force();
    let followed = force.with_engines(&facts);
    if followed.generation != force.generation || followed.policy != force.policy {
        put_in_force(shared, Arc::new(followed));
    }
}

fn set_gauges(shared: &Shared) {
    let metrics = &shared.metrics;
    let (waiting, running) = shared.scans.depth();
    for (name, waiting) in ["open", "close_write", "on_demand"]
        .into_iter()
        .zip(waiting)
    {
        metrics
            .scans
            .queue_waiting
            .with([name])
            .set(gauge_of(waiting));
    }
    metrics.scans.running.set(gauge_of(running));
    let (memory, spool) = shared.budget.lock().bytes_held();
    metrics.scans.memory_bytes.set(gauge_of(memory));
    metrics.scans.spool_bytes.set(gauge_of(spool));
    let (bytes, guests) = shared.chunks.totals();
    metrics.guests.chunk_store_bytes.set(gauge_of(bytes));
    metrics.guests.chunk_store_guests.set(gauge_of(guests));
    let store = shared.verdicts.stats();
    let tiers = [
        ("memory", store.memory_entries, store.memory_bytes),
        ("disk", store.disk_entries, store.disk_bytes),
    ];
    for (tier, entries, bytes) in tiers {
        metrics
            .kept
            .verdict_entries
            .with([tier])
            .set(gauge_of(entries));
        metrics.kept.verdict_bytes.with([tier]).set(gauge_of(bytes));
    }
    let retained = shared.retained.bytes();
    metrics.kept.retained_bytes.set(gauge_of(retained));
    shared.set_allowlist_gauges();
    let lost = shared.detections.lines_lost();
    metrics.kept.detection_lines_lost.set(gauge_of(lost));
    for engine in shared.engines().status() {
        let workers = gauge_of(engine.workers);
        metrics
            .scans
            .engine_workers
            .with([&engine.name])
            .set(workers);
        let killed = gauge_of(engine.killed_total);
        metrics.scans.engine_killed.with([&engine.name]).set(killed);
    }
}
