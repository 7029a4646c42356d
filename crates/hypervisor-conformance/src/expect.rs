//! Reads events until the one that is waited for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use daemon::metrics::{Counter, Registry};
use hypervisor::{Change, Connect, Pace, RateLimit, WatchMetrics, WatchOptions, Watcher, watch};

use crate::mirror::Mirror;

/// No event is waited for longer: the test hangs otherwise. Not a promise of speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A watched connector, all that it told, and what follows from it.
pub struct Expect {
    watcher: Watcher,
    /// Every change until now.
    pub told: Vec<Change>,
    /// The inventory by that.
    pub mirror: Mirror,
}

/// A pace with a counter of its own.
#[must_use]
pub fn counted_pace(limit: RateLimit) -> Arc<Pace> {
    Arc::new(Pace::new(limit, Counter::default()))
}

impl Expect {
    /// Watches this connector; retries are quick.
    #[must_use]
    pub fn watch(connector: Arc<dyn Connect>) -> Self {
        let options = WatchOptions {
            retry_first: Duration::from_millis(50),
            retry_max: Duration::from_millis(500),
            ..WatchOptions::default()
        };
        let metrics = WatchMetrics::new(&Registry::new());
        Self {
            watcher: watch("under-test", connector, options, metrics),
            told: Vec::new(),
            mirror: Mirror::default(),
        }
    }

    /// Reads one event.
    ///
    /// # Errors
    /// None came in a minute.
    pub async fn read(&mut self) -> Result<Change> {
        let event = tokio::time::timeout(PATIENCE, self.watcher.next()).await;
        let event = event.ok().flatten().context("no event in a minute")?;
        self.mirror.take(&event.change);
        self.told.push(event.change.clone());
        Ok(event.change)
    }

    /// Reads on until an event is the one that is waited for; gives all that came, it included.
    ///
    /// # Errors
    /// It did not come.
    pub async fn until(
        &mut self,
        what: &str,
        mut is_it: impl FnMut(&Change, &Mirror) -> bool,
    ) -> Result<Vec<Change>> {
        let start = self.told.len();
        loop {
            let change = self.read().await.with_context(|| {
                let since = &self.told[start..];
                format!("{what} was waited for; since then came: {since:#?}")
            })?;
            if is_it(&change, &self.mirror) {
                return Ok(self.told[start..].to_vec());
            }
            if self.told.len() > 10_000 {
                bail!("{what} was waited for, and other events do not end");
            }
        }
    }

    /// Reads until the inventory by all events fulfils this; at once where it does already.
    ///
    /// # Errors
    /// It did not come to that.
    pub async fn state(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&Mirror) -> bool,
    ) -> Result<Vec<Change>> {
        if holds(&self.mirror) {
            return Ok(Vec::new());
        }
        self.until(what, |_, mirror| holds(mirror)).await
    }
}
