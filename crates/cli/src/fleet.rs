//! `lazaret fleet …`: tables, JSON, again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::log::escape;
use proto::v1;
use proto::v1::admin_reply::Body as Reply;
use proto::v1::admin_request::Body as Request;
use proto::v1::fleet_request::Ask;
use serde_json::{Value, json};

use crate::args::{FleetCommand, Live, SessionArgs, SessionState};
use crate::members;
use crate::place::Place;
use crate::show::{hex, time};

/// Pages that are asked for at most.
const PAGES_MAX: usize = 10_000;

/// Runs one command.
pub(crate) fn run(place: &Place, command: &FleetCommand) -> anyhow::Result<()> {
    match command {
        FleetCommand::Hosts(live) => again(*live, || {
            let hosts = hosts(place)?;
            Ok((host_table(&hosts), hosts.iter().map(host_json).collect()))
        }),
        FleetCommand::Vms { host, live } => again(*live, || {
            let vms = vms(place, host.as_deref())?;
            Ok((vm_table(&vms), vms.iter().map(vm_json).collect()))
        }),
        FleetCommand::Appliances(live) => again(*live, || {
            let appliances = appliances(place)?;
            let json = appliances.iter().map(appliance_json).collect();
            Ok((appliance_table(&appliances), json))
        }),
        FleetCommand::Turns { host, live } => again(*live, || {
            let turns = turns(place, host.as_deref())?;
            Ok((turn_table(&turns), turns.iter().map(turn_json).collect()))
        }),
        FleetCommand::Map(live) => again(*live, || {
            let (vms, appliances) = (vms(place, None)?, appliances(place)?);
            Ok(map(&vms, &appliances))
        }),
        FleetCommand::Why { vm, output } => {
            let reply = ask(place, Ask::Why(vm.clone()))?;
            let why = reply.why.context("no answer")?;
            print(output.json, why_text(&why), why_json(&why))
        }
        FleetCommand::Drain {
            appliance,
            host,
            undo,
        } => {
            let drain = v1::FleetDrain {
                appliance: appliance.clone().unwrap_or_default(),
                host: host.clone().unwrap_or_default(),
                undo: *undo,
            };
            ask(place, Ask::Drain(drain))?;
            let name = appliance.as_ref().or(host.as_ref()).map(String::as_str);
            let done = if *undo {
                "takes guests again"
            } else {
                "drains"
            };
            println!("{}: {done}", escape(name.unwrap_or_default().as_bytes()));
            Ok(())
        }
        FleetCommand::Session(args) => session(place, args),
        FleetCommand::Events { limit, live } => events(place, *limit, *live),
        FleetCommand::Pools(_)
        | FleetCommand::Pool(_)
        | FleetCommand::Pending(_)
        | FleetCommand::Approve { .. }
        | FleetCommand::Deny { .. }
        | FleetCommand::Members { .. }
        | FleetCommand::Revoke { .. } => members::run(place, command),
        FleetCommand::Identity { name } => {
            let reply = ask(place, Ask::ApplianceIdentity(name.clone()))?;
            print!("{}", reply.identity);
            Ok(())
        }
    }
}

fn session(place: &Place, args: &SessionArgs) -> anyhow::Result<()> {
    let (state, done) = match &args.state {
        SessionState { on: true, .. } => ("in_session", "in session"),
        SessionState { off: true, .. } => ("idle", "idle"),
        SessionState { .. } => ("unknown", "nobody says any more"),
    };
    let valid = args.valid.map_or(0, |valid| valid.as_secs());
    let said = v1::FleetInSession {
        vms: args.vms.clone(),
        state: state.to_owned(),
        valid_s: u32::try_from(valid).unwrap_or(u32::MAX),
    };
    ask(place, Ask::InSession(said))?;
    println!("{} VMs: {done}", args.vms.len());
    Ok(())
}

pub(crate) fn ask(place: &Place, ask: Ask) -> anyhow::Result<v1::FleetReply> {
    let request = Request::Fleet(v1::FleetRequest { ask: Some(ask) });
    match appliance::admin_call(&place.admin_socket(), request)? {
        Reply::Fleet(reply) => Ok(reply),
        _ => bail!("the running lazaret gave an answer of another kind; is it of another version?"),
    }
}

/// Every page of a list.
pub(crate) fn pages<T>(
    place: &Place,
    host: &str,
    kind: impl Fn(v1::FleetList) -> Ask,
    rows: impl Fn(v1::FleetReply) -> Vec<T>,
) -> anyhow::Result<Vec<T>> {
    let mut all = Vec::new();
    for _ in 0..PAGES_MAX {
        let list = v1::FleetList {
            host: host.to_owned(),
            skip: all.len() as u64,
        };
        let reply = ask(place, kind(list))?;
        let more = reply.more;
        all.extend(rows(reply));
        if !more {
            break;
        }
    }
    Ok(all)
}

fn hosts(place: &Place) -> anyhow::Result<Vec<v1::FleetHost>> {
    pages(place, "", Ask::Hosts, |reply| reply.hosts)
}

fn vms(place: &Place, host: Option<&str>) -> anyhow::Result<Vec<v1::FleetVm>> {
    pages(place, host.unwrap_or_default(), Ask::Vms, |reply| reply.vms)
}

fn appliances(place: &Place) -> anyhow::Result<Vec<v1::FleetAppliance>> {
    pages(place, "", Ask::Appliances, |reply| reply.appliances)
}

fn turns(place: &Place, host: Option<&str>) -> anyhow::Result<Vec<v1::FleetTurn>> {
    pages(place, host.unwrap_or_default(), Ask::Turns, |reply| {
        reply.turns
    })
}

fn print(as_json: bool, text: String, value: Value) -> anyhow::Result<()> {
    if as_json {
        return crate::json::print(&value);
    }
    print!("{text}");
    Ok(())
}

/// Once, or until interrupted.
pub(crate) fn again(
    live: Live,
    look: impl Fn() -> anyhow::Result<(String, Value)>,
) -> anyhow::Result<()> {
    let Some(seconds) = live.watch else {
        let (text, value) = look()?;
        return print(live.json, text, value);
    };
    loop {
        let (text, value) = look()?;
        if live.json {
            println!("{value}");
        } else {
            // Home, then clear what was there.
            print!("\x1b[H\x1b[2J{text}");
        }
        flush()?;
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn flush() -> anyhow::Result<()> {
    std::io::Write::flush(&mut std::io::stdout()).context("cannot write")
}

/// With --watch, what is new as it comes.
fn events(place: &Place, limit: u32, live: Live) -> anyhow::Result<()> {
    let mut after = 0;
    loop {
        let asked = v1::FleetEvents { after, limit };
        let events = ask(place, Ask::Events(asked))?.events;
        after = events.last().map_or(after, |event| event.id);
        if live.json && live.watch.is_none() {
            return crate::json::print(&events.iter().map(event_json).collect());
        }
        for event in &events {
            if live.json {
                println!("{}", event_json(event));
            } else {
                println!(
                    "{} {:<20} {}",
                    time(event.at_ms / 1000),
                    event.kind,
                    escape(event.text.as_bytes())
                );
            }
        }
        let Some(seconds) = live.watch else {
            return Ok(());
        };
        flush()?;
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

/// Columns as wide as they need to be.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    for row in std::iter::once(head).chain(rows) {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Text of a hypervisor or guest, safe for a terminal; a dash where there is none.
pub(crate) fn safe(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    escape(text.as_bytes()).to_string()
}

fn host_table(hosts: &[v1::FleetHost]) -> String {
    let rows = hosts.iter().map(|host| {
        let state = match (host.maintenance, host.reachable) {
            (true, _) => "maintenance",
            (false, true) => "up",
            (false, false) => "unreachable",
        };
        vec![
            safe(&host.name),
            safe(&host.site),
            safe(&host.cluster),
            state.to_owned(),
            format!("{}/{}", host.vms_awake, host.vms),
            safe(&host.appliances.join(" ")),
        ]
    });
    let head = ["HOST", "SITE", "CLUSTER", "STATE", "VMS", "APPLIANCES"];
    table(&head, rows.collect())
}

fn vm_table(vms: &[v1::FleetVm]) -> String {
    let rows = vms.iter().map(|vm| {
        vec![
            vm.number.to_string(),
            safe(&vm.name),
            safe(&vm.host),
            vm.state.clone(),
            safe(&vm.appliances.join(" ")),
            tier_name(vm.tier).to_owned(),
            safe(&vm.connected_to),
            safe(&vm.session.replace('_', " ")),
        ]
    });
    let head = [
        "NUMBER",
        "VM",
        "HOST",
        "STATE",
        "APPLIANCES",
        "NEARNESS",
        "CONNECTED",
        "SESSION",
    ];
    table(&head, rows.collect())
}

fn turn_table(turns: &[v1::FleetTurn]) -> String {
    let seconds = |ms: u64| format!("{} s", ms.div_ceil(1000));
    let rows = turns.iter().map(|turn| {
        let begins = match turn.begins_in_ms {
            0 => "now".to_owned(),
            ms => format!("in {}", seconds(ms)),
        };
        vec![
            safe(&turn.vm),
            safe(&turn.host),
            turn.kind.replace('_', " "),
            begins,
            format!("in {}", seconds(turn.ends_in_ms)),
        ]
    });
    let head = ["VM", "HOST", "WORK", "BEGINS", "ENDS"];
    table(&head, rows.collect())
}

fn appliance_table(appliances: &[v1::FleetAppliance]) -> String {
    let rows = appliances.iter().map(|appliance| {
        let share = appliance.load * 100 / appliance.bound.max(1);
        vec![
            safe(&appliance.name),
            safe(&appliance.address),
            safe(&appliance.host),
            appliance.availability.clone(),
            appliance.vms.to_string(),
            format!("{share} %"),
            appliance.capacity.to_string(),
            format!("{} ms", appliance.queue_ms),
        ]
    });
    let head = [
        "APPLIANCE",
        "ADDRESS",
        "HOST",
        "STATE",
        "VMS",
        "OF BOUND",
        "CAPACITY",
        "QUEUE",
    ];
    table(&head, rows.collect())
}

fn tier_name(tier: Option<u32>) -> &'static str {
    match tier {
        None => "none",
        Some(0) => "same host",
        Some(1) => "same cluster",
        Some(2) => "same site",
        Some(_) => "anywhere",
    }
}

/// Host → appliance → VMs on that host that it serves.
fn map(vms: &[v1::FleetVm], appliances: &[v1::FleetAppliance]) -> (String, Value) {
    let mut tree: BTreeMap<&str, BTreeMap<&str, Vec<&v1::FleetVm>>> = BTreeMap::new();
    for appliance in appliances {
        let host = tree.entry(&appliance.host).or_default();
        host.entry(&appliance.name).or_default();
    }
    for vm in vms {
        let first = vm.appliances.first().map_or("", String::as_str);
        tree.entry(&vm.host)
            .or_default()
            .entry(first)
            .or_default()
            .push(vm);
    }
    let mut text = String::new();
    for (host, served) in &tree {
        text.push_str(&format!("{}\n", safe(host)));
        for (appliance, vms) in served {
            text.push_str(&format!("  {}: {} VMs\n", safe(appliance), vms.len()));
            for vm in vms {
                text.push_str(&format!("    {} {}\n", safe(&vm.name), vm.state));
            }
        }
    }
    let json = tree.iter().map(|(host, served)| {
        let served = served.iter().map(|(appliance, vms)| {
            let vms: Vec<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
            json!({ "appliance": appliance, "vms": vms })
        });
        json!({ "host": host, "serves": served.collect::<Value>() })
    });
    (text, json.collect())
}

fn why_text(why: &v1::FleetWhy) -> String {
    let vm = why.vm.clone().unwrap_or_default();
    let mut text = format!(
        "{} ({}) on {}: {}; list {} ({})\n",
        safe(&vm.name),
        vm.state,
        safe(&vm.host),
        safe(&vm.appliances.join(" ")),
        vm.epoch,
        vm.cause
    );
    let until = || time(vm.session_until_ms / 1000);
    match vm.session.as_str() {
        "" => {}
        "in_session" => text.push_str(&format!(
            "somebody works at it, as is said until {}: its background work comes last\n",
            until()
        )),
        _ => text.push_str(&format!(
            "nobody works at it, as is said until {}\n",
            until()
        )),
    }
    if !why.measured_host.is_empty() {
        let host = safe(&why.measured_host);
        text.push_str(&format!("measured round trips say that it is on {host}\n"));
    }
    if !why.attached.is_empty() {
        let appliance = safe(&why.attached);
        text.push_str(&format!(
            "a channel of the hypervisor leads to {appliance}\n"
        ));
    }
    if !why.rule.is_empty() {
        text.push_str(&format!("rule {}\n", safe(&why.rule)));
    }
    let rows = why.considered.iter().map(|one| {
        let rtt = match one.rtt_us {
            0 => "-".to_owned(),
            rtt_us => format!("{rtt_us} µs"),
        };
        vec![
            safe(&one.appliance),
            one.standing.replace('_', " "),
            tier_name(Some(one.tier)).to_owned(),
            if one.in_scope { "yes" } else { "no" }.to_owned(),
            format!("{:.0}", one.rank),
            format!("{}/{}", one.load, one.bound),
            rtt,
        ]
    });
    let head = [
        "APPLIANCE",
        "STANDING",
        "NEARNESS",
        "IN SCOPE",
        "RANK",
        "LOAD/BOUND",
        "MEASURED",
    ];
    text.push_str(&table(&head, rows.collect()));
    if why.omitted > 0 {
        text.push_str(&format!("and {} more\n", why.omitted));
    }
    text
}

fn host_json(host: &v1::FleetHost) -> Value {
    json!({
        "name": host.name, "id": host.id, "connector": host.connector, "cluster": host.cluster,
        "site": host.site, "maintenance": host.maintenance, "reachable": host.reachable,
        "vms": host.vms, "vms_awake": host.vms_awake, "appliances": host.appliances,
    })
}

fn vm_json(vm: &v1::FleetVm) -> Value {
    json!({
        "number": vm.number, "name": vm.name, "id": vm.id, "connector": vm.connector,
        "host": vm.host, "state": vm.state, "guest_id": hex(&vm.guest_id),
        "appliances": vm.appliances, "epoch": vm.epoch, "cause": vm.cause, "tier": vm.tier,
        "connected_to": vm.connected_to, "session": vm.session,
        "session_until_ms": vm.session_until_ms,
    })
}

fn turn_json(turn: &v1::FleetTurn) -> Value {
    json!({
        "vm": turn.vm, "host": turn.host, "kind": turn.kind, "begins_in_ms": turn.begins_in_ms,
        "ends_in_ms": turn.ends_in_ms,
    })
}

fn appliance_json(appliance: &v1::FleetAppliance) -> Value {
    json!({
        "name": appliance.name, "address": appliance.address, "host": appliance.host,
        "availability": appliance.availability, "connected": appliance.connected,
        "load": appliance.load, "bound": appliance.bound, "capacity": appliance.capacity,
        "vms": appliance.vms, "queue_ms": appliance.queue_ms, "labels": appliance.labels,
    })
}

fn why_json(why: &v1::FleetWhy) -> Value {
    let considered = why.considered.iter().map(|one| {
        json!({
            "appliance": one.appliance, "standing": one.standing, "tier": one.tier,
            "in_scope": one.in_scope, "rank": one.rank, "load": one.load, "bound": one.bound,
            "rtt_us": one.rtt_us,
        })
    });
    json!({
        "vm": why.vm.as_ref().map(vm_json), "measured_host": why.measured_host,
        "attached": why.attached, "rule": why.rule, "considered": considered.collect::<Value>(), "omitted": why.omitted,
    })
}

fn event_json(event: &v1::FleetEvent) -> Value {
    json!({
        "id": event.id, "at_ms": event.at_ms, "at": time(event.at_ms / 1000),
        "kind": event.kind, "text": event.text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_do_not_reach_the_terminal() {
        let vm = v1::FleetVm {
            name: "a\x1b[31m\nb".into(),
            host: "h".into(),
            state: "running".into(),
            appliances: vec!["a1".into()],
            ..v1::FleetVm::default()
        };
        let text = vm_table(std::slice::from_ref(&vm));
        assert!(
            !text.contains('\x1b') && text.lines().count() == 2,
            "{text}"
        );
        let (tree, json) = map(&[vm], &[]);
        assert!(
            !tree.contains('\x1b') && tree.lines().count() == 3,
            "{tree}"
        );
        assert_eq!(json[0]["host"], "h");
        assert_eq!(json[0]["serves"][0]["appliance"], "a1");
    }

    #[test]
    fn a_turn_says_when_it_begins_and_ends() {
        let turn = |begins_in_ms| v1::FleetTurn {
            vm: "v1".into(),
            host: "h1".into(),
            kind: "content_update".into(),
            begins_in_ms,
            ends_in_ms: 60_001,
        };
        let text = turn_table(&[turn(0), turn(1500)]);
        let expected = "VM  HOST  WORK            BEGINS  ENDS\n\
                        v1  h1    content update  now     in 61 s\n\
                        v1  h1    content update  in 2 s  in 61 s\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let text = table(&["A", "LONG"], vec![vec!["wide".into(), "x".into()]]);
        assert_eq!(text, "A     LONG\nwide  x\n");
    }
}
