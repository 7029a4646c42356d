//! `lazaret up`: controller and appliance in one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use appliance::{AdminServer, Appliance, Config, ProcessEngines, Reload, Setup, StateDir};
use controller::{Authority, Enrolment, EnrolmentLimits};
use daemon::metrics::Registry;
use daemon::notify::{self, Progress, Watchdog};
use daemon::signal::{Stop, Wake};
use pki::renew_after;

use crate::controller::InProcess;
use crate::fleet::{self, ServerTls};
use crate::place::Place;

/// EICAR, GTUBE and the like: they prove that scanning works, and find nothing else.
const BUILT_IN_RULES: &str = include_str!("../../../rules/test_files.yar");
/// After a failed renewal of our own certificate.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// Runs until it is told to stop.
pub(crate) fn up(place: Place) -> anyhow::Result<()> {
    let log = &place.config.log;
    daemon::log::init(log.format, &log.filter)?;
    let stop = Stop::install().context("cannot catch signals")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("lazaret")
        .build()
        .context("cannot start threads")?;
    runtime.block_on(run(place, stop))
}

async fn run(place: Place, stop: Stop) -> anyhow::Result<()> {
    // 1. The state folder is ours alone.
    let state = StateDir::open(&place.state_dir)?;
    let config = place.config.clone();
    let name = config.name.clone().unwrap_or_else(host_name);

    // 2. The controller knows the fleet; a first start makes its CA.
    let pki_dir = state.pki();
    let authority = Arc::new(Authority::open(&pki_dir, fleet::ca(&pki_dir)?)?);
    let tls = ServerTls::issue(authority.ca(), &authority.anchors(), &name)?;

    // 3. The appliance starts its engines and listens for agents.
    let registry = Registry::new();
    let progress = Progress::new();
    let setup = Setup {
        config: config.clone(),
        state,
        engines: Arc::new(ProcessEngines {
            last_resort_rules: Some(built_in_rules(&place.state_dir)?),
        }),
        identity: Arc::new(InProcess(authority.clone())),
        tls: tls.link.clone(),
        registry: registry.clone(),
        progress: progress.clone(),
    };
    let appliance = Arc::new(Appliance::start(setup).await?);

    // 4. Guests may join.
    let appliances = advertised(&config, appliance.local_addr(), &name);
    let enrolment = Arc::new(join_here(&config, &tls, authority.clone(), appliances).await?);

    // 5. Administrators may ask, collectors may look; our own certificate stays fresh.
    let reload = reload_of(&place, &appliance);
    let admin = AdminServer::start(&place.admin_socket(), appliance.clone(), reload.clone())?;
    let metrics = config.listen.metrics;
    let metrics = metrics
        .map(|address| daemon::metrics::serve(address, registry))
        .transpose()?;
    let renewed = (appliance.clone(), enrolment.clone());
    let renewals = tokio::spawn(renew_own(authority, name, tls.valid, renewed));

    // 6. Ready: say so.
    println!("agents connect to {}", appliance.local_addr());
    println!("guests join at    {}", enrolment.local_addr());
    if let Some(server) = &metrics {
        println!("metrics are at    http://{}/metrics", server.local_addr());
    }
    println!("state is kept in  {}", place.state_dir.display());
    if let Some(watchdog) = Watchdog::from_env() {
        watchdog
            .fed_by(progress)
            .context("cannot start the watchdog")?;
    }
    notify::ready();

    // 7. Until told otherwise.
    until_stopped(stop, reload).await?;
    notify::stopping();
    renewals.abort();
    drop((admin, enrolment));
    appliance.stop().await;
    Ok(())
}

async fn join_here(
    config: &Config,
    tls: &ServerTls,
    authority: Arc<Authority>,
    appliances: Vec<String>,
) -> anyhow::Result<Enrolment> {
    let address = config.listen.enrol;
    let limits = EnrolmentLimits::default();
    let started = Enrolment::start(address, tls.enrol.clone(), authority, appliances, limits);
    started
        .await
        .with_context(|| format!("listen.enrol: cannot listen on {address}"))
}

/// Lays out the rules that every build carries, for a start without any configuration.
fn built_in_rules(state_dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = state_dir.join("rules");
    let file = folder.join("built_in.yar");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&file, BUILT_IN_RULES))
        .with_context(|| format!("{}: cannot lay out the built-in rules", folder.display()))?;
    Ok(folder)
}

/// Reloads as often as it is asked to; returns when it is to stop.
async fn until_stopped(stop: Stop, reload: Arc<Reload>) -> anyhow::Result<()> {
    let mut reloads_seen = 0;
    loop {
        let waiting = stop.clone();
        let seen = reloads_seen;
        let woken = tokio::task::spawn_blocking(move || waiting.wait_change(seen));
        match woken.await? {
            Wake::Stop => return Ok(()),
            Wake::Reload => {
                reloads_seen = stop.reloads();
                notify::status("reloading");
                if let Err(error) = reload().await {
                    tracing::error!(error, "reload refused; what was in force stays");
                }
                notify::status("");
            }
        }
    }
}

/// Reads the configuration again and brings it in, or says why not and changes nothing.
fn reload_of(place: &Place, appliance: &Arc<Appliance>) -> Arc<Reload> {
    let place = place.clone();
    let appliance = Arc::downgrade(appliance);
    Arc::new(move || {
        let config = place.read_again();
        let appliance = appliance.upgrade();
        Box::pin(async move {
            let appliance = appliance.ok_or("lazaret stops")?;
            let config = config.map_err(|error| error.to_string())?;
            let reloaded = appliance.reload(config).await;
            let generation = reloaded.map_err(|error| crate::chain(&error.into()))?;
            tracing::info!(%generation, "reloaded");
            Ok(generation)
        })
    })
}

/// How guests reach us.
fn advertised(config: &Config, link: SocketAddr, name: &str) -> Vec<String> {
    if !config.listen.advertise.is_empty() {
        return config.listen.advertise.clone();
    }
    if link.ip().is_unspecified() {
        return vec![format!("{name}:{}", link.port())];
    }
    vec![link.to_string()]
}

/// Our own certificate lives a day: a new key and certificate well before it ends.
async fn renew_own(
    authority: Arc<Authority>,
    name: String,
    mut valid: pki::Validity,
    (appliance, enrolment): (Arc<Appliance>, Arc<Enrolment>),
) {
    let seed = u64::from(std::process::id());
    loop {
        let due = renew_after(valid.not_before, valid.not_after, seed);
        let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(wait).await;
        match ServerTls::issue(authority.ca(), &authority.anchors(), &name) {
            Ok(tls) => {
                valid = tls.valid;
                appliance.set_tls(tls.link);
                enrolment.set_tls(tls.enrol);
                tracing::info!("the appliance has a new certificate");
            }
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "no new certificate");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }
}

fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let plain: String = name.chars().filter(is_plain).take(64).collect();
    if plain.is_empty() {
        "appliance".into()
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_told_an_address_they_can_use() {
        let mut config = Config::default();
        let any = SocketAddr::from(([0, 0, 0, 0], 7443));
        assert_eq!(advertised(&config, any, "a1"), ["a1:7443"]);
        let one = SocketAddr::from(([10, 0, 0, 1], 7443));
        assert_eq!(advertised(&config, one, "a1"), ["10.0.0.1:7443"]);
        config.listen.advertise = vec!["x:1".into()];
        assert_eq!(advertised(&config, one, "a1"), ["x:1"]);
    }
}
