//! What connectors see, told to the controller while it places.

use std::time::Duration;

use connectors::{ConnectorConfig, ConnectorMetrics, Connectors, ConnectorsError};
use controller::fleet::{Fleet, Standing};
use daemon::metrics::Registry;
use fleet_core::{HostRecord, InventoryChange, MovePhase, Power, VmRecord};
use hypervisor::{Change, Host, HostId, HostState, Vm};
use tokio::task::JoinHandle;

/// After connectors that were good once could not be started.
const START_AGAIN: Duration = Duration::from_secs(30);

/// The fleet goes on no more.
struct Ended;

/// Starts the connectors of a configuration, or says what is wrong with it.
///
/// # Errors
/// [`ConnectorsError`], naming the connector; nothing runs then.
pub(crate) fn start(
    configs: Vec<ConnectorConfig>,
    fleet: Fleet,
    registry: &Registry,
) -> Result<JoinHandle<()>, ConnectorsError> {
    let metrics = ConnectorMetrics::new(registry);
    // Whoever does not place connects to nothing, but a mistake is told at once.
    drop(Connectors::start(&configs, &metrics)?);
    Ok(tokio::spawn(keep(configs, fleet, metrics)))
}

/// Each time that this controller begins to place, connectors begin anew and tell everything: what
/// was told while another placed is that one's.
async fn keep(configs: Vec<ConnectorConfig>, mut fleet: Fleet, metrics: ConnectorMetrics) {
    if configs.is_empty() {
        return;
    }
    loop {
        let term = match fleet.standing() {
            Standing::Leads(term) => term,
            Standing::Follows(_) if fleet.standing_changed().await => continue,
            Standing::Follows(_) => return,
        };
        let connectors = match Connectors::start(&configs, &metrics) {
            Ok(connectors) => connectors,
            Err(error) => {
                // A file that was there at our start is there no more.
                let error = crate::chain(&error.into());
                tracing::error!(error, "connectors cannot be started");
                tokio::time::sleep(START_AGAIN).await;
                continue;
            }
        };
        if tell(connectors, &mut fleet, term).await.is_err() {
            return;
        }
    }
}

/// Until another places, or this controller does in a new term: that one knows only what was
/// written down, and must be told everything.
/// `Err`: the fleet has ended.
async fn tell(mut connectors: Connectors, fleet: &mut Fleet, term: u32) -> Result<(), Ended> {
    while fleet.standing() == Standing::Leads(term) {
        let event = tokio::select! {
            event = connectors.next() => event,
            goes_on = fleet.standing_changed() => match goes_on {
                true => continue,
                false => return Err(Ended),
            },
        };
        let Some(event) = event else {
            break;
        };
        let Some(change) = inventory_change(event.change) else {
            continue;
        };
        let name = event.connector.to_string();
        let told = fleet.with(move |lead, clock| lead.core.inventory(clock, &name, change));
        if told.await.is_err() {
            break;
        }
    }
    Ok(())
}

/// A connector's word as the fleet takes it; `None` where it has no use for it.
fn inventory_change(change: Change) -> Option<InventoryChange> {
    let text = |id: HostId| id.as_str().to_owned();
    Some(match change {
        Change::Synced => InventoryChange::Synced,
        Change::Lost { reason } => InventoryChange::Lost { reason },
        Change::HostAppeared(host) | Change::HostChanged(host) => {
            InventoryChange::Host(host_record(host))
        }
        Change::HostGone(id) => InventoryChange::HostGone(text(id)),
        Change::VmAppeared(vm) | Change::VmChanged(vm) => InventoryChange::Vm(vm_record(vm)),
        Change::VmMoved { vm, to, phase, .. } => InventoryChange::VmMoved {
            vm: vm.into(),
            to: to.map(text),
            phase: match phase {
                hypervisor::MovePhase::Started => MovePhase::Started,
                hypervisor::MovePhase::Switched => MovePhase::Switched,
                hypervisor::MovePhase::Failed => MovePhase::Failed,
            },
        },
        Change::VmPowered { vm, to, .. } => InventoryChange::VmPowered {
            vm: vm.into(),
            power: power(to),
        },
        Change::VmGone(vm) => InventoryChange::VmGone(vm.into()),
        Change::VmCloned { .. } => return None,
    })
}

fn host_record(host: Host) -> HostRecord {
    HostRecord {
        id: host.id.into(),
        name: host.name,
        cluster: host.cluster,
        maintenance: host.state == HostState::Maintenance,
        reachable: host.state != HostState::Unreachable,
    }
}

fn vm_record(vm: Vm) -> VmRecord {
    VmRecord {
        id: vm.id.into(),
        name: vm.name,
        host: vm.host.map(String::from),
        power: power(vm.power),
        migrating: vm.migration.is_some(),
        uuid: vm.smbios_uuid,
        addresses: vm.addresses,
        tags: vm.tags,
        pool: None,
    }
}

fn power(power: hypervisor::Power) -> Power {
    match power {
        // Its memory is on a disk: nothing of it runs anywhere.
        hypervisor::Power::Off | hypervisor::Power::Suspended => Power::Off,
        hypervisor::Power::Starting => Power::Starting,
        hypervisor::Power::Running => Power::Running,
        hypervisor::Power::Paused => Power::Paused,
        hypervisor::Power::Unknown => Power::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use hypervisor::VmId;

    use super::*;

    #[test]
    fn a_vm_as_the_fleet_takes_it() {
        let mut vm = Vm::new(VmId::new("v1").expect("an id"), "web");
        vm.host = Some(HostId::new("h1").expect("an id"));
        vm.power = hypervisor::Power::Suspended;
        vm.smbios_uuid = Some([7; 16]);
        let told = inventory_change(Change::VmAppeared(vm));
        let Some(InventoryChange::Vm(record)) = told else {
            panic!("{told:?}")
        };
        assert_eq!(record.host.as_deref(), Some("h1"));
        assert_eq!(record.power, Power::Off);
        assert_eq!(record.uuid, Some([7; 16]));
        assert!(!record.migrating);
    }

    #[test]
    fn an_unreachable_host_is_not_in_maintenance() {
        let record = host_record(Host {
            id: HostId::new("h1").expect("an id"),
            name: "one".to_owned(),
            cluster: None,
            state: HostState::Unreachable,
        });
        assert!(!record.reachable);
        assert!(!record.maintenance);
    }
}
