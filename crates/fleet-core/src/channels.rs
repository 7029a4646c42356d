//! Channels that a hypervisor makes between a guest and its host: whoever holds one end of it is
//! where the other end is. An appliance tells which channels it holds, a guest tells what it read
//! from its own; where both agree the guest is on that appliance's host, whatever an inventory says.

use std::collections::{BTreeMap, BTreeSet};

use model::{ChannelId, GuestId};
use placement::ApplianceId;

use crate::core::{Clock, Core};
use crate::guests::GuestFacts;

/// Both ends.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    held: BTreeMap<ChannelId, ApplianceId>,
    /// Guests say so: of several at most one tells the truth, and the others lie of themselves.
    claimed: BTreeSet<(ChannelId, GuestId)>,
}

impl Channels {
    fn claimants(&self, channel: ChannelId) -> impl Iterator<Item = GuestId> + '_ {
        let ends = [[0; 16], [u8::MAX; 16]].map(|end| (channel, GuestId(end)));
        let [first, last] = ends;
        self.claimed.range(first..=last).map(|(_, guest)| *guest)
    }
}

impl Core {
    /// All the channels that an appliance holds. They count beyond the end of its stream, until it
    /// tells anew: a controller that is away for a while moves nobody.
    pub fn appliance_channels(
        &mut self,
        clock: Clock,
        id: ApplianceId,
        held: &BTreeSet<ChannelId>,
    ) {
        let channels = &mut self.channels;
        let own = channels.held.iter().filter(|(_, holder)| **holder == id);
        let before: BTreeSet<ChannelId> = own.map(|(channel, _)| *channel).collect();
        let mut moved = BTreeSet::new();
        for closed in before.difference(held) {
            channels.held.remove(closed);
            moved.extend(channels.claimants(*closed));
        }
        for opened in held.difference(&before) {
            channels.held.insert(*opened, id);
            moved.extend(channels.claimants(*opened));
        }
        for guest in moved {
            self.attach(clock, guest);
        }
    }

    /// A guest said what it reads from its channel; it read `old` before.
    pub(crate) fn claim_channel(&mut self, clock: Clock, id: GuestId, old: Option<ChannelId>) {
        let claimed = self.guests.get(&id).and_then(|guest| guest.facts.channel);
        if let Some(old) = old {
            self.channels.claimed.remove(&(old, id));
        }
        if let Some(claimed) = claimed {
            self.channels.claimed.insert((claimed, id));
        }
        self.attach(clock, id);
    }

    /// A guest is no more.
    pub(crate) fn forget_claim(&mut self, facts: &GuestFacts, id: GuestId) {
        if let Some(channel) = facts.channel {
            self.channels.claimed.remove(&(channel, id));
        }
    }

    /// Tells placement which appliance a guest is beside.
    pub(crate) fn attach(&mut self, clock: Clock, id: GuestId) {
        let Some(vm) = self.vm_of_guest.get(&id).copied() else {
            return;
        };
        let channel = self.guests.get(&id).and_then(|guest| guest.facts.channel);
        let to = channel.and_then(|channel| self.channels.held.get(&channel));
        self.fleet.attached(clock.now, vm, to.copied());
    }
}
