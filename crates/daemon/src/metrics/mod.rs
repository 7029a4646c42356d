//! Metrics in the Prometheus text format, and the loopback port that serves them.

mod serve;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::registry;

pub use serve::{ServeError, Server, serve, serve_fresh};

/// Counts up; rendered with the suffix `_total`.
pub type Counter = prometheus_client::metrics::counter::Counter<u64, AtomicU64>;
/// Goes up and down.
pub type Gauge = prometheus_client::metrics::gauge::Gauge<i64, AtomicI64>;
/// Observations in buckets.
pub type Histogram = prometheus_client::metrics::histogram::Histogram;

/// Bucket bounds for waits of 50 µs to 60 s, in seconds.
pub const LATENCY_BUCKETS_S: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0,
    2.0, 5.0, 20.0, 60.0,
];

/// Label sets of one family; what comes beyond counts under the label values `other`, so that a
/// guest cannot grow the memory of a daemon by inventing values.
pub const SERIES_MAX: usize = 256;

/// The metrics of a daemon. Cheap to clone; all clones are one registry.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    inner: Arc<RwLock<registry::Registry>>,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a counter. `name` without or with `_total`: it is rendered with one.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// Registers a gauge.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// Registers a histogram with these upper bounds, such as [`LATENCY_BUCKETS_S`].
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.register(name, help, Histogram::new(bounds.iter().copied()))
    }

    /// Registers a family of counters told apart by these labels.
    #[must_use]
    pub fn counters<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
    ) -> Counters<N> {
        self.family(name, help, labels, Counter::default)
    }

    /// Registers a family of gauges told apart by these labels.
    #[must_use]
    pub fn gauges<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
    ) -> Gauges<N> {
        self.family(name, help, labels, Gauge::default)
    }

    /// Registers a family of histograms with these upper bounds, told apart by these labels.
    #[must_use]
    pub fn histograms<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
        bounds: &[f64],
    ) -> Histograms<N> {
        self.family(name, help, labels, Buckets(bounds.into()))
    }

    /// Everything in the text format.
    #[must_use]
    pub fn render(&self) -> String {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &inner)
            .expect("writing to a String cannot fail");
        text
    }

    fn register<M>(&self, name: &str, help: &str, metric: M) -> M
    where
        M: registry::Metric + Clone,
    {
        let name = name.strip_suffix("_total").unwrap_or(name);
        // The encoder ends the sentence.
        let help = help.strip_suffix('.').unwrap_or(help);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.register(name, help, metric.clone());
        metric
    }

    fn family<M, C, const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
        constructor: C,
    ) -> Labelled<M, C, N>
    where
        M: Clone,
        C: MetricConstructor<M> + Clone,
        Family<Labels, M, C>: registry::Metric,
    {
        let family = Family::new_with_constructor(constructor);
        Labelled {
            labels,
            family: self.register(name, help, family),
            known: Arc::default(),
        }
    }
}

/// A family of counters.
pub type Counters<const N: usize> = Labelled<Counter, fn() -> Counter, N>;
/// A family of gauges.
pub type Gauges<const N: usize> = Labelled<Gauge, fn() -> Gauge, N>;
/// A family of histograms.
pub type Histograms<const N: usize> = Labelled<Histogram, Buckets, N>;

type Labels = Vec<(&'static str, String)>;

/// Makes the histograms of one family.
#[derive(Debug, Clone)]
pub struct Buckets(Arc<[f64]>);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Metrics told apart by the values of `N` labels. Cheap to clone. Looking one up takes a lock, and
/// allocates nothing once it is there.
#[derive(Debug)]
pub struct Labelled<M, C, const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels, M, C>,
    known: Arc<RwLock<Known<M, N>>>,
}

/// The metrics of a family by their values.
#[derive(Debug)]
struct Known<M, const N: usize> {
    /// Guests choose some of the values.
    hashing: RandomState,
    by_hash: BTreeMap<u64, Vec<([String; N], M)>>,
    count: usize,
}

impl<M, const N: usize> Default for Known<M, N> {
    fn default() -> Self {
        Self {
            hashing: RandomState::new(),
            by_hash: BTreeMap::new(),
            count: 0,
        }
    }
}

impl<M: Clone, const N: usize> Known<M, N> {
    fn find(&self, values: [&str; N]) -> Option<M> {
        let same = self.by_hash.get(&self.hashing.hash_one(values))?;
        let found = same.iter().find(|(known, _)| *known == values);
        found.map(|(_, metric)| metric.clone())
    }

    fn insert(&mut self, values: [String; N], metric: M) {
        let hash = self.hashing.hash_one(values.each_ref().map(String::as_str));
        self.by_hash.entry(hash).or_default().push((values, metric));
        self.count += 1;
    }
}

impl<M, C: Clone, const N: usize> Clone for Labelled<M, C, N> {
    fn clone(&self) -> Self {
        Self {
            labels: self.labels,
            family: self.family.clone(),
            known: self.known.clone(),
        }
    }
}

impl<M: Clone, C: MetricConstructor<M>, const N: usize> Labelled<M, C, N> {
    /// The metric for these values, in the order of the labels; made at its first use.
    #[must_use]
    pub fn with(&self, values: [&str; N]) -> M {
        let found = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.find(values)
        };
        found.unwrap_or_else(|| self.admit(values))
    }

    fn admit(&self, values: [&str; N]) -> M {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.find(values) {
            return found;
        }
        let is_full = known.count >= SERIES_MAX;
        let values = values.map(|value| match is_full {
            true => "other".to_owned(),
            false => value.to_owned(),
        });
        let labels = self.labels.into_iter().zip(values.clone()).collect();
        let metric = self.family.get_or_create_owned(&labels);
        if !is_full {
            known.insert(values, metric.clone());
        }
        metric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_each_kind() {
        let registry = Registry::new();
        registry.counter("opens_total", "Opens.").inc_by(3);
        registry.gauge("waiting", "Waiting.").set(-2);
        let wait = registry.histogram("wait_seconds", "Wait.", &[0.1, 1.0]);
        wait.observe(0.5);
        let by_reason = registry.counters("unscanned", "By reason.", ["reason"]);
        by_reason.with(["dead\"line\n"]).inc();
        let text = registry.render();
        for line in [
            "# HELP opens Opens.",
            "# TYPE opens counter",
            "opens_total 3",
            "waiting -2",
            "wait_seconds_bucket{le=\"0.1\"} 0",
            "wait_seconds_bucket{le=\"1.0\"} 1",
            "wait_seconds_count 1",
            "unscanned_total{reason=\"dead\\\"line\\n\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn label_values_are_bounded() {
        let registry = Registry::new();
        let guests = registry.gauges("sessions", "By guest.", ["guest"]);
        for guest in 0..SERIES_MAX + 10 {
            guests.with([&guest.to_string()]).inc();
        }
        guests.with(["0"]).inc();
        let text = registry.render();
        assert!(text.contains("sessions{guest=\"other\"} 10\n"), "{text}");
        assert!(text.contains("sessions{guest=\"0\"} 2\n"), "{text}");
    }
}
