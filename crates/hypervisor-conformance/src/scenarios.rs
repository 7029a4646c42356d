//! The suite.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hypervisor::{Change, ConnectorError, HostId, MovePhase, Power, RateLimit, VmId};

use crate::expect::{Expect, counted_pace};
use crate::mirror::Mirror;
use crate::rig::{Approach, Rig};

/// Fast enough not to hold tests up.
const FAST: RateLimit = RateLimit {
    requests_per_s: 1000,
    burst: 1000,
};

/// Runs the whole suite against a hypervisor.
///
/// # Errors
/// What the connector does wrong.
pub async fn conform(rig: &mut dyn Rig) -> Result<()> {
    refusals(rig).await.context("refusals")?;
    let connector = rig.connector(Approach::Right, counted_pace(FAST))?;
    let mut expect = Expect::watch(connector);
    first_inventory(rig, &mut expect)
        .await
        .context("the first inventory")?;
    let vm = appear(rig, &mut expect).await.context("a VM appears")?;
    power(rig, &mut expect, &vm)
        .await
        .context("power and pause")?;
    moves(rig, &mut expect, &vm).await.context("a move")?;
    locate_and_tag(rig, &mut expect, &vm)
        .await
        .context("locate and tag")?;
    let vm = outage(rig, &mut expect, vm)
        .await
        .context("a lost connection")?;
    clones(rig, &mut expect, &vm).await.context("a clone")?;
    delete(rig, &mut expect, &vm).await.context("a deletion")?;
    rate_limit(rig).await.context("the rate limit")
}

/// What must be refused, and that the error says why without the password.
async fn refusals(rig: &mut dyn Rig) -> Result<()> {
    let abilities = rig.abilities();
    if abilities.asks_password {
        let error = refused(rig, Approach::WrongPassword).await?;
        let is_right = matches!(error, ConnectorError::Credentials { .. });
        ensure!(is_right, "a wrong password gave {error:?}");
    }
    if abilities.has_tls {
        let error = refused(rig, Approach::WrongCertificate).await?;
        let is_right = matches!(error, ConnectorError::Untrusted { .. });
        ensure!(is_right, "a wrong certificate gave {error:?}");
    }
    rig.cut().await?;
    let error = refused(rig, Approach::Right).await?;
    rig.mend().await?;
    ensure!(!error.is_lasting(), "a cut connection gave {error:?}");
    Ok(())
}

async fn refused(rig: &dyn Rig, approach: Approach) -> Result<ConnectorError> {
    let connector = rig.connector(approach, counted_pace(FAST))?;
    match connector.connect().await {
        Ok(_) => anyhow::bail!("{approach:?} was accepted"),
        Err(error) => Ok(error),
    }
}

async fn first_inventory(rig: &mut dyn Rig, expect: &mut Expect) -> Result<()> {
    expect
        .until("the inventory", |change, _| *change == Change::Synced)
        .await?;
    for host in rig.hosts() {
        ensure!(expect.mirror.hosts.contains_key(&host), "no host {host}");
    }
    Ok(())
}

async fn appear(rig: &mut dyn Rig, expect: &mut Expect) -> Result<VmId> {
    let vm = rig.create("conformance-1").await?;
    expect
        .state("a new VM that runs", |seen| {
            seen.power(&vm) == Some(Power::Running) && seen.place(&vm).is_some()
        })
        .await?;
    ensure!(expect.mirror.place(&vm) == rig.hosts().first(), "elsewhere");
    let name = &expect.mirror.vms[&vm].name;
    ensure!(name == "conformance-1", "its name is {name}");
    Ok(vm)
}

async fn power(rig: &mut dyn Rig, expect: &mut Expect, vm: &VmId) -> Result<()> {
    if let Some(paused) = rig.abilities().pauses {
        rig.pause(vm).await?;
        powered(expect, vm, paused).await?;
        rig.resume(vm).await?;
        powered(expect, vm, Power::Running).await?;
    }
    rig.power_off(vm).await?;
    powered(expect, vm, Power::Off).await?;
    rig.power_on(vm).await?;
    powered(expect, vm, Power::Running).await
}

async fn powered(expect: &mut Expect, vm: &VmId, power: Power) -> Result<()> {
    let seen = expect
        .state(&format!("{power:?}"), |seen| seen.power(vm) == Some(power))
        .await?;
    let is_moved = |change: &Change| matches!(change, Change::VmMoved { .. });
    ensure!(!seen.iter().any(is_moved), "an invented move: {seen:#?}");
    Ok(())
}

async fn moves(rig: &mut dyn Rig, expect: &mut Expect, vm: &VmId) -> Result<()> {
    if !rig.abilities().moves {
        return Ok(());
    }
    let hosts = rig.hosts();
    for (from, to) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
        let since = expect.told.len();
        if rig.begin_move(vm, to).await? {
            expect.until("the start of the move", is_start).await?;
        }
        rig.migrate(vm, to).await?;
        expect
            .state("the switch", |seen| seen.place(vm) == Some(to))
            .await?;
        let phases = phases(&expect.told[since..], vm, from, to);
        let expected: &[MovePhase] = if rig.abilities().tells_start {
            &[MovePhase::Started, MovePhase::Switched]
        } else {
            &[MovePhase::Switched]
        };
        ensure!(phases == expected, "the move has the phases {phases:?}");
        // A move may show as a pause for a moment; afterwards the VM runs.
        expect
            .state("it runs on", |seen| seen.power(vm) == Some(Power::Running))
            .await?;
    }
    Ok(())
}

fn is_start(change: &Change, _: &Mirror) -> bool {
    matches!(
        change,
        Change::VmMoved {
            phase: MovePhase::Started,
            ..
        }
    )
}

/// The phases told of a move of this VM between these hosts.
fn phases(told: &[Change], moved: &VmId, source: &HostId, target: &HostId) -> Vec<MovePhase> {
    let phase = |change: &Change| match change {
        Change::VmMoved {
            vm,
            from,
            to,
            phase,
        } if vm == moved => {
            let is_right =
                from.as_ref() == Some(source) && to.as_ref().is_none_or(|to| to == target);
            assert!(is_right, "another move: {change:?}");
            Some(*phase)
        }
        _ => None,
    };
    told.iter().filter_map(phase).collect()
}

async fn locate_and_tag(rig: &mut dyn Rig, expect: &mut Expect, vm: &VmId) -> Result<()> {
    let connector = rig.connector(Approach::Right, counted_pace(FAST))?;
    let mut session = connector.connect().await?;
    let place = session.locate(vm).await?;
    ensure!(
        place.as_ref() == rig.hosts().first(),
        "located at {place:?}"
    );
    if !rig.abilities().tags {
        ensure!(session.tagger().is_none(), "it tags, but the rig says no");
        return Ok(());
    }
    let tag = "lazaret-test";
    for is_on in [true, false] {
        let tagger = session.tagger().context("no tagger")?;
        tagger.tag(vm, tag, is_on).await?;
        expect
            .state("the tag", |seen| seen.vms[vm].tags.contains(tag) == is_on)
            .await?;
    }
    Ok(())
}

/// Things happen while the connection is lost: each is told once, by its result, and nothing else.
async fn outage(rig: &mut dyn Rig, expect: &mut Expect, vm: VmId) -> Result<VmId> {
    let stays = rig.create("conformance-stays").await?;
    powered(expect, &stays, Power::Running).await?;
    quiet(rig, expect)
        .await
        .context("nothing happens meanwhile")?;

    let before: Vec<VmId> = expect.mirror.vms.keys().cloned().collect();
    lose(rig, expect).await?;
    rig.delete(&vm).await?;
    let new = rig.create("conformance-2").await?;
    rig.power_off(&stays).await?;
    rig.mend().await?;
    let since = expect.told.len();
    expect
        .state("all that happened meanwhile", |seen| {
            seen.power(&vm).is_none()
                && seen.power(&new) == Some(Power::Running)
                && seen.power(&stays) == Some(Power::Off)
        })
        .await?;
    for change in &expect.told[since..] {
        let is_news = match change {
            Change::VmGone(id) => *id == vm,
            Change::VmAppeared(seen) => seen.id == new,
            Change::VmPowered { vm: id, .. } | Change::VmMoved { vm: id, .. } => {
                *id == stays || *id == new
            }
            Change::VmChanged(seen) => seen.id == stays || seen.id == new,
            Change::VmCloned { .. } | Change::HostGone(_) | Change::HostAppeared(_) => false,
            Change::Synced | Change::Lost { .. } | Change::HostChanged(_) => true,
        };
        ensure!(is_news, "invented: {change:?}");
    }
    let after: Vec<VmId> = expect.mirror.vms.keys().cloned().collect();
    ensure!(after.len() == before.len(), "{before:?} became {after:?}");
    rig.delete(&stays).await?;
    expect
        .state("it is gone", |seen| seen.power(&stays).is_none())
        .await?;
    Ok(new)
}

/// A connection is lost and nothing happens: no event but that.
async fn quiet(rig: &mut dyn Rig, expect: &mut Expect) -> Result<()> {
    lose(rig, expect).await?;
    let since = expect.told.len();
    rig.mend().await?;
    regained(expect).await?;
    for change in &expect.told[since..] {
        let is_right = matches!(
            change,
            Change::Synced | Change::Lost { .. } | Change::HostChanged(_)
        );
        ensure!(is_right, "invented: {change:?}");
    }
    Ok(())
}

/// Cuts, and reads until that is known: by the stream, or by the host's state where hosts are
/// spoken to one by one.
async fn lose(rig: &mut dyn Rig, expect: &mut Expect) -> Result<()> {
    rig.cut().await?;
    expect
        .until("the loss", |change, _| match change {
            Change::Lost { .. } => true,
            Change::HostChanged(host) => host.state == hypervisor::HostState::Unreachable,
            _ => false,
        })
        .await?;
    Ok(())
}

async fn regained(expect: &mut Expect) -> Result<()> {
    expect
        .until("the connection", |change, seen| {
            let all_up = seen
                .hosts
                .values()
                .all(|host| host.state != hypervisor::HostState::Unreachable);
            let is_new = matches!(change, Change::Synced | Change::HostChanged(_));
            all_up && is_new
        })
        .await?;
    Ok(())
}

async fn clones(rig: &mut dyn Rig, expect: &mut Expect, vm: &VmId) -> Result<()> {
    if !rig.abilities().tells_clones {
        return Ok(());
    }
    let copy = rig.clone_vm(vm, "conformance-copy").await?;
    let cloned = Change::VmCloned {
        vm: copy.clone(),
        from: vm.clone(),
    };
    expect
        .until("the clone", |change, _| *change == cloned)
        .await?;
    rig.delete(&copy).await?;
    expect
        .state("it is gone", |seen| seen.power(&copy).is_none())
        .await?;
    Ok(())
}

async fn delete(rig: &mut dyn Rig, expect: &mut Expect, vm: &VmId) -> Result<()> {
    rig.delete(vm).await?;
    let gone = Change::VmGone(vm.clone());
    expect
        .until("the deletion", |change, _| *change == gone)
        .await?;
    Ok(())
}

/// However much happens, requests keep to the limit, and the last state is told.
async fn rate_limit(rig: &mut dyn Rig) -> Result<()> {
    let limit = RateLimit {
        requests_per_s: 10,
        burst: 12,
    };
    let pace = counted_pace(limit);
    let start = Instant::now();
    let mut expect = Expect::watch(rig.connector(Approach::Right, pace.clone())?);
    expect
        .until("the inventory", |change, _| *change == Change::Synced)
        .await?;
    let vm = rig.create("conformance-busy").await?;
    for _ in 0..10 {
        rig.power_off(&vm).await?;
        rig.power_on(&vm).await?;
    }
    rig.delete(&vm).await?;
    let last = rig.create("conformance-last").await?;
    expect
        .state("the last of many events", |seen| {
            seen.power(&last) == Some(Power::Running) && seen.power(&vm).is_none()
        })
        .await?;
    // Not a measure of speed: a bound that holds on the slowest machine.
    let allowed = start.elapsed().as_secs_f64() * f64::from(limit.requests_per_s);
    let made = pace.requests();
    let most = (allowed + f64::from(limit.burst) + 1.0) * f64::from(rig.servers());
    ensure!(
        made as f64 <= most,
        "{made} requests where {most} are allowed"
    );
    rig.delete(&last).await
}
