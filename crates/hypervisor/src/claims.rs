//! VMs as several hosts tell of them, where no management stands above (libvirt, a Hyper-V host
//! outside a cluster): one VM may be told of by two hosts at a time, during a move and, switched
//! off, after it.

use std::collections::BTreeMap;

use crate::connector::Observation;
use crate::record::{HostId, Migration, Power, Vm, VmId};

/// What each host says, and what is true by that.
#[derive(Debug, Default)]
pub struct Claims {
    by_vm: BTreeMap<VmId, BTreeMap<HostId, Claim>>,
    /// Claims that said something new, ever.
    news: u64,
}

#[derive(Debug, Clone)]
struct Claim {
    vm: Vm,
    is_incoming: bool,
    /// When the host began to say so, in [`Claims::news`].
    since: u64,
}

impl Claims {
    /// Nobody has said anything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A host tells of a VM. `is_incoming`: it is being moved to this host and does not run there
    /// yet.
    pub fn claim(&mut self, host: &HostId, mut vm: Vm, is_incoming: bool) -> Observation {
        let id = vm.id.clone();
        vm.host = Some(host.clone());
        self.news += 1;
        let mut claim = Claim {
            vm,
            is_incoming,
            since: self.news,
        };
        let claims = self.by_vm.entry(id.clone()).or_default();
        if let Some(before) = claims.get(host)
            && before.weight() == claim.weight()
        {
            claim.since = before.since;
        }
        claims.insert(host.clone(), claim);
        self.best(&id)
    }

    /// A host tells that it has this VM no more.
    pub fn release(&mut self, host: &HostId, vm: &VmId) -> Observation {
        if let Some(claims) = self.by_vm.get_mut(vm) {
            claims.remove(host);
            if claims.is_empty() {
                self.by_vm.remove(vm);
            }
        }
        self.best(vm)
    }

    /// A host tells of all its VMs: what it had claimed before and does not name now is released.
    pub fn replace(
        &mut self,
        host: &HostId,
        vms: impl IntoIterator<Item = (Vm, bool)>,
    ) -> Vec<Observation> {
        let mut named: BTreeMap<VmId, (Vm, bool)> = vms
            .into_iter()
            .map(|(vm, is_incoming)| (vm.id.clone(), (vm, is_incoming)))
            .collect();
        let stale: Vec<VmId> = self
            .by_vm
            .iter()
            .filter(|(id, claims)| claims.contains_key(host) && !named.contains_key(id))
            .map(|(id, _)| id.clone())
            .collect();
        let mut seen: Vec<Observation> = stale.iter().map(|id| self.release(host, id)).collect();
        while let Some((_, (vm, is_incoming))) = named.pop_first() {
            seen.push(self.claim(host, vm, is_incoming));
        }
        seen
    }

    /// What a host claims.
    pub fn of_host(&self, host: &HostId) -> impl Iterator<Item = &Vm> {
        let claims = self.by_vm.values();
        claims.filter_map(move |claims| Some(&claims.get(host)?.vm))
    }

    /// The hosts that claim this VM.
    pub fn hosts_of(&self, vm: &VmId) -> impl Iterator<Item = &HostId> {
        self.by_vm.get(vm).into_iter().flat_map(BTreeMap::keys)
    }

    /// Every VM, once.
    #[must_use]
    pub fn vms(&self) -> Vec<Vm> {
        let best = |id| match self.best(id) {
            Observation::Vm(vm) => Some(vm),
            _ => None,
        };
        self.by_vm.keys().filter_map(best).collect()
    }

    /// Where a VM runs by all that hosts say: a host that runs it beats one where it is paused,
    /// that one beats a destination which still waits for it, and that one a host that has only its
    /// definition. Of two that say the same, the later is right: the other has not noticed yet, or
    /// cannot be reached.
    fn best(&self, id: &VmId) -> Observation {
        let Some(claims) = self.by_vm.get(id) else {
            return Observation::VmGone(id.clone());
        };
        let Some((_, best)) = claims
            .iter()
            .max_by_key(|(_, claim)| (claim.weight(), claim.since))
        else {
            return Observation::VmGone(id.clone());
        };
        let mut vm = best.vm.clone();
        let incoming = claims.iter().find(|(_, claim)| claim.is_incoming);
        if let Some((to, _)) = incoming.filter(|_| !best.is_incoming) {
            let to = Some(to.clone());
            vm.migration = Some(Migration { to });
        }
        Observation::Vm(vm)
    }
}

impl Claim {
    fn weight(&self) -> u8 {
        match (self.is_incoming, self.vm.power) {
            (false, Power::Running) => 5,
            (false, Power::Starting | Power::Paused) => 4,
            (true, _) => 3,
            (false, Power::Unknown) => 2,
            (false, Power::Suspended) => 1,
            (false, Power::Off) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostId {
        HostId::new(name).expect("an id")
    }

    fn vm(power: Power) -> Vm {
        let mut vm = Vm::new(VmId::new("v").expect("an id"), "v");
        vm.power = power;
        vm
    }

    fn placed(observation: Observation) -> (String, Power, Option<String>) {
        let Observation::Vm(vm) = observation else {
            panic!("{observation:?}")
        };
        let to = vm.migration.and_then(|migration| migration.to);
        let name = |id: HostId| id.as_str().to_owned();
        (name(vm.host.expect("a host")), vm.power, to.map(name))
    }

    #[test]
    fn a_move_as_two_hosts_tell_it() {
        let mut claims = Claims::new();
        for [from, to] in [["a", "b"], ["b", "a"]] {
            let (source, target) = (host(from), host(to));
            let on = |name: &str, to: Option<&str>| {
                (name.to_owned(), Power::Running, to.map(str::to_owned))
            };
            let seen = claims.claim(&source, vm(Power::Running), false);
            assert_eq!(placed(seen), on(from, None));
            let seen = claims.claim(&target, vm(Power::Paused), true);
            assert_eq!(placed(seen), on(from, Some(to)));
            // The switch: the source has not noticed, then has it paused for a while.
            let seen = claims.claim(&target, vm(Power::Running), false);
            assert_eq!(placed(seen), on(to, None));
            let seen = claims.claim(&source, vm(Power::Running), false);
            assert_eq!(placed(seen), on(to, None));
            let seen = claims.claim(&source, vm(Power::Paused), false);
            assert_eq!(placed(seen), on(to, None));
            // A persistent VM leaves its definition behind.
            let seen = claims.claim(&source, vm(Power::Off), false);
            assert_eq!(placed(seen), on(to, None));
        }
        let id = vm(Power::Off).id;
        assert_eq!(claims.hosts_of(&id).count(), 2);
        claims.release(&host("b"), &id);
        let gone = claims.release(&host("a"), &id);
        assert!(matches!(gone, Observation::VmGone(_)));
    }

    #[test]
    fn a_host_that_names_all_releases_the_rest() {
        let a = host("a");
        let mut claims = Claims::new();
        claims.claim(&a, vm(Power::Running), false);
        let seen = claims.replace(&a, []);
        assert!(matches!(&seen[..], [Observation::VmGone(_)]));
        assert!(claims.vms().is_empty());
    }
}
