//! `lazaret appliance`: an appliance alone; its controllers are elsewhere.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use appliance::{AdminServer, Appliance, ProcessEngines, Setup, StateDir};
use daemon::metrics::Registry;
use daemon::notify::{self, Progress, Watchdog};
use daemon::signal::Stop;
use pki::{CertificateDer, GuestKey, Identity, renew_after};
use proto::v1;

use crate::desk;
use crate::place::Place;
use crate::stream::{self, OwnRenewed, Port, Ways};
use crate::up;

const IDENTITY_FILE: &str = "identity.pem";
/// After a renewal that was asked for and did not come.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// How often it is looked whether a renewal is due.
const LOOK: Duration = Duration::from_secs(10);

/// Runs until it is told to stop.
pub(crate) async fn run(place: Place, stop: Stop) -> anyhow::Result<()> {
    let config = place.config.clone();
    let controllers = config.fleet.controllers.clone();
    ensure!(
        !controllers.is_empty(),
        "fleet.controllers: name at least one, as host:port"
    );
    let state = StateDir::open(&place.state_dir)?;
    let own = Own::load(&place)?;

    // 1. The appliance starts its engines and listens for agents.
    let registry = Registry::new();
    let progress = Progress::new();
    let port = Arc::new(Port::default());
    let setup = Setup {
        config: appliance::Config {
            name: Some(own.name.clone()),
            ..config.clone()
        },
        state,
        engines: Arc::new(ProcessEngines {
            last_resort_rules: Some(up::built_in_rules(&place.state_dir)?),
        }),
        identity: port.clone(),
        fleet: port.clone(),
        tls: own.serves()?,
        registry: registry.clone(),
        progress: progress.clone(),
    };
    let appliance = Arc::new(Appliance::start(setup).await?);

    // 2. It takes its place in the fleet, and keeps its certificate fresh.
    let address = up::advertised(&config, appliance.local_addr(), &own.name)[0].clone();
    let own = Arc::new(own);
    let ways = Ways {
        local: None,
        remote: controllers,
        tls: up::shared_tls(&own.dials),
    };
    let renewed = own.clone().renewed_by(appliance.clone());
    let hello = stream::hello(&config, address);
    let placed = stream::keep(port.clone(), appliance.clone(), hello, ways, Some(renewed));
    let placed = tokio::spawn(placed);
    let renewals = tokio::spawn(own.clone().keep_fresh(port));

    // 3. Administrators may ask, collectors may look.
    let reload = up::reload_of(&place, &appliance);
    let socket = place.admin_socket();
    let desk = desk::elsewhere();
    let admin = AdminServer::start(&socket, appliance.clone(), reload.clone(), desk)?;
    let metrics = config.listen.metrics;
    let metrics = metrics
        .map(|address| daemon::metrics::serve(address, registry))
        .transpose()?;

    // 4. Ready: say so.
    println!("agents connect to {}", appliance.local_addr());
    if let Some(server) = &metrics {
        println!("metrics are at    http://{}/metrics", server.local_addr());
    }
    println!("state is kept in  {}", place.state_dir.display());
    if let Some(watchdog) = Watchdog::from_env() {
        let fed = watchdog.fed_by(progress);
        fed.context("cannot start the watchdog")?;
    }
    notify::ready();

    // 5. Until told otherwise: guests go elsewhere at once.
    up::until_stopped(stop, reload).await?;
    notify::stopping();
    renewals.abort();
    placed.abort();
    drop(admin);
    appliance.stop().await;
    Ok(())
}

/// This appliance's own key and certificate.
struct Own {
    name: String,
    path: PathBuf,
    anchors: Vec<CertificateDer<'static>>,
    identity: Mutex<Identity>,
    dials: Arc<Mutex<Arc<rustls::ClientConfig>>>,
    /// The key of a renewal that was asked for, and when.
    asked: Mutex<Option<(GuestKey, SystemTime)>>,
}

impl Own {
    fn load(place: &Place) -> anyhow::Result<Self> {
        let configured = place.config.fleet.identity.clone();
        let path = configured.unwrap_or_else(|| place.state_dir.join(IDENTITY_FILE));
        let identity = Identity::load(&path).context(
            "no identity: make one with `lazaret fleet identity NAME` where the controller runs",
        )?;
        let leaf = identity
            .leaf()
            .map(|leaf| leaf.to_vec())
            .unwrap_or_default();
        let name = pki::appliance_name_of(&leaf).with_context(|| path.display().to_string())?;
        // The chain ends with the CA's certificate.
        let anchors: Vec<_> = identity.chain.iter().skip(1).cloned().collect();
        let dials = link::tls::fleet_client_config(&identity, &anchors)?;
        Ok(Self {
            name,
            path,
            anchors,
            identity: Mutex::new(identity),
            dials: Arc::new(Mutex::new(dials)),
            asked: Mutex::new(None),
        })
    }

    fn serves(&self) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(link::tls::server_config(&identity, &self.anchors)?)
    }

    /// Asks for a new certificate when two thirds of the old one's life are over.
    async fn keep_fresh(self: Arc<Self>, port: Arc<Port>) {
        use appliance::FleetPort;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = SystemTime::now();
            if now < self.renewal_due() || self.was_asked_after(now - RENEW_AGAIN) {
                continue;
            }
            match GuestKey::generate() {
                Ok(key) => {
                    port.tell(proto::v1::fleet_said::Body::RenewSelf(key.csr().to_vec()));
                    let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                    *asked = Some((key, now));
                }
                Err(error) => tracing::error!(%error, "no key for a renewal"),
            }
        }
    }

    fn renewal_due(&self) -> SystemTime {
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let validity = identity.leaf().and_then(|leaf| pki::validity_of(leaf).ok());
        let seed = u64::from(std::process::id());
        let due = validity.map(|it| renew_after(it.not_before, it.not_after, seed));
        due.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn was_asked_after(&self, moment: SystemTime) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.as_ref().is_some_and(|(_, at)| *at > moment)
    }

    /// Takes the certificates that come, and has them shown from then on.
    fn renewed_by(self: Arc<Self>, appliance: Arc<Appliance>) -> OwnRenewed {
        Arc::new(move |renewal| match self.take(renewal) {
            Ok(()) => match self.serves() {
                Ok(tls) => {
                    appliance.set_tls(tls);
                    tracing::info!("the appliance has a new certificate");
                }
                Err(error) => tracing::error!(error = crate::chain(&error), "no new certificate"),
            },
            Err(error) => tracing::error!(error = crate::chain(&error), "no new certificate"),
        })
    }

    fn take(&self, renewal: v1::Renewal) -> anyhow::Result<()> {
        let asked = self
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (key, _) = asked.context("nobody asked for a certificate")?;
        ensure!(!renewal.chain.is_empty(), "refused: {}", renewal.refused);
        let chain = renewal
            .chain
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let identity = key.certified(chain)?;
        let dials = link::tls::fleet_client_config(&identity, &self.anchors)?;
        identity.save(&self.path)?;
        *self.dials.lock().unwrap_or_else(PoisonError::into_inner) = dials;
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }
}
