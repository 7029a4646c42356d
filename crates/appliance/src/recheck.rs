//! After rules changed: content that is not kept here is asked of guests that were seen with it, one
//! guest for each content, in the background. Where nobody opens it, it would be judged by the old
//! rules for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use model::{Digest, GuestId, Outcome};
use scan_core::{CacheKey, Context};
use tokio::task::JoinSet;
use verdict_store::{HOLDERS_MAX, Sighting};

use crate::asked::{self, End};
use crate::config::RecheckConfig;
use crate::rule_delta::RuleDelta;
use crate::shared::Shared;

/// Sightings that are read at once.
const PAGE: usize = 4096;
/// Guests with malicious content that are told in a second.
const TOLD_PER_S: usize = 64;
/// Sightings cannot be read: they are tried again.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Has guests' content judged by the rules that are in force, as long as these are. Ends where there
/// is nothing (more) to ask for.
pub(crate) async fn ask_guests(shared: Arc<Shared>, config: RecheckConfig) {
    let delta = shared.delta.read().clone();
    let generation = shared.force().generation;
    // Of a change that was no change of rules alone nothing is known: then nobody is asked.
    let delta = delta.filter(|it| it.engine.is_some() && it.to == generation);
    let Some(delta) = delta.filter(|_| config.bytes_per_s.get() > 0) else {
        return;
    };
    let mut round = Round {
        shared,
        delta,
        config,
        under_way: JoinSet::new(),
        left: VecDeque::new(),
        forgotten: 0,
    };
    round.all().await;
    while !round.left.is_empty() {
        tokio::time::sleep(round.config.again()).await;
        round.what_is_left().await;
    }
}

/// Asking for everything once, and then for what nobody could give.
struct Round {
    shared: Arc<Shared>,
    delta: Arc<RuleDelta>,
    config: RecheckConfig,
    under_way: JoinSet<(Digest, bool)>,
    /// Contents that nobody could give.
    left: VecDeque<Digest>,
    /// Of those, beyond what is remembered.
    forgotten: u64,
}

impl Round {
    /// Goes through all sightings once, from some digest on: appliances that share them begin apart,
    /// and digests are in no order of guests or files.
    async fn all(&mut self) {
        self.shared.asked.forgive();
        let begin = Digest::of(&pki::random::<32>().unwrap_or_default());
        let zero = (Digest([0; 32]), GuestId([0; 16]));
        self.through((begin, zero.1), None).await;
        self.through(zero, Some(begin)).await;
        self.finish().await;
    }

    async fn through(&mut self, from: (Digest, GuestId), end: Option<Digest>) {
        let mut after = from;
        let mut holders: Option<(Digest, Vec<GuestId>)> = None;
        loop {
            let page = self.page(after).await;
            let Some(last) = page.last() else {
                break;
            };
            after = (last.digest, last.guest);
            for Sighting { digest, guest, .. } in page {
                if end.is_some_and(|end| digest.0 > end.0) {
                    self.content(holders.take()).await;
                    return;
                }
                match &mut holders {
                    Some((of, guests)) if *of == digest => guests.push(guest),
                    _ => {
                        let whole = holders.replace((digest, vec![guest]));
                        self.content(whole).await;
                    }
                }
            }
        }
        self.content(holders).await;
    }

    async fn page(&self, after: (Digest, GuestId)) -> Vec<Sighting> {
        loop {
            match self.shared.sightings.page(after, PAGE).await {
                Ok(page) => return page,
                Err(_) => tokio::time::sleep(FAILED_PAUSE).await,
            }
        }
    }

    /// Asks again for what nobody could give.
    async fn what_is_left(&mut self) {
        self.shared.asked.forgive();
        for digest in std::mem::take(&mut self.left) {
            let holders = self.shared.sightings.holders(digest, None, HOLDERS_MAX);
            let guests = holders.await.map(|page| page.guests).unwrap_or_default();
            let guests = guests.into_iter().map(|holder| holder.guest).collect();
            self.content(Some((digest, guests))).await;
        }
        self.finish().await;
    }

    /// Has one content judged by the first of these guests that has it, unless that is of no use.
    async fn content(&mut self, held: Option<(Digest, Vec<GuestId>)>) {
        let Some((digest, mut guests)) = held else {
            return;
        };
        let can_tell = |guest: &GuestId| {
            self.shared.guests.gate(*guest).is_some() && !self.shared.asked.is_mute(*guest)
        };
        guests.retain(can_tell);
        if !self.is_in_doubt(digest).await {
            return;
        }
        if guests.is_empty() {
            self.shared.asked.results.with(["absent"]).inc();
            return self.remember(digest);
        }
        while self.under_way.len() >= self.config.asked_max.count() {
            self.one_ended().await;
        }
        self.shared.asked.paid().await;
        let (shared, config) = (self.shared.clone(), self.config.clone());
        self.under_way.spawn(async move {
            let is_settled = settle(&shared, &config, digest, guests).await;
            (digest, is_settled)
        });
    }

    /// Whether the rules in force have said nothing of it, and the new ones may say something. Where
    /// rules read names, what is known is known by name, too: then the guest's own check tells.
    async fn is_in_doubt(&self, digest: Digest) -> bool {
        let force = self.shared.force();
        if force.policy.context_sensitive {
            return true;
        }
        let now = force.key(digest, &Context::default());
        let then = CacheKey {
            generation: self.delta.from,
            ..now
        };
        if self.shared.verdicts.peek(&now).await.is_some() {
            return false;
        }
        let then = self.shared.verdicts.peek(&then).await;
        !then.is_some_and(|then| matches!(then.outcome, Outcome::Malicious { .. }))
    }

    async fn one_ended(&mut self) {
        if let Some(Ok((digest, false))) = self.under_way.join_next().await {
            self.remember(digest);
        }
    }

    fn remember(&mut self, digest: Digest) {
        if self.left.len() < self.config.left_max.count() {
            self.left.push_back(digest);
        } else {
            self.forgotten += 1;
        }
    }

    async fn finish(&mut self) {
        while !self.under_way.is_empty() {
            self.one_ended().await;
        }
        let left = self.left.len();
        self.shared.asked.left.set(crate::metrics::gauge_of(left));
        let forgotten = std::mem::take(&mut self.forgotten);
        tracing::info!(
            left,
            forgotten,
            "what guests hold is judged by the new rules; what is left they could not give"
        );
    }
}

/// Asks one guest after the other until one has it judged for all. False: none did.
async fn settle(
    shared: &Arc<Shared>,
    config: &RecheckConfig,
    digest: Digest,
    mut guests: Vec<GuestId>,
) -> bool {
    let first = pki::random::<8>().map_or(0, u64::from_le_bytes) as usize % guests.len().max(1);
    guests.rotate_left(first);
    let mut is_known = false;
    for guest in guests.into_iter().take(config.guests_max.count()) {
        let (at_once, answer) = (config.guest_asked_max.count(), config.answer());
        let end = asked::ask(shared, (guest, digest), at_once, answer).await;
        shared.asked.results.with([end.name()]).inc();
        match end {
            End::Clean => return true,
            End::Malicious => {
                tell_holders(shared, digest, Some(guest)).await;
                return true;
            }
            // Each guest's report counts for itself.
            End::Reported => is_known = true,
            End::NotHeld | End::Late | End::Unscanned => {}
        }
    }
    is_known
}

/// Content became malicious: every guest here that was seen with it is asked to check it, which tells
/// it, and the appliance where its file is. `but`: it knows.
pub(crate) async fn tell_holders(shared: &Shared, digest: Digest, but: Option<GuestId>) {
    let mut after = None;
    let mut told = 0;
    loop {
        let page = shared.sightings.holders(digest, after, HOLDERS_MAX).await;
        let Ok(page) = page else {
            return;
        };
        for holder in &page.guests {
            if Some(holder.guest) == but || !asked::tell(shared, holder.guest, digest) {
                continue;
            }
            shared.asked.results.with(["told"]).inc();
            told += 1;
            if told % TOLD_PER_S == 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        after = page.guests.last().map(|holder| holder.guest);
        if !page.more {
            return;
        }
    }
}
