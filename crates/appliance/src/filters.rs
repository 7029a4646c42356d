//! What agents look for in place of an engine: offered to all, sent piece by piece, and to who has
//! an older one only what changed.
//!
//! Nothing signs it but the channel: the offer comes from the appliance that will read the reports,
//! over mTLS, and names all bytes by their digest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use link::Priority;
use model::{FilterId, FilterPack};
use parking_lot::Mutex;
use proto::FILTER_PART_MAX_BYTES;
use proto::v1;
use proto::v1::envelope::Body;

use crate::session::Outbox;
use crate::shared::Shared;

/// Filters before the one in force, that guests may still have.
const BEFORE_MAX: usize = 3;

/// The filter that is offered, and those before it.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    offered: Option<Arc<FilterPack>>,
    /// Newest first.
    before: VecDeque<Arc<FilterPack>>,
    /// What is sent of the one offered: to who has none, and to who has one of those before.
    transfers: HashMap<Option<FilterId>, Bytes>,
}

impl Filters {
    /// The filter that guests are to report by.
    pub(crate) fn offered(&self) -> Option<FilterId> {
        self.state.lock().offered.as_ref().map(|pack| pack.id)
    }

    /// Offers another one, or none. Compresses what is to be sent, which takes a while.
    fn set(&self, pack: Option<Arc<FilterPack>>) {
        let (now, mut before) = {
            let state = self.state.lock();
            (state.offered.clone(), state.before.clone())
        };
        if let Some(now) = now {
            before.push_front(now);
        }
        before.retain(|old| pack.as_ref().is_none_or(|new| new.id != old.id));
        before.truncate(BEFORE_MAX);
        let mut transfers = HashMap::new();
        if let Some(new) = &pack {
            let of = |base: &[u8]| Bytes::from(chunks::compress_against(base, &new.bytes));
            transfers.insert(None, of(&[]));
            transfers.extend(before.iter().map(|old| (Some(old.id), of(&old.bytes))));
        }
        *self.state.lock() = State {
            offered: pack,
            before,
            transfers,
        };
    }

    fn offer(&self) -> Body {
        let state = self.state.lock();
        let offered = state.offered.as_ref();
        Body::FilterOffer(v1::FilterOffer {
            filter: offered.map_or_else(Vec::new, |pack| pack.id.0.to_vec()),
            size: offered.map_or(0, |pack| pack.bytes.len() as u64),
        })
    }

    /// A piece of the one offered; without bytes where it is not, or ends before.
    pub(crate) fn part(&self, fetch: &v1::FetchFilter) -> v1::FilterPart {
        let state = self.state.lock();
        let is_offered = |pack: &Arc<FilterPack>| pack.id.0[..] == fetch.filter[..];
        let base = FilterId::from_slice(&fetch.base).filter(|it| {
            let known = Some(*it);
            state.transfers.contains_key(&known)
        });
        let sent = state.transfers.get(&base);
        let sent = sent.filter(|_| state.offered.as_ref().is_some_and(is_offered));
        let total = sent.map_or(0, Bytes::len);
        let from = usize::try_from(fetch.offset).map_or(total, |at| at.min(total));
        let to = total.min(from.saturating_add(FILTER_PART_MAX_BYTES));
        v1::FilterPart {
            filter: fetch.filter.clone(),
            offset: fetch.offset,
            bytes: sent.map_or_else(Bytes::new, |bytes| bytes.slice(from..to)),
            base: base.map_or_else(Vec::new, |id| id.0.to_vec()),
            total: total as u64,
        }
    }
}

impl Shared {
    /// Offers the filter of the engines in force, where policy lets agents report.
    pub(crate) async fn follow_filter(self: &Arc<Self>) {
        let wanted = self.force().policy.report_min_bytes;
        let pack = wanted.and_then(|_| self.engines().filter());
        if pack.as_ref().map(|pack| pack.id) == self.filters.offered() {
            return;
        }
        let shared = self.clone();
        let set = tokio::task::spawn_blocking(move || shared.filters.set(pack));
        if set.await.is_err() {
            tracing::error!("the thread that compressed a filter ended badly");
        }
        self.tell_everybody(&self.filters.offer());
    }

    /// Tells a session which filter there is.
    pub(crate) fn tell_of_filter(&self, outbox: &dyn Outbox) {
        if self.filters.offered().is_some() {
            let envelope = v1::Envelope {
                request_id: 0,
                body: Some(self.filters.offer()),
            };
            outbox.send(Priority::Control, envelope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Generation;

    fn pack(seed: u8) -> Arc<FilterPack> {
        let mut bytes = vec![0; 700_000];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes[seed as usize * 1000] ^= seed;
        Arc::new(FilterPack {
            id: FilterId([seed; 16]),
            generation: Generation::default(),
            bytes,
        })
    }

    /// All pieces, and the base they are to be applied to.
    fn fetch(filters: &Filters, filter: u8, base: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut whole = Vec::new();
        loop {
            let part = filters.part(&v1::FetchFilter {
                filter: vec![filter; 16],
                offset: whole.len() as u64,
                base: base.to_vec(),
            });
            assert!(part.bytes.len() <= FILTER_PART_MAX_BYTES);
            if part.bytes.is_empty() {
                assert_eq!(whole.len() as u64, part.total);
                return (whole, part.base);
            }
            whole.extend_from_slice(&part.bytes);
        }
    }

    #[test]
    fn the_one_offered_is_sent_whole_or_by_what_changed() {
        let filters = Filters::default();
        assert_eq!(fetch(&filters, 1, &[]), (vec![], vec![]));
        let (first, second) = (pack(1), pack(2));
        filters.set(Some(first.clone()));
        assert_eq!(filters.offered(), Some(FilterId([1; 16])));
        let (whole, base) = fetch(&filters, 1, &[9; 16]);
        assert!(base.is_empty(), "a base that nobody knows");
        let plain = chunks::decompress_against(&[], &whole, 1 << 20).unwrap();
        assert_eq!(plain, first.bytes);
        filters.set(Some(second.clone()));
        let (changed, base) = fetch(&filters, 2, &[1; 16]);
        assert_eq!(base, [1; 16]);
        assert!(changed.len() < 1000, "{} bytes", changed.len());
        let plain = chunks::decompress_against(&first.bytes, &changed, 1 << 20).unwrap();
        assert_eq!(plain, second.bytes);
        assert_eq!(fetch(&filters, 1, &[]).0, b"", "no longer offered");
        for seed in 3..=5 {
            filters.set(Some(pack(seed)));
        }
        assert_eq!(fetch(&filters, 5, &[2; 16]).1, [2; 16]);
        assert!(fetch(&filters, 5, &[1; 16]).1.is_empty(), "too old");
        filters.set(None);
        assert_eq!(filters.offered(), None);
        assert_eq!(fetch(&filters, 5, &[]).0, b"");
    }
}
