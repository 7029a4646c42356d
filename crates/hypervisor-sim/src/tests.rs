use std::sync::Arc;

use async_trait::async_trait;
use hypervisor::{
    Connect, Differ, HostId, HostState, MovePhase, Observation, Pace, Power, Vm, VmId,
};
use hypervisor_conformance::{Abilities, Approach, Rig, conform};

use crate::{Sim, SimCredentials, SimError};

fn host(name: &str) -> HostId {
    HostId::new(name).expect("an id")
}

fn vm_id(name: &str) -> VmId {
    VmId::new(name).expect("an id")
}

fn running(name: &str, on: &str) -> Vm {
    let mut vm = Vm::new(vm_id(name), name);
    vm.host = Some(host(on));
    vm.power = Power::Running;
    vm
}

struct SimRig(Sim);

#[async_trait]
impl Rig for SimRig {
    fn abilities(&self) -> Abilities {
        Abilities {
            moves: true,
            tells_start: true,
            pauses: Some(Power::Paused),
            tells_clones: true,
            tags: true,
            asks_password: true,
            has_tls: true,
        }
    }

    fn connector(&self, approach: Approach, pace: Arc<Pace>) -> anyhow::Result<Arc<dyn Connect>> {
        let credentials = match approach {
            Approach::Right => SimCredentials::Right,
            Approach::WrongPassword => SimCredentials::WrongPassword,
            Approach::WrongCertificate => SimCredentials::WrongCertificate,
        };
        Ok(Arc::new(self.0.connector(credentials, pace)))
    }

    fn hosts(&self) -> Vec<HostId> {
        vec![host("h1"), host("h2")]
    }

    async fn create(&mut self, name: &str) -> anyhow::Result<VmId> {
        self.0.add_vm(running(name, "h1"))?;
        Ok(vm_id(name))
    }

    async fn power_off(&mut self, vm: &VmId) -> anyhow::Result<()> {
        Ok(self.0.power(vm, Power::Off)?)
    }

    async fn power_on(&mut self, vm: &VmId) -> anyhow::Result<()> {
        Ok(self.0.power(vm, Power::Running)?)
    }

    async fn pause(&mut self, vm: &VmId) -> anyhow::Result<()> {
        Ok(self.0.power(vm, Power::Paused)?)
    }

    async fn resume(&mut self, vm: &VmId) -> anyhow::Result<()> {
        Ok(self.0.power(vm, Power::Running)?)
    }

    async fn begin_move(&mut self, vm: &VmId, to: &HostId) -> anyhow::Result<bool> {
        self.0.begin_move(vm, to)?;
        Ok(true)
    }

    async fn migrate(&mut self, vm: &VmId, _to: &HostId) -> anyhow::Result<()> {
        Ok(self.0.finish_move(vm)?)
    }

    async fn clone_vm(&mut self, vm: &VmId, name: &str) -> anyhow::Result<VmId> {
        self.0.clone_vm(vm, vm_id(name), name)?;
        Ok(vm_id(name))
    }

    async fn delete(&mut self, vm: &VmId) -> anyhow::Result<()> {
        Ok(self.0.delete(vm)?)
    }

    async fn cut(&mut self) -> anyhow::Result<()> {
        self.0.cut();
        Ok(())
    }

    async fn mend(&mut self) -> anyhow::Result<()> {
        self.0.mend();
        Ok(())
    }
}

fn two_hosts() -> Sim {
    let sim = Sim::new();
    sim.add_host(host("h1"), Some("c"));
    sim.add_host(host("h2"), Some("c"));
    sim
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() -> anyhow::Result<()> {
    conform(&mut SimRig(two_hosts())).await
}

#[test]
fn a_script_is_read_without_a_runtime_and_always_the_same() {
    let run = || {
        let sim = two_hosts();
        let (snapshot, feed) = sim.subscribe().expect("not cut");
        let mut differ = Differ::new();
        let mut changes = differ.observe(Observation::Everything(snapshot));
        sim.add_vm(running("v", "h1")).expect("added");
        sim.begin_move(&vm_id("v"), &host("h2")).expect("begun");
        sim.fail_move(&vm_id("v")).expect("failed");
        sim.begin_move(&vm_id("v"), &host("h2")).expect("begun");
        sim.finish_move(&vm_id("v")).expect("finished");
        sim.set_host(&host("h1"), HostState::Maintenance)
            .expect("set");
        sim.remove_host(&host("h1")).expect("removed");
        for observation in feed.take().expect("not cut") {
            changes.extend(differ.observe(observation));
        }
        changes
    };
    let changes = run();
    assert_eq!(changes, run());
    let phases: Vec<MovePhase> = changes
        .iter()
        .filter_map(|change| match change {
            hypervisor::Change::VmMoved { phase, .. } => Some(*phase),
            _ => None,
        })
        .collect();
    use MovePhase::{Failed, Started, Switched};
    assert_eq!(phases, [Started, Failed, Started, Switched]);
}

#[test]
fn what_cannot_be_is_refused() {
    let sim = two_hosts();
    let nowhere = sim.add_vm(running("v", "h9"));
    assert_eq!(nowhere, Err(SimError::NoHost(host("h9"))));
    sim.add_vm(running("v", "h1")).expect("added");
    let twice = sim.add_vm(running("v", "h2"));
    assert_eq!(twice, Err(SimError::VmExists(vm_id("v"))));
    let not_moving = sim.finish_move(&vm_id("v"));
    assert_eq!(not_moving, Err(SimError::NotMoving(vm_id("v"))));
    assert_eq!(sim.delete(&vm_id("w")), Err(SimError::NoVm(vm_id("w"))));
}

#[test]
fn a_cut_feed_ends_and_none_begins() {
    let sim = two_hosts();
    let (_, feed) = sim.subscribe().expect("not cut");
    sim.cut();
    assert!(feed.take().is_none());
    assert!(sim.subscribe().is_none());
    sim.mend();
    assert!(sim.subscribe().is_some());
}
