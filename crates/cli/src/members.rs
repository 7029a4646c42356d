//! `lazaret fleet pools | pool | pending | approve | deny | members | revoke`.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use proto::v1;
use proto::v1::fleet_request::Ask;
use serde_json::{Value, json};

use crate::args::{FleetCommand, PoolArgs, PoolCommand};
use crate::fleet::{again, ask, pages, safe, table};
use crate::place::Place;
use crate::show::{hex, time};

/// Digits of an id that a table shows: enough to tell them apart.
const ID_DIGITS: usize = 12;
/// Pages that are asked for at most.
const PAGES_MAX: usize = 10_000;

/// Runs one of these commands.
pub(crate) fn run(place: &Place, command: &FleetCommand) -> anyhow::Result<()> {
    match command {
        FleetCommand::Pools(live) => again(*live, || {
            let pools = pages(place, "", Ask::Pools, |reply| reply.pools)?;
            Ok((pool_table(&pools), pools.iter().map(pool_json).collect()))
        }),
        FleetCommand::Pool(PoolCommand::Set(args)) => {
            ask(place, Ask::PoolSet(pool_of(args)?))?;
            println!("{}: set", args.name);
            Ok(())
        }
        FleetCommand::Pool(PoolCommand::Remove { name }) => {
            ask(place, Ask::PoolRemove(name.clone()))?;
            println!("{name}: removed");
            Ok(())
        }
        FleetCommand::Pending(live) => again(*live, || {
            let waiting = pages(place, "", Ask::Pending, |reply| reply.pending)?;
            let json = waiting.iter().map(pending_json).collect();
            Ok((pending_table(&waiting), json))
        }),
        FleetCommand::Approve { id, replace } => decide(place, id, false, *replace),
        FleetCommand::Deny { id } => decide(place, id, true, false),
        FleetCommand::Members { pool, live } => again(*live, || {
            let members = members(place, pool.as_deref().unwrap_or_default())?;
            let json = members.iter().map(member_json).collect();
            Ok((member_table(&members), json))
        }),
        FleetCommand::Revoke {
            guest,
            with_copies,
            reason,
        } => {
            let revoke = v1::FleetRevoke {
                guest_id: guest.0.to_vec(),
                reason: reason.clone(),
                with_copies: *with_copies,
            };
            let revoked = ask(place, Ask::Revoke(revoke))?.revoked;
            match with_copies {
                true => println!("{guest}: revoked; {revoked} guests with its copies"),
                false => println!("{guest}: revoked"),
            }
            Ok(())
        }
        // The others are about where things are.
        _ => Ok(()),
    }
}

fn pool_of(args: &PoolArgs) -> anyhow::Result<v1::FleetPool> {
    Ok(v1::FleetPool {
        name: args.name.clone(),
        ephemeral: args.ephemeral,
        proof: args.proof.name().to_owned(),
        ranges: args.ranges.clone(),
        tags: args.tags.clone(),
        clusters: args.clusters.clone(),
        guests_max: args.guests_max,
        tpm_cas: tpm_cas(&args.tpm_cas)?,
        ..v1::FleetPool::default()
    })
}

/// The certificates (DER) in these files, each of which may be a CA's.
fn tpm_cas(files: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut cas = Vec::new();
    for file in files {
        for (number, ca) in (1..).zip(pki::load_anchors(file)?) {
            let name = || format!("{}: certificate {number}", file.display());
            tpm::check_ca(&ca).with_context(name)?;
            cas.push(ca.to_vec());
        }
    }
    Ok(cas)
}

fn decide(place: &Place, id: &str, deny: bool, replace: bool) -> anyhow::Result<()> {
    let id = id.to_owned();
    let decision = v1::FleetDecision { id, deny, replace };
    let reply = ask(place, Ask::Decide(decision))?;
    let done = if deny { "denied" } else { "approved" };
    for entry in &reply.pending {
        let name = safe(&entry.hostname);
        let rivals: Vec<String> = entry.rivals.iter().map(|it| hex(it)).collect();
        if !replace {
            println!("{} {name}: {done}", entry.id);
            continue;
        }
        // One of an earlier version knows neither.
        ensure!(
            !rivals.is_empty(),
            "{}: approved beside whoever is there: the controller cannot replace guests",
            entry.id
        );
        println!("{} {name}: approved for {}", entry.id, rivals.join(", "));
    }
    Ok(())
}

fn members(place: &Place, pool: &str) -> anyhow::Result<Vec<v1::FleetMember>> {
    let mut all: Vec<v1::FleetMember> = Vec::new();
    for _ in 0..PAGES_MAX {
        let list = v1::FleetMembers {
            pool: pool.to_owned(),
            skip: all.len() as u64,
        };
        let reply = ask(place, Ask::Members(list))?;
        all.extend(reply.members);
        if !reply.more {
            break;
        }
    }
    Ok(all)
}

fn pool_table(pools: &[v1::FleetPool]) -> String {
    let rows = pools.iter().map(|pool| {
        let scope: Vec<String> = [
            ("range", &pool.ranges),
            ("tag", &pool.tags),
            ("cluster", &pool.clusters),
        ]
        .iter()
        .flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind}:{name}")))
        .chain(pool.tpm_ca_fingerprints.iter().map(|ca| {
            let digits: String = hex(ca).chars().take(ID_DIGITS).collect();
            format!("tpm-ca:{digits}")
        }))
        .collect();
        let members = match pool.guests_max {
            0 => pool.members.to_string(),
            max => format!("{}/{max}", pool.members),
        };
        vec![
            safe(&pool.name),
            pool.proof.clone(),
            if pool.ephemeral {
                "ephemeral"
            } else {
                "persistent"
            }
            .to_owned(),
            members,
            safe(&scope.join(" ")),
        ]
    });
    let head = ["POOL", "PROOF", "MACHINES", "MEMBERS", "SCOPE"];
    table(&head, rows.collect())
}

fn pending_table(waiting: &[v1::FleetPending]) -> String {
    let rows = waiting.iter().map(|entry| {
        vec![
            entry.id.chars().take(ID_DIGITS).collect(),
            safe(&entry.pool),
            safe(&entry.hostname),
            safe(&entry.address),
            time(entry.asked_at_s),
            entry.decision.clone(),
            safe(&entry.why),
        ]
    });
    let head = [
        "ID",
        "POOL",
        "HOST NAME",
        "ADDRESS",
        "ASKED",
        "DECISION",
        "WHY",
    ];
    table(&head, rows.collect())
}

fn member_table(members: &[v1::FleetMember]) -> String {
    let rows = members.iter().map(|member| {
        vec![
            hex(&member.guest_id),
            safe(&member.hostname),
            safe(&member.pool),
            safe(&member.address),
            safe(&member.vm),
            time(member.joined_at_s),
            member.serial.to_string(),
            member.state.clone(),
            safe(&member.why),
        ]
    });
    let head = [
        "GUEST",
        "HOST NAME",
        "POOL",
        "ADDRESS",
        "VM",
        "JOINED",
        "CERTIFICATES",
        "STATE",
        "WHY",
    ];
    table(&head, rows.collect())
}

fn pool_json(pool: &v1::FleetPool) -> Value {
    json!({
        "name": pool.name, "proof": pool.proof, "ephemeral": pool.ephemeral,
        "ranges": pool.ranges, "tags": pool.tags, "clusters": pool.clusters,
        "guests_max": pool.guests_max, "members": pool.members,
        "tpm_cas": pool.tpm_ca_fingerprints.iter().map(|ca| hex(ca)).collect::<Vec<_>>(),
    })
}

fn pending_json(entry: &v1::FleetPending) -> Value {
    json!({
        "id": entry.id, "pool": entry.pool, "hostname": entry.hostname,
        "address": entry.address, "system_uuid": hex(&entry.system_uuid),
        "asked_at": time(entry.asked_at_s), "asked_at_s": entry.asked_at_s, "why": entry.why,
        "decision": entry.decision, "copy_of": hex(&entry.copy_of),
        "rivals": entry.rivals.iter().map(|it| hex(it)).collect::<Value>(),
    })
}

fn member_json(member: &v1::FleetMember) -> Value {
    json!({
        "guest_id": hex(&member.guest_id), "hostname": member.hostname,
        "address": member.address, "pool": member.pool, "ephemeral": member.ephemeral,
        "system_uuid": hex(&member.system_uuid), "generation_id": hex(&member.generation_id),
        "vm": member.vm, "joined_at": time(member.joined_at_s),
        "joined_at_s": member.joined_at_s, "serial": member.serial,
        "key_id": hex(&member.key_id), "certified_until_s": member.certified_until_s,
        "state": member.state, "ended_at_s": member.ended_at_s, "why": member.why,
        "copy_of": hex(&member.copy_of),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_ca_is_said_with_its_file_and_nothing_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let ca = pki::Ca::init(dir.path()).unwrap();
        let validity = pki::Validity::starting(std::time::SystemTime::now(), pki::LIFETIME);
        let other = ca.issue_appliance("a", validity).unwrap();
        let file = dir.path().join("tpms.pem");
        let write = |certificates: &[pki::CertificateDer<'_>]| {
            pki::save_anchors(&file, certificates).unwrap();
            tpm_cas(std::slice::from_ref(&file))
        };
        assert_eq!(write(&[ca.cert().clone()]).unwrap(), [ca.cert().to_vec()]);
        let wrong = format!(
            "{:#}",
            write(&[ca.cert().clone(), other.chain[0].clone()]).unwrap_err()
        );
        assert!(
            wrong.contains("tpms.pem: certificate 2: it is not a CA's"),
            "{wrong}"
        );
        std::fs::write(&file, "nothing").unwrap();
        let wrong = format!("{:#}", tpm_cas(std::slice::from_ref(&file)).unwrap_err());
        assert!(
            wrong.contains("tpms.pem") && wrong.contains("no PEM certificate"),
            "{wrong}"
        );
        std::fs::remove_file(&file).unwrap();
        let wrong = format!("{:#}", tpm_cas(&[file]).unwrap_err());
        assert!(wrong.contains("tpms.pem"), "{wrong}");
    }

    #[test]
    fn hostile_names_do_not_reach_the_terminal() {
        let name = "a\x1b[31m\nb".to_owned();
        let entry = v1::FleetPending {
            id: "ab".repeat(16),
            hostname: name.clone(),
            why: name.clone(),
            ..v1::FleetPending::default()
        };
        let member = v1::FleetMember {
            hostname: name.clone(),
            vm: name.clone(),
            why: name.clone(),
            ..v1::FleetMember::default()
        };
        let pool = v1::FleetPool {
            name: name.clone(),
            tags: vec![name],
            ..v1::FleetPool::default()
        };
        for text in [
            pending_table(&[entry]),
            member_table(&[member]),
            pool_table(&[pool]),
        ] {
            assert!(
                !text.contains('\x1b') && text.lines().count() == 2,
                "{text}"
            );
        }
    }
}
