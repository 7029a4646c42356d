//! `lazaret up`: controller and appliance in one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use appliance::{AdminServer, Appliance, Config, ProcessEngines, Reload, Setup, StateDir};
use controller::fleet::{Fleet, FleetListener, Retirement, Store};
use controller::{Authority, Enrolment, EnrolmentLimits};
use daemon::metrics::Registry;
use daemon::notify::{self, Progress, Watchdog};
use daemon::signal::{Stop, Wake};
use fleet_core::{Area, CoreSettings, SiteRules};
use pki::renew_after;
use placement::{Resources, StormPolicy};
use tokio::task::JoinSet;

use crate::controller::{InProcess, end_sessions};
use crate::desk;
use crate::gauges;
use crate::inventory;
use crate::keys::{self, ServerTls};
use crate::place::Place;
use crate::stream::{self, Port, Ways};

/// EICAR, GTUBE and the like: they prove that scanning works, and find nothing else.
const BUILT_IN_RULES: &str = include_str!("../../../rules/test_files.yar");
/// After a failed renewal of our own certificate.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// Runs until it is told to stop.
pub(crate) async fn run(place: Place, stop: Stop) -> anyhow::Result<()> {
    // 1. The state folder is ours alone.
    let state = StateDir::open(&place.state_dir)?;
    let config = &place.config;
    let name = config.name.clone().unwrap_or_else(host_name);

    // 2. The controller knows the fleet and where everything is, and places.
    let control = Control::start(&place, &state.pki(), &name).await?;
    let Control {
        authority,
        fleet,
        tls,
        streams,
    } = control;

    // 3. The appliance starts its engines and listens for agents.
    let (registry, progress) = (Registry::new(), Progress::new());
    let port = Arc::new(Port::default());
    let setup = Setup {
        config: config.clone(),
        state,
        engines: Arc::new(ProcessEngines {
            last_resort_rules: Some(built_in_rules(&place.state_dir)?),
        }),
        identity: Arc::new(InProcess {
            authority: authority.clone(),
            fleet: fleet.clone(),
            port: port.clone(),
            runtime: tokio::runtime::Handle::current(),
        }),
        fleet: port.clone(),
        tls: tls.link.clone(),
        registry: registry.clone(),
        progress: progress.clone(),
    };
    let appliance = Arc::new(Appliance::start(setup).await?);

    // 4. It takes its place in the fleet; guests may join.
    let appliances = advertised(config, appliance.local_addr(), &name);
    let own_tls = Arc::new(Mutex::new(tls.dial.clone()));
    let ways = Ways {
        local: Some((fleet.clone(), authority.clone())),
        remote: Vec::new(),
        tls: shared_tls(&own_tls),
    };
    let hello = stream::hello(config, appliances[0].clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(stream::keep(port, appliance.clone(), hello, ways, None));
    let sightings = inventory::start(config.connector.clone(), fleet.clone(), &registry)
        .context("connector")?;
    let joins = (authority.clone(), fleet.clone());
    let enrolment = Arc::new(join_here(config, &tls, joins, appliances).await?);
    tasks.spawn(authority.clone().follow());
    tasks.spawn(end_sessions(
        authority.clone(),
        fleet.clone(),
        appliance.clone(),
    ));
    let looks = (authority.clone(), fleet.clone(), enrolment.clone());
    tasks.spawn(gauges::keep(registry.clone(), looks.0, looks.1, looks.2));

    // 5. Administrators may ask, collectors may look; our own certificate stays fresh.
    let reload = reload_of(&place, &appliance);
    let session_valid = Duration::from_secs(config.controller.session_valid_s.get());
    let desk = desk::of(fleet.clone(), authority.clone(), session_valid);
    let (socket, asked) = (place.admin_socket(), appliance.clone());
    let admin = AdminServer::start(&socket, asked, reload.clone(), desk)?;
    let metrics = config.listen.metrics;
    let metrics = metrics
        .map(|address| daemon::metrics::serve(address, registry))
        .transpose()?;
    let holders = TlsHolders {
        appliance: appliance.clone(),
        enrolment: enrolment.clone(),
        streams: streams.clone(),
        dial: own_tls,
    };
    tasks.spawn(renew_own(authority, name, tls.valid, holders));

    // 6. Ready: say so.
    say_where(&appliance, &enrolment, streams.as_deref(), metrics.as_ref());
    println!("state is kept in  {}", place.state_dir.display());
    if let Some(watchdog) = Watchdog::from_env() {
        let fed = watchdog.fed_by(progress);
        fed.context("cannot start the watchdog")?;
    }
    notify::ready();

    // 7. Until told otherwise.
    until_stopped(stop, reload).await?;
    notify::stopping();
    sightings.abort();
    drop((tasks, admin, enrolment, streams));
    appliance.stop().await;
    fleet.stop().await;
    Ok(())
}

/// The controller's half.
struct Control {
    authority: Arc<Authority>,
    fleet: Fleet,
    tls: ServerTls,
    streams: Option<Arc<FleetListener>>,
}

impl Control {
    /// A first start makes the fleet's CA.
    async fn start(place: &Place, pki: &Path, name: &str) -> anyhow::Result<Self> {
        let config = &place.config;
        let store = store_of(config, &place.state_dir).await?;
        let authority = authority_of(store.clone(), pki).await?;
        let tls = ServerTls::issue(authority.ca(), &authority.anchors(), name)?;
        let fleet = fleet_of(store, authority.clone(), config, name).await?;
        let streams = appliances_elsewhere(config, &tls, &fleet, &authority).await?;
        Ok(Self {
            authority,
            fleet,
            tls,
            streams,
        })
    }
}

/// For whoever has started us by hand.
fn say_where(
    appliance: &Appliance,
    enrolment: &Enrolment,
    streams: Option<&FleetListener>,
    metrics: Option<&daemon::metrics::Server>,
) {
    println!("agents connect to {}", appliance.local_addr());
    println!("guests join at    {}", enrolment.local_addr());
    if let Some(streams) = streams {
        println!("appliances are at {}", streams.local_addr());
    }
    if let Some(server) = metrics {
        println!("metrics are at    http://{}/metrics", server.local_addr());
    }
}

/// Opens the fleet's database.
async fn store_of(config: &Config, state: &Path) -> anyhow::Result<Store> {
    match &config.controller.database {
        Some(url) => Store::postgres(url).await.context("controller.database"),
        None => Ok(Store::embedded(state).await?),
    }
}

/// The fleet's members, and the CA that they trust.
async fn authority_of(store: Store, pki: &Path) -> anyhow::Result<Arc<Authority>> {
    let ca = keys::ca(pki, store.ca().await?.as_deref())?;
    Ok(Arc::new(Authority::open(store, ca, pki).await?))
}

/// Begins to place, where nobody else does.
async fn fleet_of(
    store: Store,
    members: Arc<Authority>,
    config: &Config,
    name: &str,
) -> anyhow::Result<Fleet> {
    let controller = &config.controller;
    // Nobody else can have a database of our own: no lease is to be waited for.
    let holder = match &controller.database {
        Some(_) => format!("{name} {:032x}", u128::from_le_bytes(pki::random()?)),
        None => "embedded".to_owned(),
    };
    let listen = controller.listen.map(|address| address.to_string());
    let address = controller.advertise.clone().or(listen).unwrap_or_default();
    let fleet = Fleet::start(
        store,
        controller::fleet::FleetConfig {
            holder,
            address,
            settings: CoreSettings {
                storm: storm_policy(&controller.storm),
                ..CoreSettings::default()
            },
            sites: sites_of(controller)?,
            members: Some(members),
            retirement: Retirement::default(),
        },
    );
    Ok(fleet.await?)
}

/// What an operator says of budgets.
fn storm_policy(config: &appliance::config::StormConfig) -> StormPolicy {
    StormPolicy {
        host: Resources {
            cpu_milli: config.host_cpu_milli.u32(),
            read_mib_s: config.host_read_mib_s.u32(),
            link_mib_s: config.host_link_mib_s.u32(),
        },
        datastore_read_mib_s: config.datastore_read_mib_s.u32(),
        site_link_mib_s: config.site_link_mib_s.u32(),
        ..StormPolicy::default()
    }
}

/// What an operator says of sites and rules.
fn sites_of(config: &appliance::config::ControllerConfig) -> anyhow::Result<SiteRules> {
    let area = |area: &appliance::config::AreaConfig| Area {
        name: area.name.clone(),
        connectors: area.connectors.clone(),
        clusters: area.clusters.clone(),
    };
    let mut sites = SiteRules {
        sites: config.site.iter().map(area).collect(),
        datastores: config.datastore.iter().map(area).collect(),
        rules: Vec::new(),
    };
    for rule in &config.rule {
        let added = sites.add(&rule.name, &rule.when, &rule.appliances);
        added.context("controller.rule")?;
    }
    Ok(sites)
}

async fn appliances_elsewhere(
    config: &Config,
    tls: &ServerTls,
    fleet: &Fleet,
    authority: &Arc<Authority>,
) -> anyhow::Result<Option<Arc<FleetListener>>> {
    let Some(address) = config.controller.listen else {
        return Ok(None);
    };
    let started =
        FleetListener::start(address, tls.fleet.clone(), fleet.clone(), authority.clone());
    let started = started
        .await
        .with_context(|| format!("controller.listen: cannot listen on {address}"))?;
    Ok(Some(Arc::new(started)))
}

/// Our certificate for streams to other controllers, as it is at the moment of asking.
pub(crate) fn shared_tls(
    tls: &Arc<Mutex<Arc<rustls::ClientConfig>>>,
) -> Arc<dyn Fn() -> Arc<rustls::ClientConfig> + Send + Sync> {
    let tls = tls.clone();
    Arc::new(move || tls.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Everybody who shows our certificate.
struct TlsHolders {
    appliance: Arc<Appliance>,
    enrolment: Arc<Enrolment>,
    streams: Option<Arc<FleetListener>>,
    dial: Arc<Mutex<Arc<rustls::ClientConfig>>>,
}

async fn join_here(
    config: &Config,
    tls: &ServerTls,
    (authority, fleet): (Arc<Authority>, Fleet),
    appliances: Vec<String>,
) -> anyhow::Result<Enrolment> {
    let address = config.listen.enrol;
    let limits = EnrolmentLimits {
        burst_per_address: config.controller.joins_burst.u32(),
        per_minute_per_address: config.controller.joins_per_minute.u32(),
        ..EnrolmentLimits::default()
    };
    let tls = tls.enrol.clone();
    let started = Enrolment::start(address, tls, authority, Some(fleet), appliances, limits);
    started
        .await
        .with_context(|| format!("listen.enrol: cannot listen on {address}"))
}

/// Lays out the rules that every build carries, for a start without any configuration.
pub(crate) fn built_in_rules(state_dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = state_dir.join("rules");
    let file = folder.join("built_in.yar");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&file, BUILT_IN_RULES))
        .with_context(|| format!("{}: cannot lay out the built-in rules", folder.display()))?;
    Ok(folder)
}

/// Reloads as often as it is asked to; returns when it is to stop.
pub(crate) async fn until_stopped(stop: Stop, reload: Arc<Reload>) -> anyhow::Result<()> {
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
pub(crate) fn reload_of(place: &Place, appliance: &Arc<Appliance>) -> Arc<Reload> {
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
pub(crate) fn advertised(config: &Config, link: SocketAddr, name: &str) -> Vec<String> {
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
    holders: TlsHolders,
) {
    let seed = u64::from(std::process::id());
    loop {
        let due = renew_after(valid.not_before, valid.not_after, seed);
        let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(wait).await;
        match ServerTls::issue(authority.ca(), &authority.anchors(), &name) {
            Ok(tls) => {
                valid = tls.valid;
                holders.appliance.set_tls(tls.link);
                holders.enrolment.set_tls(tls.enrol);
                if let Some(streams) = &holders.streams {
                    streams.set_tls(tls.fleet);
                }
                *holders.dial.lock().unwrap_or_else(PoisonError::into_inner) = tls.dial;
                tracing::info!("the appliance has a new certificate");
            }
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "no new certificate");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }
}

pub(crate) fn host_name() -> String {
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
