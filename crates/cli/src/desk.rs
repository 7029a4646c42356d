//! Answers of the controller about its fleet.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use appliance::FleetDesk;
use controller::Authority;
use controller::fleet::Fleet;
use fleet_core::{ApplianceRow, Clock, Core, HostRow, TurnRow, VmRow, Why, WhyAppliance};
use pki::Validity;
use placement::{Availability, VmId};
use proto::v1;
use proto::v1::fleet_request::Ask;

/// Rows in one reply, which must fit a frame.
const PAGE: usize = 1000;
/// Appliances weighed that are shown besides those of the list.
const CONSIDERED_MAX: usize = 12;
/// Nothing that is said of a session counts longer.
const SESSION_VALID_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const EVENTS_DEFAULT: u32 = 100;
const EVENTS_MAX: u32 = 5000;

type Answer = Pin<Box<dyn Future<Output = Result<v1::FleetReply, String>> + Send>>;

/// Answers for a controller in this process, where what is said of somebody working at a VM counts
/// so long.
pub(crate) fn of(
    fleet: Fleet,
    authority: Arc<Authority>,
    session_valid: Duration,
) -> Arc<FleetDesk> {
    Arc::new(move |request| {
        let (fleet, authority) = (fleet.clone(), authority.clone());
        let answer = answer(fleet, authority, session_valid, request);
        let answer: Answer = Box::pin(answer);
        answer
    })
}

/// For an appliance without a controller in its process.
pub(crate) fn elsewhere() -> Arc<FleetDesk> {
    Arc::new(|_| {
        let answer: Answer = Box::pin(async {
            Err("this is an appliance alone: ask where its controller runs".to_owned())
        });
        answer
    })
}

async fn answer(
    fleet: Fleet,
    authority: Arc<Authority>,
    session_valid: Duration,
    request: v1::FleetRequest,
) -> Result<v1::FleetReply, String> {
    let ask = request
        .ask
        .ok_or("not a question that this version knows")?;
    if let Ask::ApplianceIdentity(name) = &ask {
        return identity(&authority, name);
    }
    if let Some(answer) = crate::membership::answer(&authority, &ask).await {
        return answer;
    }
    let answered = fleet.with(move |lead, clock| match ask {
        Ask::Hosts(list) => Ok(page(&lead.core.host_rows(), list.skip, |reply, row| {
            reply.hosts.push(host(row));
        })),
        Ask::Vms(list) => {
            let only = (!list.host.is_empty()).then_some(list.host.as_str());
            let skip = usize::try_from(list.skip).unwrap_or(usize::MAX);
            // One more than is shown: whether there are more.
            let rows = lead.core.vm_rows(only, skip, PAGE + 1);
            Ok(page(&rows, 0, |reply, row| {
                reply.vms.push(vm(row, clock));
            }))
        }
        Ask::Appliances(list) => Ok(page(
            &lead.core.appliance_rows(),
            list.skip,
            |reply, row| {
                reply.appliances.push(appliance_row(row));
            },
        )),
        Ask::Turns(list) => {
            let only = (!list.host.is_empty()).then_some(list.host.as_str());
            let rows = lead.core.turn_rows(clock.now, only);
            Ok(page(&rows, list.skip, |reply, row| {
                reply.turns.push(turn(row))
            }))
        }
        Ask::Why(text) => why(&lead.core, clock, &text),
        Ask::InSession(said) => in_session(&mut lead.core, clock, &said, session_valid),
        Ask::Drain(drain) => self::drain(&mut lead.core, clock, &drain),
        Ask::Events(events) => Ok(events_after(&lead.core, &events)),
        _ => Err("answered before".to_owned()),
    });
    answered.await.map_err(|error| error.to_string())?
}

fn identity(authority: &Authority, name: &str) -> Result<v1::FleetReply, String> {
    let valid = Validity::starting(SystemTime::now(), pki::LIFETIME);
    let identity = authority.ca().issue_appliance(name, valid);
    let identity = identity.map_err(|error| error.to_string())?;
    Ok(v1::FleetReply {
        identity: identity.to_pem(),
        ..v1::FleetReply::default()
    })
}

pub(crate) fn page<T>(
    rows: &[T],
    skip: u64,
    put: impl Fn(&mut v1::FleetReply, &T),
) -> v1::FleetReply {
    page_of(PAGE, rows, skip, put)
}

/// The same, with at most `max` rows.
pub(crate) fn page_of<T>(
    max: usize,
    rows: &[T],
    skip: u64,
    put: impl Fn(&mut v1::FleetReply, &T),
) -> v1::FleetReply {
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let mut reply = v1::FleetReply::default();
    let rest = rows.get(skip..).unwrap_or_default();
    rest.iter().take(max).for_each(|row| put(&mut reply, row));
    reply.more = rest.len() > max;
    reply
}

fn host(row: &HostRow) -> v1::FleetHost {
    let record = &row.stored.record;
    v1::FleetHost {
        name: record.name.clone(),
        id: record.id.clone(),
        connector: row.stored.connector.clone(),
        cluster: record.cluster.clone().unwrap_or_default(),
        site: row.stored.site.clone().unwrap_or_default(),
        maintenance: record.maintenance || row.stored.ordered_maintenance,
        reachable: record.reachable,
        vms: row.vms as u64,
        vms_awake: row.vms_awake as u64,
        appliances: row.appliances.clone(),
    }
}

fn vm(row: &VmRow, clock: Clock) -> v1::FleetVm {
    let record = &row.stored.record;
    let said = row.stored.in_session_at(clock.wall_ms);
    let session = match said {
        Some(said) if said.is_so => "in_session",
        Some(_) => "idle",
        None => "",
    };
    v1::FleetVm {
        number: row.stored.id,
        name: record.name.clone(),
        id: record.id.clone(),
        connector: row.stored.connector.clone(),
        host: row.host.clone().unwrap_or_default(),
        state: row.stored.state.name().to_owned(),
        guest_id: row
            .stored
            .guest
            .map_or_else(Vec::new, |guest| guest.0.to_vec()),
        appliances: row.appliances.clone(),
        epoch: row.epoch,
        cause: row.cause.to_owned(),
        tier: row.tier.map(u32::from),
        connected_to: row.connected_to.clone().unwrap_or_default(),
        session: session.to_owned(),
        session_until_ms: said.map_or(0, |said| said.until_ms),
    }
}

fn turn(row: &TurnRow) -> v1::FleetTurn {
    // Rounded up: a turn has not begun while another, that ends as it begins, is not over.
    let millis =
        |time: Duration| u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    v1::FleetTurn {
        vm: row.vm.clone(),
        host: row.host.clone(),
        kind: row.kind.name().to_owned(),
        begins_in_ms: millis(row.begins_in),
        ends_in_ms: millis(row.ends_in),
    }
}

fn appliance_row(row: &ApplianceRow) -> v1::FleetAppliance {
    let availability = match row.availability {
        Availability::Up => "up",
        Availability::Draining => "draining",
        Availability::Down => "down",
    };
    v1::FleetAppliance {
        name: row.stored.name.clone(),
        address: row.stored.address.clone(),
        host: row.host.clone().unwrap_or_default(),
        availability: availability.to_owned(),
        connected: row.is_connected,
        load: row.load,
        bound: row.bound,
        capacity: row.stored.capacity,
        vms: row.vms as u64,
        queue_ms: row.queue_ms,
        labels: row.stored.labels.clone(),
    }
}

/// The one VM of those that are meant by a text.
fn the_only(text: &str, found: &[VmId]) -> Result<VmId, String> {
    match found {
        [only] => Ok(*only),
        [] => Err(format!("no VM {text:?}")),
        _ => Err(format!(
            "several VMs are called {text:?}; use the number of one"
        )),
    }
}

/// Of all the VMs that are named, or of none.
fn in_session(
    core: &mut Core,
    clock: Clock,
    said: &v1::FleetInSession,
    valid: Duration,
) -> Result<v1::FleetReply, String> {
    let valid = match said.valid_s {
        0 => valid,
        seconds => Duration::from_secs(seconds.into()).min(SESSION_VALID_MAX),
    };
    let is_so = match said.state.as_str() {
        "in_session" => Some((true, valid)),
        "idle" => Some((false, valid)),
        "unknown" => None,
        _ => return Err("a session is in_session, idle or unknown".to_owned()),
    };
    if said.vms.is_empty() || said.vms.len() > PAGE {
        return Err(format!("name 1 to {PAGE} VMs"));
    }
    let texts: Vec<&str> = said.vms.iter().map(String::as_str).collect();
    let found = core.find_each_vm(&texts);
    let vms = texts.iter().zip(&found);
    let vms: Result<Vec<VmId>, String> = vms.map(|(text, found)| the_only(text, found)).collect();
    core.order_in_session(clock, &vms?, is_so);
    Ok(v1::FleetReply::default())
}

fn why(core: &Core, clock: Clock, text: &str) -> Result<v1::FleetReply, String> {
    let id = the_only(text, &core.find_vms(text))?;
    let Why {
        vm: row,
        measured_host,
        attached,
        rule,
        considered,
        omitted,
    } = core.why(id, CONSIDERED_MAX).ok_or("the VM is gone")?;
    let considered =
        considered
            .iter()
            .map(|WhyAppliance { name, considered }| v1::FleetConsidered {
                appliance: name.clone(),
                tier: considered.tier.into(),
                in_scope: considered.in_scope,
                rank: considered.rank,
                load: considered.load,
                bound: considered.bound,
                rtt_us: considered.rtt_us.unwrap_or(0),
                standing: considered.standing.name().to_owned(),
            });
    let why = v1::FleetWhy {
        vm: Some(vm(&row, clock)),
        measured_host: measured_host.unwrap_or_default(),
        attached: attached.unwrap_or_default(),
        rule: rule.unwrap_or_default(),
        considered: considered.collect(),
        omitted: omitted as u64,
    };
    Ok(v1::FleetReply {
        why: Some(why),
        ..v1::FleetReply::default()
    })
}

fn drain(core: &mut Core, clock: Clock, drain: &v1::FleetDrain) -> Result<v1::FleetReply, String> {
    let on = !drain.undo;
    if !drain.appliance.is_empty() {
        let id = core.find_appliance(&drain.appliance);
        let id = id.ok_or_else(|| format!("no appliance {:?}", drain.appliance))?;
        core.order_drain(clock, id, on);
        return Ok(v1::FleetReply::default());
    }
    match core.find_hosts(&drain.host)[..] {
        [only] => {
            core.order_maintenance(clock, only, on);
            Ok(v1::FleetReply::default())
        }
        [] => Err(format!("no host {:?}", drain.host)),
        _ => Err(format!(
            "several hosts are called {:?}; use the id of one",
            drain.host
        )),
    }
}

fn events_after(core: &Core, ask: &v1::FleetEvents) -> v1::FleetReply {
    let limit = match ask.limit {
        0 => EVENTS_DEFAULT,
        limit => limit.min(EVENTS_MAX),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let events = core
        .events_after(ask.after, limit)
        .into_iter()
        .map(|event| v1::FleetEvent {
            id: event.id,
            at_ms: event.at_ms,
            kind: event.kind,
            text: event.text,
        });
    v1::FleetReply {
        events: events.collect(),
        ..v1::FleetReply::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleet_core::{CoreSettings, InventoryChange, Loaded, Power, SiteRules, VmRecord};

    fn at(seconds: u64) -> Clock {
        Clock {
            now: Duration::from_secs(seconds),
            wall_ms: 1_000_000 + seconds * 1000,
        }
    }

    #[test]
    fn of_two_turns_that_meet_one_is_under_way() {
        let moment = Duration::from_micros(400);
        let told = |begins_in, ends_in| {
            turn(&TurnRow {
                vm: "v1".into(),
                host: "h1".into(),
                kind: placement::WorkKind::Scan,
                begins_in,
                ends_in,
            })
        };
        let ending = told(Duration::ZERO, moment);
        let beginning = told(moment, moment * 2);
        assert_eq!((ending.begins_in_ms, ending.ends_in_ms), (0, 1));
        assert_eq!((beginning.begins_in_ms, beginning.ends_in_ms), (1, 1));
    }

    fn core() -> Core {
        let settings = CoreSettings::default();
        let loaded = Loaded::default();
        let mut core = Core::new(at(0), settings, SiteRules::default(), (1, 1), loaded);
        for id in ["v1", "v2", "v3"] {
            let record = VmRecord {
                id: id.into(),
                name: id.replace("v3", "v2"),
                host: None,
                power: Power::Running,
                migrating: false,
                uuid: None,
                addresses: Default::default(),
                tags: Default::default(),
                pool: None,
            };
            core.inventory(at(0), "kvm", InventoryChange::Vm(record));
        }
        core
    }

    fn said(vms: &[&str], state: &str, valid_s: u32) -> v1::FleetInSession {
        v1::FleetInSession {
            vms: vms.iter().map(|vm| (*vm).to_owned()).collect(),
            state: state.into(),
            valid_s,
        }
    }

    #[test]
    fn a_broker_says_who_works_and_it_counts_until_it_is_over() {
        const HOUR: Duration = Duration::from_secs(3600);
        let mut core = core();
        let session = |core: &Core, seconds| {
            let reply = why(core, at(seconds), "v1").unwrap();
            let vm = reply.why.unwrap().vm.unwrap();
            (vm.session, vm.session_until_ms)
        };
        assert_eq!(session(&core, 0), (String::new(), 0));
        in_session(&mut core, at(0), &said(&["v1"], "in_session", 0), HOUR).unwrap();
        assert_eq!(session(&core, 3599), ("in_session".into(), 4_600_000));
        assert_eq!(session(&core, 3600), (String::new(), 0));
        in_session(&mut core, at(10), &said(&["v1", "v3"], "idle", 60), HOUR).unwrap();
        assert_eq!(session(&core, 11), ("idle".into(), 1_070_000));
        in_session(&mut core, at(12), &said(&["v1"], "unknown", 0), HOUR).unwrap();
        assert_eq!(session(&core, 13), (String::new(), 0));
        let events = core.events_after(0, 100);
        let told = events.iter().filter(|event| event.kind == "vm_in_session");
        let told: Vec<&str> = told.map(|event| event.text.as_str()).collect();
        assert_eq!(
            told[..2],
            ["v1: in session for 3600 s", "v1, v2: idle for 60 s"]
        );
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn where_one_name_is_wrong_nothing_is_said_of_any() {
        let mut core = core();
        let wrong = [
            said(&["v1", "v9"], "in_session", 0),
            // Two are called so.
            said(&["v1", "v2"], "in_session", 0),
            said(&["v1"], "asleep", 0),
            said(&[], "idle", 0),
            said(&["v1"; PAGE + 1], "idle", 0),
        ];
        for said in wrong {
            let valid = Duration::from_secs(60);
            assert!(in_session(&mut core, at(0), &said, valid).is_err());
        }
        let rows = core.vm_rows(None, 0, 10);
        assert!(rows.iter().all(|row| row.stored.in_session.is_none()));
    }
}
