//! The gate's filter: fetched, verified and kept; and what is reported by it in place of content.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chunks::AgainstError;
use link::Priority;
use literal_filter::{FilterError, Pack};
use model::FilterId;
use proto::v1::{self, envelope::Body};

use super::Gate;
use super::filters::{Fetched, Filters};
use crate::filter_file::{FilterFile, FilterFileError};
use crate::orders::chain;

/// What the gate looks for in place of the appliance.
pub(crate) struct Looking {
    filters: Mutex<Filters>,
    file: FilterFile,
    /// The file was read, or there is nothing in it to be read.
    is_read: AtomicBool,
    /// There may be a file.
    is_kept: AtomicBool,
    /// A copy of policy's, so that no lock is needed; 0: nothing is reported on.
    report_min_bytes: AtomicU64,
}

/// A filter that was fetched and cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it is a change of a filter that is not here")]
    Base,
    #[error(transparent)]
    BaseFile(#[from] FilterFileError),
    #[error(transparent)]
    Frame(#[from] AgainstError),
    #[error("it has {0} bytes, another size than was offered")]
    Size(usize),
    #[error("its bytes are those of filter {0}")]
    Id(FilterId),
    #[error(transparent)]
    Pack(#[from] FilterError),
}

impl Looking {
    pub(crate) fn new(file: FilterFile, bytes_max: u64) -> Self {
        Self {
            filters: Mutex::new(Filters::new(bytes_max)),
            file,
            is_read: AtomicBool::new(false),
            is_kept: AtomicBool::new(true),
            report_min_bytes: AtomicU64::new(0),
        }
    }

    fn filters(&self) -> MutexGuard<'_, Filters> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn obey(&self, policy: &model::Policy) {
        let least = policy.report_min_bytes.unwrap_or(0);
        self.report_min_bytes.store(least, Ordering::Relaxed);
    }

    /// Content of so many bytes and more is reported on, if there is a filter.
    fn report_min_bytes(&self) -> Option<u64> {
        Some(self.report_min_bytes.load(Ordering::Relaxed)).filter(|least| *least > 0)
    }

    pub(super) fn link_lost(&self) {
        self.filters().link_lost();
    }

    /// What content is reported by now.
    pub(crate) fn in_force(&self) -> Option<Arc<Pack>> {
        self.report_min_bytes()?;
        self.filters().in_force().cloned()
    }

    /// The filter by which content of `size` bytes can be reported on.
    pub(super) fn filter_for(&self, size: u64) -> Option<FilterId> {
        let least = self.report_min_bytes()?;
        let pack = self.in_force().filter(|_| size >= least)?;
        Some(FilterId(pack.id()))
    }

    /// What can be looked for while content is hashed, in how many bytes (not 0) and more.
    pub(super) fn while_hashing(&self) -> Option<(u64, Arc<Pack>)> {
        Some((self.report_min_bytes()?, self.in_force()?))
    }

    /// Decompresses and checks what was fetched; also gives its bytes.
    fn verify(&self, fetched: &Fetched) -> Result<(Pack, Vec<u8>), Unusable> {
        let base = match fetched.base {
            None => Vec::new(),
            Some(id) => {
                let kept = self.file.read()?.ok_or(Unusable::Base)?;
                if Pack::id_of(&kept) != id.0 {
                    return Err(Unusable::Base);
                }
                kept
            }
        };
        let size_max = usize::try_from(fetched.size).unwrap_or(usize::MAX);
        let bytes = chunks::decompress_against(&base, &fetched.bytes, size_max)?;
        if bytes.len() != size_max {
            return Err(Unusable::Size(bytes.len()));
        }
        let id = FilterId(Pack::id_of(&bytes));
        if id != fetched.id {
            return Err(Unusable::Id(id));
        }
        Ok((Pack::read(&bytes)?, bytes))
    }
}

impl Gate {
    /// The appliance says what there is to look for.
    pub(crate) fn filter_offered(&self, offer: &v1::FilterOffer) {
        self.looking.filters().offered(offer, Instant::now());
        self.bell.ring();
    }

    /// A piece of a filter came; the next one is asked for.
    pub(crate) fn filter_part(&self, part: &v1::FilterPart) {
        let next = self.looking.filters().part(part, Instant::now());
        if next.is_none() {
            self.bell.ring();
        }
        self.fetch_filter(next);
    }

    /// In how long a filter is to be fetched or taken; `None`: none is.
    pub(crate) fn filter_due_in(&self, seed: u64) -> Option<Duration> {
        self.looking.report_min_bytes()?;
        let spread = self.filter_spread(seed);
        self.looking.filters().due_in(spread, Instant::now())
    }

    /// How long after it was offered this guest fetches a filter.
    fn filter_spread(&self, seed: u64) -> Duration {
        let spread_ms = self.limits.filter_fetch_spread_s.saturating_mul(1000);
        Duration::from_millis(seed % (spread_ms + 1))
    }

    /// Brings the filter in line with policy and with what is offered: asks for one some time within
    /// the spread after it was offered and where it `may`, and takes one that is whole. What is not
    /// verified changes nothing. False: none is wanted.
    pub(crate) fn deliver_filter(&self, seed: u64, may: impl FnOnce() -> bool) -> bool {
        let looking = &self.looking;
        let is_off = looking.report_min_bytes().is_none();
        let is_gone = looking.filters().take_unwanted();
        if is_gone || is_off {
            self.forget_filter();
        }
        if is_off {
            return false;
        }
        if !looking.is_read.swap(true, Ordering::Relaxed) {
            self.load_filter();
        }
        if let Some(fetched) = { looking.filters().take_fetched() } {
            self.install_filter(&fetched);
        }
        let (spread, now) = (self.filter_spread(seed), Instant::now());
        if !looking.filters().is_wanted(spread, now) {
            return false;
        }
        if may() {
            let next = looking.filters().ask(spread, now);
            self.fetch_filter(next);
        }
        true
    }

    /// What the last run kept.
    fn load_filter(&self) {
        match self.looking.file.load() {
            Ok(Some(pack)) => {
                log_in_hand(&pack, "kept");
                self.looking.filters().take_in_hand(Arc::new(pack));
            }
            Ok(None) => {}
            Err(error) => {
                self.tally.filters_refused.add(1);
                let error = chain(&error);
                tracing::error!(error, "kept filter removed; it is fetched anew");
                self.remove_filter_file();
            }
        }
    }

    fn install_filter(&self, fetched: &Fetched) {
        let looking = &self.looking;
        let (pack, bytes) = match looking.verify(fetched) {
            Ok(verified) => verified,
            Err(error) => {
                let had_base = fetched.base.is_some();
                looking.filters().refuse(fetched.id, had_base);
                self.tally.filters_refused.add(1);
                let (filter, error) = (fetched.id.to_string(), chain(&error));
                tracing::error!(filter, error, had_base, "fetched filter refused");
                return;
            }
        };
        looking.is_kept.store(true, Ordering::Relaxed);
        if let Err(error) = looking.file.write(&bytes) {
            // It counts all the same; after a restart it is fetched again.
            tracing::error!(error = chain(&error), "the filter is not on disk");
        }
        let how = if fetched.base.is_some() {
            "changed"
        } else {
            "fetched"
        };
        log_in_hand(&pack, how);
        self.tally.filter_bytes.add(fetched.bytes.len() as u64);
        looking.filters().take_in_hand(Arc::new(pack));
    }

    fn forget_filter(&self) {
        self.looking.filters().forget();
        self.looking.is_read.store(true, Ordering::Relaxed);
        if self.looking.is_kept.swap(false, Ordering::Relaxed) {
            self.remove_filter_file();
        }
    }

    fn remove_filter_file(&self) {
        if let Err(error) = self.looking.file.remove() {
            tracing::error!(%error, "the kept filter cannot be removed");
        }
    }

    fn fetch_filter(&self, what: Option<v1::FetchFilter>) {
        let (Some(fetch), Some(client)) = (what, self.client()) else {
            return;
        };
        let envelope = v1::Envelope {
            request_id: 0,
            body: Some(Body::FetchFilter(fetch)),
        };
        // Where the link takes nothing now, it is asked again later.
        let _ = client.send(Priority::OnDemand, envelope);
    }

    /// For status.
    pub(crate) fn filter_json(&self) -> serde_json::Value {
        let (in_hand, in_force) = {
            let filters = self.looking.filters();
            (filters.in_hand().cloned(), filters.in_force().is_some())
        };
        serde_json::json!({
            "filter": in_hand.as_ref().map(|pack| FilterId(pack.id()).to_string()),
            "literals": in_hand.as_ref().map(|pack| pack.filter().len()),
            "needles": in_hand.as_ref().map(|pack| pack.needles().len()),
            "in_force": in_force && self.looking.report_min_bytes().is_some(),
            "fetched_bytes": self.tally.filter_bytes.value(),
            "refused": self.tally.filters_refused.value(),
            "sent": self.tally.reports_sent.value(),
            "declined": self.tally.reports_declined.value(),
            "bytes_sent": self.tally.report_bytes_sent.value(),
            "range_bytes_sent": self.tally.range_bytes_sent.value(),
        })
    }
}

fn log_in_hand(pack: &Pack, how: &str) {
    let filter = FilterId(pack.id()).to_string();
    let (literals, needles) = (pack.filter().len(), pack.needles().len());
    tracing::info!(filter, literals, needles, how, "filter in hand");
}
