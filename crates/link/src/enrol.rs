//! Enrolment, the guest's half: a join token becomes a certificate.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use model::{GuestId, Machine};
use pki::{CertificateDer, Fingerprint, GuestKey, Identity, JoinToken};
use proto::{FrameError, v1};
use rustix::event::PollFlags;
use rustls::{CertificateError, ClientConnection};

use crate::client::connect::dial;
use crate::client::session::wait_for;
use crate::tls::{TlsError, appliance_name, enrol_client_config, guest_is_trusted};

/// The whole exchange must end within this.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(15);
/// So much more where the controller asks for the guest's TPM: a chip is slow, and it may have to
/// make its key first. Longer than either side gives the other for that.
pub const ENROL_TPM_TIMEOUT: Duration = Duration::from_secs(40);
/// Longest message of an enrolment, either way.
pub const ENROL_MESSAGE_MAX_BYTES: usize = 32 * 1024;
/// To connect to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most trust anchors taken: one, and another during a roll.
const ANCHORS_MAX: usize = 4;

/// What a guest gets.
#[derive(Debug)]
pub struct Enrolled {
    /// Its id.
    pub guest: GuestId,
    /// Its key and certificate.
    pub identity: Identity,
    /// Whom it trusts: the token's CA, and the next one during a roll.
    pub anchors: Vec<CertificateDer<'static>>,
    /// Appliances to use, in order, as host:port.
    pub appliances: Vec<String>,
    /// The machine does not outlive its user: its key is never to reach a disk.
    pub ephemeral: bool,
}

/// The guest's TPM, which the controller may ask for. What fails is said in the answer: whether that
/// is enough the controller decides.
pub trait GuestTpm {
    /// Its endorsement certificate, and the name of a key that it holds.
    fn show(&mut self) -> v1::EnrolTpm;

    /// The proof that it opened this challenge for this certificate request.
    fn answer(&mut self, challenge: &[u8], csr: &[u8]) -> v1::EnrolTpm;
}

/// Enrolment failed; nothing was kept.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The controller cannot be reached.
    #[error("cannot reach the controller at {address}: {why}")]
    Connect {
        /// As configured.
        address: String,
        /// Why.
        why: String,
    },
    /// It is not the controller that the token names.
    #[error("{address} is not the controller that the join token names")]
    WrongCa {
        /// Who answered.
        address: String,
    },
    /// The conversation broke off.
    #[error("the conversation with the controller at {address} failed")]
    Conversation {
        /// With whom.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("the controller refused: {0}")]
    Refused(String),
    /// It said neither yes nor no.
    #[error("a person has to approve this guest first")]
    Pending {
        /// Ask again after so long, with the same key.
        retry_after: Duration,
    },
    /// Its answer cannot be used.
    #[error("the controller's answer cannot be used: {0}")]
    Answer(&'static str),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] TlsError),
}

/// Exchanges the token for a certificate for this key. Blocks up to [`ENROL_TIMEOUT`] (and to
/// resolve the controller's name), and [`ENROL_TPM_TIMEOUT`] where the TPM is asked for.
///
/// # Errors
/// [`EnrolError`]; the token's use may have been spent where the answer was lost on its way.
pub fn enrol(
    controller: &str,
    token: &JoinToken,
    key: &GuestKey,
    hostname: &str,
    machine: &Machine,
    tpm: Option<&mut dyn GuestTpm>,
) -> Result<Enrolled, EnrolError> {
    let until = Instant::now() + ENROL_TIMEOUT;
    let request = v1::EnrolRequest {
        token: token.secret.expose(),
        csr: key.csr().to_vec(),
        hostname: hostname.to_owned(),
        machine: Some(machine.into()),
        has_tpm: tpm.is_some(),
    };
    let config = enrol_client_config(token.ca).map_err(EnrolError::Tls)?;
    let name = appliance_name().map_err(|e| EnrolError::Tls(TlsError::Setup(e)))?;
    let connection = ClientConnection::new(config, name);
    let connection = connection.map_err(|e| EnrolError::Tls(TlsError::Setup(e)))?;
    let tcp = dial(controller, CONNECT_TIMEOUT).map_err(|error| EnrolError::Connect {
        address: controller.to_owned(),
        why: error.to_string(),
    })?;
    let reply = converse(tcp, connection, &request, tpm, until)
        .map_err(|error| conversation_error(controller, error))?;
    accept(reply, token.ca, key)
}

fn conversation_error(address: &str, source: io::Error) -> EnrolError {
    let tls = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let address = address.to_owned();
    match tls {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => EnrolError::WrongCa { address },
        _ => EnrolError::Conversation { address, source },
    }
}

/// One request, one reply; between them what the controller wants of the TPM, each thing once.
fn converse(
    tcp: TcpStream,
    connection: ClientConnection,
    request: &v1::EnrolRequest,
    tpm: Option<&mut dyn GuestTpm>,
    until: Instant,
) -> io::Result<v1::EnrolReply> {
    let mut stream = rustls::StreamOwned::new(connection, Deadlined { tcp, until });
    let mut plain = BytesMut::new();
    send(&mut stream, proto::encode(request))?;
    let mut reply = receive(&mut stream, &mut plain)?;
    if let Some(tpm) = tpm.filter(|_| reply.tpm_wanted) {
        stream.sock.until += ENROL_TPM_TIMEOUT;
        send(&mut stream, proto::encode(&tpm.show()))?;
        reply = receive(&mut stream, &mut plain)?;
        if !reply.tpm_challenge.is_empty() {
            let answer = tpm.answer(&reply.tpm_challenge, &request.csr);
            send(&mut stream, proto::encode(&answer))?;
            reply = receive(&mut stream, &mut plain)?;
        }
    }
    Ok(reply)
}

type Stream = rustls::StreamOwned<ClientConnection, Deadlined>;

fn send(stream: &mut Stream, frame: Result<Bytes, FrameError>) -> io::Result<()> {
    stream.write_all(&frame.map_err(io::Error::other)?)?;
    stream.flush()
}

fn receive(stream: &mut Stream, plain: &mut BytesMut) -> io::Result<v1::EnrolReply> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(body) = proto::split(plain).map_err(io::Error::other)? {
            return proto::decode(body).map_err(io::Error::other);
        }
        if plain.len() > ENROL_MESSAGE_MAX_BYTES {
            return Err(io::Error::other("its answer is too long"));
        }
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        plain.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
}

/// Checks all of an answer before anything of it is used.
fn accept(reply: v1::EnrolReply, ca: Fingerprint, key: &GuestKey) -> Result<Enrolled, EnrolError> {
    if !reply.refused.is_empty() {
        return Err(EnrolError::Refused(
            reply.refused.chars().take(300).collect(),
        ));
    }
    if reply.pending_retry_s > 0 {
        let retry_after = Duration::from_secs(reply.pending_retry_s.into());
        return Err(EnrolError::Pending { retry_after });
    }
    let certificates =
        |list: Vec<Vec<u8>>| -> Vec<_> { list.into_iter().map(CertificateDer::from).collect() };
    let anchors = certificates(reply.trust_anchors);
    if anchors.len() > ANCHORS_MAX || !anchors.iter().any(|a| Fingerprint::of(a) == ca) {
        return Err(EnrolError::Answer("its trust anchors lack the token's CA"));
    }
    let guest = GuestId::from_slice(&reply.guest_id)
        .ok_or(EnrolError::Answer("the guest's id is not valid"))?;
    let identity = key
        .certified(certificates(reply.chain))
        .map_err(|_| EnrolError::Answer("the certificate is not for our key"))?;
    let leaf = identity.leaf();
    let leaf = leaf.ok_or(EnrolError::Answer("there is no certificate"))?;
    if pki::guest_id_of(leaf) != Ok(guest) {
        return Err(EnrolError::Answer("the certificate names another guest"));
    }
    if !guest_is_trusted(leaf, &anchors) {
        return Err(EnrolError::Answer("the certificate is not valid now"));
    }
    if reply.appliances.is_empty() {
        return Err(EnrolError::Answer("it names no appliance"));
    }
    Ok(Enrolled {
        guest,
        identity,
        anchors,
        appliances: reply.appliances,
        ephemeral: reply.ephemeral,
    })
}

/// A socket whose every operation ends at `until`.
struct Deadlined {
    tcp: TcpStream,
    until: Instant,
}

impl Deadlined {
    fn ready(&self, flags: PollFlags) -> io::Result<()> {
        if wait_for(&self.tcp, flags, self.until) {
            Ok(())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

impl Read for Deadlined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.ready(PollFlags::IN)?;
        self.tcp.read(buffer)
    }
}

impl Write for Deadlined {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ready(PollFlags::OUT)?;
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        Ok(rustix::net::send(&self.tcp, bytes, flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
