//! Keys: the CA on disk, the appliance's own certificate in memory only, made anew at each start.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use pki::{Ca, CaError, CertificateDer, Identity, LIFETIME, Validity};
use rustls::{ClientConfig, ServerConfig};

use crate::place::Place;

/// `lazaret pki init`.
pub(crate) fn init(place: &Place) -> anyhow::Result<()> {
    let dir = place.pki_dir();
    make_private(&dir)?;
    let ca = Ca::init(&dir).context("cannot make a CA")?;
    println!("made a CA in {}", dir.display());
    println!("its fingerprint is {}", ca.fingerprint());
    println!("back it up: whoever has ca.key is the fleet");
    Ok(())
}

/// The CA of the state folder; a new one where there is none, unless the fleet's database has
/// members of another one (`fleet`).
pub(crate) fn ca(dir: &Path, fleet: Option<&str>) -> anyhow::Result<Ca> {
    make_private(dir)?;
    if let Some(fingerprint) = fleet
        && !dir.join(pki::CA_KEY_FILE).exists()
    {
        bail!(
            "the members in the fleet's database have certificates of the CA {fingerprint}, and this \
             controller has none: copy ca.crt and ca.key from the folder pki of a controller of this \
             fleet to {}",
            dir.display()
        );
    }
    match Ca::init(dir) {
        Ok(ca) => {
            tracing::info!(dir = %dir.display(), fingerprint = %ca.fingerprint(), "made a CA");
            Ok(ca)
        }
        Err(CaError::Exists(_)) => Ca::load(dir).context("cannot load the CA"),
        Err(error) => Err(error).context("cannot make a CA"),
    }
}

fn make_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private
        .create(dir)
        .with_context(|| format!("{}: cannot make the folder", dir.display()))
}

/// What the two listeners show to guests, from one certificate.
pub(crate) struct ServerTls {
    pub(crate) link: Arc<ServerConfig>,
    pub(crate) enrol: Arc<ServerConfig>,
    /// For appliances that run elsewhere.
    pub(crate) fleet: Arc<ServerConfig>,
    /// To other controllers.
    pub(crate) dial: Arc<ClientConfig>,
    pub(crate) valid: Validity,
}

impl ServerTls {
    /// Makes a key and has the CA sign it.
    pub(crate) fn issue(
        ca: &Ca,
        anchors: &[CertificateDer<'static>],
        name: &str,
    ) -> anyhow::Result<Self> {
        let valid = Validity::starting(SystemTime::now(), LIFETIME);
        let identity: Identity = ca
            .issue_appliance(name, valid)
            .context("cannot make the appliance's certificate")?;
        Ok(Self {
            link: link::tls::server_config(&identity, anchors)?,
            enrol: link::tls::enrol_server_config(&identity)?,
            fleet: link::tls::fleet_server_config(&identity, anchors)?,
            dial: link::tls::fleet_client_config(&identity, anchors)?,
            valid,
        })
    }
}
