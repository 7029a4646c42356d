//! Who may join, who waits, who is refused.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use fleet_core::VmSeen;
use model::{GuestId, Machine};
use pki::{KeyId, SecretHash};

use super::pool::{Pool, Proof};
use super::records::{Decision, KeyRecord, Member, Pending, TokenInfo, VmRef, seconds};
use super::state::Members;
use crate::Refusal;
use crate::endorsement::{Tpm, TpmShown};

/// Requests that wait at once, of one pool.
pub(crate) const PENDING_POOL_MAX: usize = 1000;
/// Of those, from one address.
pub(crate) const PENDING_ADDRESS_MAX: usize = 32;
/// A request that nobody decides on is forgotten after this; an agent that still asks comes anew.
pub(crate) const PENDING_LIFE: Duration = Duration::from_secs(3 * 24 * 3600);

/// A machine that asks to join.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) token: SecretHash,
    /// The key that it asks for a certificate with; it was seen to hold it.
    pub(crate) key: KeyId,
    pub(crate) hostname: String,
    pub(crate) machine: Machine,
    pub(crate) from: IpAddr,
    /// VMs that connectors report with the uuid that the machine shows.
    pub(crate) vms: Vec<VmSeen>,
    /// What it showed of its TPM.
    pub(crate) tpm: TpmShown,
    pub(crate) now: SystemTime,
}

impl Asked {
    /// What its request is called while it waits: of this key and this token, so that whoever comes
    /// with another token has a request of its own.
    pub(crate) fn waits_as(&self) -> String {
        let what = [&self.key.0[..], self.token.to_string().as_bytes()].concat();
        waiting_id(&what)
    }
}

/// What a request is called that waits, by what tells it from others: as long as a key's id.
pub(crate) fn waiting_id(what: &[u8]) -> String {
    let mut id = pki::Fingerprint::of(what).to_string();
    id.truncate(2 * size_of::<KeyId>());
    id
}

/// What is to become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It is a member already, and its answer was lost on the way.
    /// Its certificate ends when the first one did.
    Again { guest: GuestId, until_s: u64 },
    /// It joins.
    Join {
        pool: Option<Pool>,
        /// The VM that it was proved to be in.
        vm: Option<VmRef>,
        /// The token with one use less; `None`: that use was spent before.
        token: Option<TokenInfo>,
        /// Members whose place it takes: they were in that VM, or had its TPM.
        replaced: Vec<GuestId>,
    },
    /// It waits, as it did before.
    Wait,
    /// It begins to wait.
    Queue(Pending),
}

/// Decides.
pub(crate) fn plan(members: &Members, asked: &Asked) -> Result<Plan, Refusal> {
    let token = members.token(&asked.token).ok_or(Refusal::Token)?;
    let hash = asked.token.to_string();
    if let Some(member) = members.with_key(asked.key) {
        return again(member, &hash, asked);
    }
    let entry = members.pending(&asked.waits_as());
    let entry = entry.filter(|entry| !is_over(entry, asked.now));
    let approved = entry.is_some_and(|entry| entry.decision == Decision::Approved);
    if !approved && !token.is_good(asked.now) {
        return Err(Refusal::Token);
    }
    if entry.is_some_and(|entry| entry.decision == Decision::Denied) {
        return Err(Refusal::Denied);
    }
    let pool = match &token.pool {
        Some(name) => Some(members.pool(name).ok_or(Refusal::NoPool)?),
        None => None,
    };
    if pool.is_some_and(|pool| !pool.takes_from(asked.from)) {
        return Err(Refusal::Range);
    }
    let shown = proof(members, asked, token, pool)?;
    let shown = match entry.filter(|_| approved) {
        Some(entry) => shown.by_word(entry),
        None => shown,
    };
    let (why, rivals) = match shown {
        Shown::Enough { vm, replaced } => {
            has_room(members, pool, &replaced)?;
            return Ok(Plan::Join {
                pool: pool.cloned(),
                vm,
                token: (!approved).then(|| one_less(token)),
                replaced,
            });
        }
        Shown::Taken { why, by, .. } => (why, by),
        Shown::TooLittle(why) => (why, Vec::new()),
    };
    match entry {
        // In whose place it is may be seen later than it asked first. Who was named stays named: a
        // person may be about to answer.
        Some(entry) if !approved && entry.rivals.is_empty() && !rivals.is_empty() => {
            Ok(Plan::Queue(Pending {
                why,
                rivals,
                ..entry.clone()
            }))
        }
        Some(_) => Ok(Plan::Wait),
        None => {
            let waiting = waiting(asked, token, why, rivals);
            may_wait(members, &waiting, asked.now)?;
            Ok(Plan::Queue(waiting))
        }
    }
}

fn waiting(asked: &Asked, token: &TokenInfo, why: String, rivals: Vec<GuestId>) -> Pending {
    Pending {
        id: asked.waits_as(),
        pool: token.pool.clone(),
        token: asked.token.to_string(),
        copy_of: None,
        hostname: asked.hostname.clone(),
        machine: asked.machine.clone(),
        address: asked.from,
        asked_s: seconds(asked.now),
        why,
        rivals,
        decision: Decision::Waiting,
        replaces: false,
    }
}

/// Whoever holds the key of a member and knows the token that it joined with is that member, as
/// long as the certificate would be good that it may have lost.
fn again(member: &Member, token: &str, asked: &Asked) -> Result<Plan, Refusal> {
    if member.ended.is_some() {
        return Err(Refusal::Revoked);
    }
    if member.token != token {
        return Err(Refusal::Token);
    }
    let mut keys = member.key.iter().chain(&member.issued);
    let own = keys.find(|key| key.id == asked.key);
    match own.filter(|key| key.until_s > seconds(asked.now)) {
        Some(KeyRecord { until_s, .. }) => Ok(Plan::Again {
            guest: member.id,
            until_s: *until_s,
        }),
        None => Err(Refusal::Expired),
    }
}

/// What a machine has shown.
enum Shown {
    Enough {
        vm: Option<VmRef>,
        replaced: Vec<GuestId>,
    },
    /// Enough, but these guests are in its place, and only a person can say that they are gone.
    Taken {
        vm: Option<VmRef>,
        by: Vec<GuestId>,
        why: String,
    },
    /// Why that is not enough, for people.
    TooLittle(String),
}

impl Shown {
    /// Of a machine that a person let in. One that is to take others' place waits until it is seen to
    /// be there, and nobody goes of whom that person did not know.
    fn by_word(self, approved: &Pending) -> Self {
        match self {
            Self::Taken { vm, mut by, .. } if approved.replaces => {
                by.retain(|guest| approved.rivals.contains(guest));
                Self::Enough { vm, replaced: by }
            }
            Self::TooLittle(_) | Self::Taken { .. } if !approved.replaces => Self::Enough {
                vm: None,
                replaced: Vec::new(),
            },
            shown => shown,
        }
    }
}

fn proof(
    members: &Members,
    asked: &Asked,
    token: &TokenInfo,
    pool: Option<&Pool>,
) -> Result<Shown, Refusal> {
    if let Some(vm) = &token.vm {
        let is_there = |seen: &&VmSeen| vm.is(&seen.connector, &seen.id);
        // Without a uuid that it shows, the token alone speaks for it.
        if asked.machine.system_uuid.is_some() && !asked.vms.iter().any(|seen| is_there(&seen)) {
            return Err(Refusal::OtherVm);
        }
        return Ok(Shown::Enough {
            vm: Some(vm.clone()),
            replaced: members_in(members, vm),
        });
    }
    let enough = Shown::Enough {
        vm: None,
        replaced: Vec::new(),
    };
    match pool.map(|pool| (pool, pool.proof)) {
        None | Some((_, Proof::Token)) => Ok(enough),
        Some((_, Proof::Approval)) => Ok(Shown::TooLittle("this pool asks a person".to_owned())),
        Some((pool, Proof::Inventory)) => Ok(in_inventory(members, asked, pool)),
        Some((pool, Proof::Tpm)) => Ok(by_tpm(members, asked, pool)),
    }
}

fn too_little(why: &str) -> Shown {
    Shown::TooLittle(why.to_owned())
}

/// A TPM that its hypervisor's CA vouches for, and no other guest's. Where its certificate names a
/// VM, the machine has to be that one.
fn by_tpm(members: &Members, asked: &Asked, pool: &Pool) -> Shown {
    let tpm = match &asked.tpm {
        TpmShown::Proved(tpm) => tpm,
        TpmShown::TooLittle(why) => return too_little(why),
        TpmShown::NotAsked => return too_little("its TPM was not asked for"),
    };
    if !pool.tpm_cas.contains(&tpm.ca) {
        return too_little("the CA of its TPM was taken from this pool while it asked");
    }
    if tpm.vm_uuid.is_some() && tpm.vm_uuid != asked.machine.system_uuid {
        return too_little("its TPM is that of a VM with another SMBIOS UUID");
    }
    let vm = running_vm(asked, tpm);
    let is_scoped = !pool.tags.is_empty() || !pool.clusters.is_empty();
    if is_scoped && tpm.vm_uuid.is_none() {
        return too_little(
            "its TPM names no VM, and this pool is of VMs with a tag or in a cluster",
        );
    }
    if is_scoped && !vm.is_some_and(|vm| is_of_scope(vm, pool)) {
        return too_little("no connector reports that the VM of its TPM runs and is of this pool");
    }
    let with_it: Vec<&Member> = members.active_with(tpm.ek).collect();
    if let (true, Some(revoked)) = (with_it.is_empty(), members.revoked_with(tpm.ek)) {
        return Shown::TooLittle(format!("a guest with this TPM was revoked: {revoked}"));
    }
    // A VM that was copied with its TPM is another machine, which runs beside the first.
    let uuid = asked.machine.system_uuid;
    let is_this_one = |it: &&Member| uuid.is_some() && it.machine.system_uuid == uuid;
    let are_this_one = with_it.iter().all(is_this_one);
    let with_it: Vec<GuestId> = with_it.iter().map(|member| member.id).collect();
    let with_tpm = "a guest joined with this TPM already";
    if let (false, [other, ..]) = (are_this_one, &with_it[..]) {
        return Shown::TooLittle(format!("{with_tpm}: {other}"));
    }
    let what = if with_it.is_empty() { IN_VM } else { with_tpm };
    // Who has shown no more than that VM's UUID counts for less than its TPM.
    let in_vm = vm.map_or_else(Vec::new, |vm| members_in(members, &vm_ref(vm)));
    in_place_of(
        [in_vm, with_it].concat(),
        vm.map(vm_ref),
        what,
        members,
        pool,
    )
}

const IN_VM: &str = "its VM has a guest already";

/// Of a machine that has shown enough, where these guests are in its place.
fn in_place_of(
    mut by: Vec<GuestId>,
    vm: Option<VmRef>,
    what: &str,
    members: &Members,
    pool: &Pool,
) -> Shown {
    by.sort_unstable();
    by.dedup();
    if take_over(members, pool, &by) {
        return Shown::Enough { vm, replaced: by };
    }
    let names: Vec<String> = by.iter().map(GuestId::to_string).collect();
    let why = format!("{what}: {}", names.join(", "));
    Shown::Taken { vm, by, why }
}

/// The VM that a TPM was made for, where connectors report one that runs, and not two.
fn running_vm<'a>(asked: &'a Asked, tpm: &Tpm) -> Option<&'a VmSeen> {
    tpm.vm_uuid?;
    let mut running = asked.vms.iter().filter(|vm| vm.is_running);
    match (running.next(), running.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

fn in_inventory(members: &Members, asked: &Asked, pool: &Pool) -> Shown {
    if asked.machine.system_uuid.is_none() {
        return too_little("it shows no SMBIOS UUID");
    }
    if asked.vms.is_empty() {
        return too_little("no connector reports a VM with its SMBIOS UUID");
    }
    let mut there = asked
        .vms
        .iter()
        .filter(|vm| vm.addresses.contains(&asked.from));
    let (Some(vm), None) = (there.next(), there.next()) else {
        return too_little("no connector reports its address for the VM with its SMBIOS UUID");
    };
    if !vm.is_running {
        return too_little("the VM with its SMBIOS UUID does not run");
    }
    if !is_of_scope(vm, pool) {
        return too_little("its VM does not belong to this pool");
    }
    in_place_of(
        guests_in(members, vm),
        Some(vm_ref(vm)),
        IN_VM,
        members,
        pool,
    )
}

fn is_of_scope(vm: &VmSeen, pool: &Pool) -> bool {
    let has_tag = pool.tags.is_empty() || pool.tags.iter().any(|tag| vm.tags.contains(tag));
    let cluster = vm.cluster.as_ref();
    let is_in_cluster =
        pool.clusters.is_empty() || cluster.is_some_and(|it| pool.clusters.contains(it));
    has_tag && is_in_cluster
}

fn vm_ref(vm: &VmSeen) -> VmRef {
    VmRef {
        connector: vm.connector.clone(),
        id: vm.id.clone(),
        name: vm.name.clone(),
    }
}

/// Guests that are in a VM: by proof, or as the placer sees it.
fn guests_in(members: &Members, vm: &VmSeen) -> Vec<GuestId> {
    let mut guests = members_in(members, &vm_ref(vm));
    let guest = vm.guest.and_then(|guest| members.member(guest));
    guests.extend(guest.filter(|it| !it.is_ended()).map(|it| it.id));
    guests
}

/// Whether a machine of this pool may take the place of these guests: one that was reset to its image
/// lost the key of the guest that it was.
fn take_over(members: &Members, pool: &Pool, guests: &[GuestId]) -> bool {
    guests.iter().all(|guest| {
        let member = members.member(*guest);
        pool.ephemeral && member.is_some_and(|it| it.pool.as_ref() == Some(&pool.name))
    })
}

fn members_in(members: &Members, vm: &VmRef) -> Vec<GuestId> {
    let in_it = members.active().filter(|member| {
        let its = member.vm.as_ref();
        its.is_some_and(|its| vm.is(&its.connector, &its.id))
    });
    let mut ids: Vec<GuestId> = in_it.map(|member| member.id).collect();
    ids.sort_unstable();
    ids
}

/// Whether a pool takes one more, when those that are replaced have gone.
pub(crate) fn has_room(
    members: &Members,
    pool: Option<&Pool>,
    replaced: &[GuestId],
) -> Result<(), Refusal> {
    let Some(pool) = pool.filter(|pool| pool.guests_max > 0) else {
        return Ok(());
    };
    let of_it = members.of_pool(&pool.name);
    let staying = of_it.filter(|member| !replaced.contains(&member.id));
    let max = usize::try_from(pool.guests_max).unwrap_or(usize::MAX);
    if staying.count() < max {
        Ok(())
    } else {
        Err(Refusal::PoolFull)
    }
}

pub(crate) fn one_less(token: &TokenInfo) -> TokenInfo {
    TokenInfo {
        uses_left: token.uses_left.saturating_sub(1),
        ..token.clone()
    }
}

pub(crate) fn is_over(entry: &Pending, now: SystemTime) -> bool {
    seconds(now) > entry.asked_s.saturating_add(PENDING_LIFE.as_secs())
}

/// Whether there is room for one more who waits.
pub(crate) fn may_wait(members: &Members, entry: &Pending, now: SystemTime) -> Result<(), Refusal> {
    let of_pool = members
        .all_pending()
        .filter(|other| other.pool == entry.pool && !is_over(other, now))
        // One denied takes nobody's place: only a person can make it, and only from one that had one.
        .filter(|other| other.decision != Decision::Denied);
    let (mut all, mut from_there) = (0, 0);
    for other in of_pool {
        all += 1;
        from_there += usize::from(other.address == entry.address);
    }
    if all >= PENDING_POOL_MAX || from_there >= PENDING_ADDRESS_MAX {
        return Err(Refusal::QueueFull);
    }
    Ok(())
}

/// What a person's yes to a request writes: the request, and its token with one use less where that
/// was not spent before.
pub(crate) fn can_approve(
    members: &Members,
    entry: &Pending,
    replaces: bool,
) -> Result<(Pending, Option<TokenInfo>), Refusal> {
    if replaces && entry.rivals.is_empty() {
        return Err(Refusal::NoRivals);
    }
    let approved = Pending {
        decision: Decision::Approved,
        replaces,
        ..entry.clone()
    };
    if entry.copy_of.is_some() {
        return Ok((approved, None));
    }
    let is_said = entry.decision == Decision::Approved;
    if is_said && entry.replaces == replaces {
        return Ok((approved, None));
    }
    let pool = entry.pool.as_ref().and_then(|name| members.pool(name));
    let going = if replaces { &entry.rivals[..] } else { &[] };
    has_room(members, pool, going)?;
    if is_said {
        return Ok((approved, None));
    }
    let hash = SecretHash::from_hex(&entry.token).ok_or(Refusal::Token)?;
    // It was good when the machine asked, and may have expired while it waited.
    let token = members.token(&hash).filter(|token| token.uses_left > 0);
    let token = token.ok_or(Refusal::TokenSpent)?;
    Ok((approved, Some(one_less(token))))
}
