//! Answers of the controller about who belongs to the fleet.

use std::time::SystemTime;

use controller::{Authority, Decision, Member, Pending, Pool, TpmCa, Word};
use model::GuestId;
use proto::v1;
use proto::v1::fleet_request::Ask;

use crate::desk::{page, page_of};

/// Members in one reply, which must fit a frame: some of their texts are hostile and long.
const MEMBERS_PAGE: usize = 500;
/// Pools in one reply, which must fit a frame, too.
const POOLS_PAGE: usize = 100;
/// Longest reason of a revocation.
const REASON_MAX_BYTES: usize = 255;

/// Answers; `None`: it is not about that.
pub(crate) async fn answer(
    authority: &Authority,
    ask: &Ask,
) -> Option<Result<v1::FleetReply, String>> {
    let now = SystemTime::now();
    let done = |done: Result<(), controller::AuthorityError>| {
        done.map(|()| v1::FleetReply::default())
            .map_err(|error| error.to_string())
    };
    Some(match ask {
        Ask::Pools(list) => Ok(page_of(
            POOLS_PAGE,
            &authority.pools(),
            list.skip,
            |reply, (it, members)| {
                reply.pools.push(pool(it, *members));
            },
        )),
        Ask::PoolSet(pool) => match read_pool(pool) {
            Ok(pool) => done(authority.set_pool(pool, now).await),
            Err(problem) => Err(problem),
        },
        Ask::PoolRemove(name) => done(authority.remove_pool(name, now).await),
        Ask::Pending(list) => Ok(page(&authority.pending(now), list.skip, |reply, row| {
            reply.pending.push(pending(row));
        })),
        Ask::Decide(decision) => decide(authority, decision, now).await,
        Ask::Members(list) => {
            let only = (!list.pool.is_empty()).then_some(list.pool.as_str());
            let skip = usize::try_from(list.skip).unwrap_or(usize::MAX);
            // One more than is shown: whether there are more.
            let rows = authority.guests_page(only, skip, MEMBERS_PAGE + 1);
            Ok(page_of(MEMBERS_PAGE, &rows, 0, |reply, row| {
                reply.members.push(member(row));
            }))
        }
        Ask::Revoke(revoke) => self::revoke(authority, revoke, now).await,
        _ => return None,
    })
}

async fn decide(
    authority: &Authority,
    decision: &v1::FleetDecision,
    now: SystemTime,
) -> Result<v1::FleetReply, String> {
    let waiting = authority.pending(now);
    let meant: Vec<&Pending> = waiting
        .iter()
        .filter(|entry| !decision.id.is_empty() && entry.id.starts_with(&decision.id))
        .collect();
    let entry = match meant[..] {
        [only] => only,
        [] => return Err(format!("no machine {:?} waits", decision.id)),
        _ => {
            return Err(format!(
                "several machines begin with {:?}; use more digits",
                decision.id
            ));
        }
    };
    let word = match (decision.deny, decision.replace) {
        (true, false) => Word::No,
        (false, false) => Word::Yes,
        (false, true) => Word::YesInPlace,
        (true, true) => return Err("a machine that is denied replaces nobody".to_owned()),
    };
    let decided = authority.decide(&entry.id, word, now).await;
    decided.map_err(|error| error.to_string())?;
    Ok(v1::FleetReply {
        pending: vec![pending(entry)],
        ..v1::FleetReply::default()
    })
}

async fn revoke(
    authority: &Authority,
    revoke: &v1::FleetRevoke,
    now: SystemTime,
) -> Result<v1::FleetReply, String> {
    let guest = GuestId::from_slice(&revoke.guest_id);
    let guest = guest.ok_or("a guest's id has 32 hexadecimal digits")?;
    if revoke.reason.len() > REASON_MAX_BYTES {
        return Err(format!("a reason has at most {REASON_MAX_BYTES} bytes"));
    }
    let revoked = authority.revoke(guest, revoke.with_copies, &revoke.reason, now);
    let revoked = revoked.await.map_err(|error| error.to_string())?;
    let revoked = revoked.ok_or_else(|| format!("no guest {guest}"))?;
    Ok(v1::FleetReply {
        revoked: revoked.len() as u64,
        ..v1::FleetReply::default()
    })
}

fn pool(pool: &Pool, members: usize) -> v1::FleetPool {
    v1::FleetPool {
        name: pool.name.clone(),
        ephemeral: pool.ephemeral,
        proof: pool.proof.name().to_owned(),
        ranges: pool.ranges.iter().map(ToString::to_string).collect(),
        tags: pool.tags.clone(),
        clusters: pool.clusters.clone(),
        guests_max: pool.guests_max,
        members: members as u64,
        tpm_cas: Vec::new(),
        tpm_ca_fingerprints: pool
            .tpm_cas
            .iter()
            .map(|ca| ca.fingerprint().0.to_vec())
            .collect(),
    }
}

fn read_pool(pool: &v1::FleetPool) -> Result<Pool, String> {
    let ranges = pool.ranges.iter().map(|text| {
        let wrong = |_| format!("{text:?} is no range of addresses, such as 10.1.0.0/16");
        text.parse().map_err(wrong)
    });
    Ok(Pool {
        name: pool.name.clone(),
        ephemeral: pool.ephemeral,
        proof: pool.proof.parse()?,
        ranges: ranges.collect::<Result<_, String>>()?,
        tags: pool.tags.clone(),
        clusters: pool.clusters.clone(),
        guests_max: pool.guests_max,
        tpm_cas: pool
            .tpm_cas
            .iter()
            .map(|ca| TpmCa(ca.as_slice().into()))
            .collect(),
    })
}

fn bytes(id: Option<[u8; 16]>) -> Vec<u8> {
    id.map_or_else(Vec::new, |id| id.to_vec())
}

fn pending(entry: &Pending) -> v1::FleetPending {
    let decision = match entry.decision {
        Decision::Waiting => "waiting",
        Decision::Approved => "approved",
        Decision::Denied => "denied",
    };
    v1::FleetPending {
        id: entry.id.clone(),
        pool: entry.pool.clone().unwrap_or_default(),
        hostname: entry.hostname.clone(),
        address: entry.address.to_string(),
        system_uuid: bytes(entry.machine.system_uuid),
        asked_at_s: entry.asked_s,
        why: entry.why.clone(),
        decision: decision.to_owned(),
        copy_of: bytes(entry.copy_of.map(|guest| guest.0)),
        rivals: entry.rivals.iter().map(|it| it.0.to_vec()).collect(),
    }
}

fn member(member: &Member) -> v1::FleetMember {
    let state = match &member.ended {
        None => "active",
        Some(ended) if ended.revoked => "revoked",
        Some(_) => "retired",
    };
    let ended = member.ended.as_ref();
    let keys = member.key.iter().chain(&member.issued);
    v1::FleetMember {
        guest_id: member.id.0.to_vec(),
        hostname: member.hostname.clone(),
        address: member.address.to_string(),
        pool: member.pool.clone().unwrap_or_default(),
        ephemeral: member.ephemeral,
        system_uuid: bytes(member.machine.system_uuid),
        generation_id: bytes(member.machine.generation_id),
        vm: member
            .vm
            .as_ref()
            .map_or_else(String::new, |vm| vm.name.clone()),
        joined_at_s: member.joined_s,
        serial: member.serial,
        key_id: bytes(member.key.map(|key| key.id.0)),
        certified_until_s: keys.map(|key| key.until_s).max().unwrap_or(0),
        state: state.to_owned(),
        ended_at_s: ended.map_or(0, |ended| ended.at_s),
        why: ended.map_or_else(String::new, |ended| ended.why.clone()),
        copy_of: bytes(member.copy_of.map(|guest| guest.0)),
    }
}
