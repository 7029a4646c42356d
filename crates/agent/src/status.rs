//! What the agent says of itself, and how a person reads it.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use daemon::log::escape;
use serde_json::{Value, json};

use crate::control::{Subject, Tell};
use crate::gate::Gate;
use crate::membership::{self, Membership};
use crate::session::Peer;

/// Tells the status of this gate.
pub(crate) fn teller(
    gate: Arc<Gate>,
    peer: Arc<Mutex<Peer>>,
    membership: Arc<Membership>,
) -> Box<Tell> {
    Box::new(move |subject| {
        if subject == Subject::Trace {
            return gate.trace.json();
        }
        let peer = peer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tell(&gate, &peer, &membership)
    })
}

fn tell(gate: &Gate, peer: &Peer, membership: &Membership) -> Value {
    let snapshot = gate.snapshot();
    let ledger = gate.books.totals();
    let link = gate.client().map(link::client::Client::stats);
    let link = link.unwrap_or_default();
    let route = gate.client().map(link::client::Client::route);
    let connected_to = gate.client().and_then(link::client::Client::connected_to);
    let counters = &snapshot.counters;
    let (lists, recalled) = gate.allowlists();
    let lists = lists.iter().map(|list| {
        json!({
            "name": list.name,
            "serial": list.serial,
            "listed": list.listed,
            "revoked": list.revoked,
        })
    });
    let supervisor = gate.worker().map(|worker| {
        let tally = worker.tally();
        json!({
            "pid": worker.supervisor_pid(),
            "worker_pid": std::process::id(),
            "answered": tally.answered,
            "worker_starts": tally.worker_starts,
            "worker_hangs": tally.worker_hangs,
            "takeovers": tally.takeovers,
        })
    });
    let gap = &gate.gap;
    json!({
        "supervisor": supervisor,
        "unguarded": {
            "from_ms": gap.from_ms.load(Ordering::Relaxed),
            "length_ms": gap.length_ms(),
            "files": gap.files.load(Ordering::Relaxed),
            "swept": gap.is_swept.load(Ordering::Relaxed),
        },
        "version": env!("CARGO_PKG_VERSION"),
        "link": if snapshot.link_up { "up" } else { "down" },
        "appliance": peer.appliance,
        "connected_to": connected_to,
        "placement": route.map(|route| json!({
            "epoch": route.epoch(), "appliances": route.appliances(),
        })),
        "channel": gate.attached.get().map(|id| id.to_string()),
        "moves": link.moves,
        "generation": peer.generation,
        "trouble": peer.trouble,
        "bytes_sent": link.bytes_sent,
        "bytes_received": link.bytes_received,
        "events": gate.tally.events(),
        "opens": gate.tally.opens(),
        "openers": snapshot.openers,
        "in_flight": snapshot.in_flight,
        "queue_len": snapshot.queued,
        "kept": snapshot.kept,
        "cache": {
            "entries": snapshot.cached,
            "hits": counters.cache_hits,
            "misses": counters.cache_misses,
        },
        "probe": gate.probes.lock().unwrap_or_else(PoisonError::into_inner).json(),
        "standing": {
            "entries": snapshot.standing,
            "placed": counters.standing_placed,
            "refused": counters.standing_refused,
            "broken": counters.standing_broken,
            "displaced": counters.standing_displaced,
        },
        "allowlist": {
            "lists": lists.collect::<Value>(),
            "recalled": recalled,
            "refused": gate.tally.allowlists_refused.value(),
            "allowed": counters.allowlisted,
        },
        "reports": gate.filter_json(),
        "checks": counters.checks,
        "deadlines": counters.deadlines,
        "ledger": {
            "open_entries": ledger.open_entries,
            "entries_total": ledger.entries_total,
            "paid_total": ledger.paid_total,
            "overflow_total": ledger.overflow_total,
        },
        "identity": membership.json(),
    })
}

/// The status for people.
#[must_use]
pub(crate) fn render(status: &Value) -> String {
    let text = |key: &str| status[key].as_str().unwrap_or("").to_owned();
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let mut out = String::new();
    let _ = writeln!(out, "link       {}", text("link"));
    out.push_str(&membership::render(&status["identity"]));
    if !text("appliance").is_empty() {
        let _ = writeln!(
            out,
            "appliance  {}, generation {}",
            text("appliance"),
            text("generation")
        );
    }
    if !text("channel").is_empty() {
        let _ = writeln!(out, "channel    to the host, {}", text("channel"));
    }
    if !text("trouble").is_empty() {
        let _ = writeln!(out, "trouble    {}", text("trouble"));
    }
    let _ = writeln!(
        out,
        "opens      {} waiting, {} in flight, {} events seen, {} deadlines",
        number("/openers"),
        number("/in_flight"),
        number("/events"),
        number("/deadlines")
    );
    let _ = writeln!(
        out,
        "cache      {} verdicts, {} hits, {} misses",
        number("/cache/entries"),
        number("/cache/hits"),
        number("/cache/misses")
    );
    if number("/supervisor/pid") > 0 {
        let _ = writeln!(
            out,
            "supervisor process {}, {} workers started, {} hung, {} opens answered by it",
            number("/supervisor/pid"),
            number("/supervisor/worker_starts"),
            number("/supervisor/worker_hangs"),
            number("/supervisor/answered")
        );
    }
    if number("/unguarded/from_ms") > 0 {
        let _ = writeln!(
            out,
            "unguarded  for {} ms; {} files touched in it are judged",
            number("/unguarded/length_ms"),
            number("/unguarded/files")
        );
    }
    let _ = writeln!(
        out,
        "kernel     {} verdicts stand, {} taken down by writers, {} not placed",
        number("/standing/entries"),
        number("/standing/broken"),
        number("/standing/refused")
    );
    render_fast_paths(&mut out, &status["probe"]);
    for list in status["allowlist"]["lists"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let number = |key: &str| list[key].as_u64().unwrap_or(0);
        let _ = writeln!(
            out,
            "allowlist  {}, serial {}, {} listed, {} revoked",
            escape(list["name"].as_str().unwrap_or("").as_bytes()),
            number("serial"),
            number("listed"),
            number("revoked")
        );
    }
    if number("/allowlist/allowed") + number("/allowlist/recalled") > 0 {
        let _ = writeln!(
            out,
            "           {} files allowed by list, {} contents recalled",
            number("/allowlist/allowed"),
            number("/allowlist/recalled")
        );
    }
    render_reports(&mut out, &status["reports"]);
    let _ = writeln!(
        out,
        "ledger     {} open, {} paid of {}, {} that nobody can name",
        number("/ledger/open_entries"),
        number("/ledger/paid_total"),
        number("/ledger/entries_total"),
        number("/ledger/overflow_total")
    );
    let _ = writeln!(
        out,
        "wire       {} bytes sent, {} received",
        number("/bytes_sent"),
        number("/bytes_received")
    );
    out
}

fn render_reports(out: &mut String, reports: &Value) {
    let Some(filter) = reports["filter"].as_str() else {
        return;
    };
    let number = |key: &str| reports[key].as_u64().unwrap_or(0);
    let (literals, needles) = (number("literals"), number("needles"));
    let filter = escape(filter.as_bytes());
    let _ = writeln!(
        out,
        "filter     {filter}, {literals} literals, {needles} needles{}",
        if reports["in_force"] == true {
            ""
        } else {
            ", not the appliance's now"
        }
    );
    let _ = writeln!(
        out,
        "           {} reports of {} bytes sent, and {} bytes of content that they raised",
        number("sent"),
        number("bytes_sent"),
        number("range_bytes_sent")
    );
}

fn render_fast_paths(out: &mut String, probe: &Value) {
    for probed in probe.as_array().into_iter().flatten() {
        let text = |value: &Value| escape(value.as_str().unwrap_or("").as_bytes()).to_string();
        let (at, filesystem) = (text(&probed["at"]), text(&probed["filesystem"]));
        let _ = write!(out, "fast paths {at} ({filesystem}):");
        for (path, told) in probed["fast_paths"].as_object().into_iter().flatten() {
            let _ = write!(out, " {path} {}", text(told));
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_link_and_ledger() {
        let status = json!({ "link": "down", "trouble": "x: refused",
            "allowlist": { "lists": [{ "name": "gold", "serial": 7 }], "recalled": 2 },
            "reports": { "filter": "ab12", "literals": 9, "in_force": true, "sent": 4 },
            "ledger": { "open_entries": 3 } });
        let text = render(&status);
        assert!(text.contains("link       down"), "{text}");
        assert!(text.contains("trouble    x: refused"), "{text}");
        assert!(text.contains("allowlist  gold, serial 7"), "{text}");
        assert!(text.contains("2 contents recalled"), "{text}");
        assert!(text.contains("filter     ab12, 9 literals"), "{text}");
        assert!(text.contains("4 reports of"), "{text}");
        assert!(text.contains("ledger     3 open"), "{text}");
    }
}
