//! TLS 1.3 configurations: who trusts whom, by role.
//!
//! The provider is *ring*, passed explicitly; nothing is installed for the process. Sessions are
//! not resumed: a resumed session would skip the check of the certificate, and a full handshake
//! costs a third of a millisecond.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pki::{APPLIANCE_NAME, CertificateDer, Fingerprint, Identity, RENEW_GRACE};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};

/// A configuration that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No trust anchor, or one that is no certificate.
    #[error("no usable trust anchor")]
    Anchors,
    /// Key and certificates do not make an identity.
    #[error("the certificate or its key cannot be used")]
    Identity(#[source] rustls::Error),
    /// The provider lacks something.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// For an agent: it shows its guest's certificate and accepts appliances only, by the name in
/// their certificate, whatever address was dialled.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(
    identity: &Identity,
    anchors: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .with_root_certificates(root_store(anchors)?)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![proto::ALPN_LINK.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// For an appliance: it accepts guests only. Expired certificates pass for a session that can do
/// nothing but renew.
///
/// # Errors
/// [`TlsError`].
pub fn server_config(
    identity: &Identity,
    anchors: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, TlsError> {
    accepting(Role::Guest, proto::ALPN_LINK, identity, anchors)
}

/// For a controller: it accepts appliances only.
///
/// # Errors
/// [`TlsError`].
pub fn fleet_server_config(
    identity: &Identity,
    anchors: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, TlsError> {
    accepting(Role::Appliance, proto::ALPN_FLEET, identity, anchors)
}

/// For a server that asks clients for a certificate of this role.
fn accepting(
    role: Role,
    protocol: &[u8],
    identity: &Identity,
    anchors: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, TlsError> {
    let roots = Arc::new(root_store(anchors)?);
    let inner = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|_| TlsError::Anchors)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(Arc::new(RoleVerifier { inner, role }));
    server(builder, identity, protocol)
}

/// For an appliance that dials its controller.
///
/// # Errors
/// [`TlsError`].
pub fn fleet_client_config(
    identity: &Identity,
    anchors: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = client_config(identity, anchors)?;
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![proto::ALPN_FLEET.to_vec()];
    Ok(Arc::new(config))
}

/// For a controller's enrolment: it shows its certificate (the chain must hold the CA's) and
/// asks for none.
///
/// # Errors
/// [`TlsError`].
pub fn enrol_server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .with_no_client_auth();
    server(builder, identity, proto::ALPN_ENROL)
}

/// For a guest that enrols: it trusts exactly the CA that its token names.
pub(crate) fn enrol_client_config(ca: Fingerprint) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa { ca }))
        .with_no_client_auth();
    config.alpn_protocols = vec![proto::ALPN_ENROL.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name that every appliance's certificate must carry.
pub(crate) fn appliance_name() -> Result<ServerName<'static>, rustls::Error> {
    ServerName::try_from(APPLIANCE_NAME)
        .map_err(|_| rustls::Error::General("the appliances' name is no DNS name".into()))
}

/// Whether a guest's certificate is right under these anchors now.
pub(crate) fn guest_is_trusted(
    cert: &CertificateDer<'_>,
    anchors: &[CertificateDer<'static>],
) -> bool {
    let Ok(roots) = root_store(anchors) else {
        return false;
    };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    verifier.is_ok_and(|verifier| {
        verifier
            .verify_client_cert(cert, &[], UnixTime::now())
            .is_ok()
    })
}

fn server(
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    identity: &Identity,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = builder
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// *ring*, with AES-128 first: a quarter cheaper than AES-256 for content that the guest reads
/// in clear anyway.
fn provider() -> Arc<CryptoProvider> {
    use ring::cipher_suite as suite;
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    })
}

fn root_store(anchors: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor.clone()).map_err(|_| TlsError::Anchors)?;
    }
    if roots.is_empty() {
        return Err(TlsError::Anchors);
    }
    Ok(roots)
}

/// Whose certificates are accepted.
#[derive(Debug, Clone, Copy)]
enum Role {
    Guest,
    Appliance,
}

/// Accepts certificates of one role. Of guests expired ones too, that were right until they
/// expired; whoever accepts the connection looks at the dates again and limits what it may do.
#[derive(Debug)]
struct RoleVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    role: Role,
}

impl ClientCertVerifier for RoleVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let is_of_role = match self.role {
            Role::Guest => pki::guest_id_of(end_entity).is_ok(),
            Role::Appliance => pki::appliance_name_of(end_entity).is_ok(),
        };
        if !is_of_role {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        let verify = |at| self.inner.verify_client_cert(end_entity, intermediates, at);
        let refused = match verify(now) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        if matches!(self.role, Role::Appliance) {
            return Err(refused);
        }
        // Whatever else is wrong with it is wrong at the last moment of its life too.
        match last_moment_if_expired(end_entity, now) {
            Some(last) => verify(last),
            None => Err(refused),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `Some` where the certificate expired at most [`RENEW_GRACE`] ago.
fn last_moment_if_expired(cert: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
    let not_after = pki::not_after_of(cert).ok()?;
    let not_after = not_after.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let now = Duration::from_secs(now.as_secs());
    let is_expired = now > not_after && now <= not_after + RENEW_GRACE;
    is_expired.then(|| UnixTime::since_unix_epoch(not_after))
}

/// Accepts an appliance's or controller's certificate under the one CA that the token names,
/// which the server shows along with it.
#[derive(Debug)]
struct PinnedCa {
    ca: Fingerprint,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates
            .iter()
            .find(|cert| Fingerprint::of(cert) == self.ca)
            .ok_or(CertificateError::UnknownIssuer)?;
        let roots = root_store(&[pinned.clone().into_owned()])
            .map_err(|_| CertificateError::BadEncoding)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
