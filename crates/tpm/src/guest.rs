//! The guest's half: what the agent has its TPM do.

use std::io;

use crate::wire::{
    Command, EK_HEAD, MODULUS_BYTES, NAMED_KEY, NULL, RH_ENDORSEMENT, RH_NULL, RH_OWNER,
    RS_PASSWORD, Reader, Response, SHA256,
};
use crate::{
    CERTIFICATE_MAX_BYTES, INTERMEDIATES_MAX_BYTES, KEY_NAME_BYTES, SECRET_BYTES, name_of,
};

const CREATE_PRIMARY: u32 = 0x131;
const ACTIVATE_CREDENTIAL: u32 = 0x147;
const NV_READ: u32 = 0x14e;
const POLICY_SECRET: u32 = 0x151;
const FLUSH_CONTEXT: u32 = 0x165;
const NV_READ_PUBLIC: u32 = 0x169;
const READ_PUBLIC: u32 = 0x173;
const START_AUTH_SESSION: u32 = 0x176;

/// The certificate of the RSA 2048 endorsement key (EK Credential Profile).
const EK_CERTIFICATE: u32 = 0x01c0_0002;
/// The first of the indices with those between it and its CA, one after the other.
const EK_CHAIN: u32 = 0x01c0_0100;
/// So many of these are looked at.
const EK_CHAIN_MAX: u32 = 4;
/// Where a TPM that was made with its endorsement key keeps that. Others make it anew, the same one:
/// seconds for a chip.
const EK_HANDLE: u32 = 0x8101_0001;
/// `TPM_RC_HANDLE` of the first handle.
const NO_SUCH_INDEX: u32 = 0x18b;
/// `TPMA_NV_AUTHREAD`: the index's own password, which is empty, is enough to read it.
const AUTH_READ: u32 = 1 << 18;
/// At once; every TPM gives as many.
const NV_PIECE_BYTES: u16 = 512;

/// Sends a command to a TPM and brings its response.
pub trait Transport {
    /// One command, one response.
    ///
    /// # Errors
    /// Those of the device.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}

/// A TPM did not do what was asked of it. The text is for people; it is sent to the controller.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// It cannot be opened, or does not answer.
    #[error("it cannot be used: {0}")]
    Device(#[from] io::Error),
    /// It refused a command, with this response code (Part 2, section 6.6).
    #[error("it refused command {command:#x} with code {code:#x}")]
    Refused {
        /// The command's code.
        command: u32,
        /// Its answer's.
        code: u32,
    },
    /// Its answer to a command makes no sense.
    #[error("its answer to command {0:#x} makes no sense")]
    Answer(u32),
    /// Nobody gave it one.
    #[error("it has no certificate of an RSA 2048 endorsement key")]
    NoCertificate,
    /// The key that it makes by the default template is another one.
    #[error("its certificate is not for its endorsement key")]
    OtherKey,
}

/// What a TPM shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The certificate of its endorsement key, DER.
    pub certificate: Vec<u8>,
    /// Those between it and its CA, DER, one after the other; mostly none.
    pub intermediates: Vec<u8>,
    /// The name of a key that it holds.
    pub key_name: [u8; KEY_NAME_BYTES],
}

/// A TPM. What was loaded into it goes when this is dropped.
pub struct Tpm<'a> {
    // Behind a pointer, so that this is compiled here: for size, as the agent wants it.
    transport: Box<dyn Transport + Send + 'a>,
    certificate: Vec<u8>,
    /// The key whose name was shown.
    named: u32,
    loaded: Vec<u32>,
}

impl<'a> Tpm<'a> {
    /// Nothing is sent yet.
    pub fn new(transport: impl Transport + Send + 'a) -> Self {
        Self {
            transport: Box::new(transport),
            certificate: Vec::new(),
            named: RH_NULL,
            loaded: Vec::new(),
        }
    }

    /// Reads the endorsement key's certificate, and makes a key to be named.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn show(&mut self) -> Result<Shown, TpmError> {
        let certificate = self.nv(EK_CERTIFICATE, CERTIFICATE_MAX_BYTES)?;
        self.certificate = certificate.ok_or(TpmError::NoCertificate)?;
        let mut intermediates = Vec::new();
        for index in EK_CHAIN..EK_CHAIN + EK_CHAIN_MAX {
            let room = INTERMEDIATES_MAX_BYTES - intermediates.len();
            match self.nv(index, room) {
                Ok(Some(bytes)) => intermediates.extend(bytes),
                Err(error @ TpmError::Device(_)) => return Err(error),
                // There are no more, or none that can be read: the certificate alone may do.
                Ok(None) | Err(_) => break,
            }
        }
        let (named, public) = self.primary(RH_NULL, &NAMED_KEY)?;
        self.named = named;
        Ok(Shown {
            certificate: self.certificate.clone(),
            intermediates,
            key_name: name_of(&public),
        })
    }

    /// Opens a challenge, after [`show`](Self::show): `TPM2B_ID_OBJECT` and
    /// `TPM2B_ENCRYPTED_SECRET`, one after the other.
    ///
    /// # Errors
    /// [`TpmError::Refused`] where the challenge is for another TPM or key.
    pub fn open(&mut self, challenge: &[u8]) -> Result<[u8; SECRET_BYTES], TpmError> {
        let ek = self.endorsement_key()?;
        let session = self.endorsement_session()?;
        let mut command = Command::new(ACTIVATE_CREDENTIAL, &[self.named, ek]);
        command.authorized_by(&[RS_PASSWORD, session]);
        let response = self.send(command.bytes(challenge), ACTIVATE_CREDENTIAL)?;
        let secret = response.of(false)?.parameters.sized();
        let secret = secret.and_then(|secret| secret.try_into().ok());
        secret.ok_or(TpmError::Answer(ACTIVATE_CREDENTIAL))
    }

    /// The key that the certificate is for: the one that is kept, or else made anew.
    fn endorsement_key(&mut self) -> Result<u32, TpmError> {
        let mut command = Command::new(READ_PUBLIC, &[EK_HANDLE]);
        let kept = self.send(&mut command, READ_PUBLIC)?;
        if let Ok(mut response) = kept.of(false)
            && let Some(public) = response.parameters.sized()
            && self.is_certified(public)
        {
            return Ok(EK_HANDLE);
        }
        let mut template = EK_HEAD.to_vec();
        // Count and place of a modulus.
        template.extend([1, 0]);
        template.resize(template.len() + MODULUS_BYTES, 0);
        let (ek, public) = self.primary(RH_ENDORSEMENT, &template)?;
        match self.is_certified(&public) {
            true => Ok(ek),
            false => Err(TpmError::OtherKey),
        }
    }

    /// Whether the certificate has this modulus somewhere; what it says of it the controller reads.
    fn is_certified(&self, public: &[u8]) -> bool {
        let unique = public.strip_prefix(&EK_HEAD);
        let modulus = unique.and_then(|unique| Reader(unique).sized());
        modulus.is_some_and(|modulus| {
            let mut places = self.certificate.windows(MODULUS_BYTES);
            places.any(|place| place == modulus)
        })
    }

    /// A session that may use the endorsement key.
    fn endorsement_session(&mut self) -> Result<u32, TpmError> {
        const POLICY: u8 = 1;
        let mut start = Command::new(START_AUTH_SESSION, &[RH_NULL, RH_NULL]);
        // No HMAC is made with this nonce.
        start.sized(&[0; 16]).sized(&[]).bytes(&[POLICY]);
        start.u16(NULL).u16(SHA256);
        let response = self.send(&mut start, START_AUTH_SESSION)?;
        let session = response.of(true)?.handle;
        self.loaded.push(session);
        let mut secret = Command::new(POLICY_SECRET, &[RH_ENDORSEMENT, session]);
        secret.authorized_by(&[RS_PASSWORD]);
        // No nonce, command or reference that it is bound to, and no end.
        secret.sized(&[]).sized(&[]).sized(&[]).u32(0);
        self.send(&mut secret, POLICY_SECRET)?.of(false)?;
        Ok(session)
    }

    /// Makes a primary key; its handle and public area.
    fn primary(&mut self, hierarchy: u32, template: &[u8]) -> Result<(u32, Vec<u8>), TpmError> {
        let mut command = Command::new(CREATE_PRIMARY, &[hierarchy]);
        command.authorized_by(&[RS_PASSWORD]);
        // Neither password nor data of ours; nothing from outside; no registers.
        command.sized(&[0; 4]).sized(template).sized(&[]).u32(0);
        let answer = self.send(&mut command, CREATE_PRIMARY)?;
        let mut response = answer.of(true)?;
        self.loaded.push(response.handle);
        let public = response.parameters.sized();
        let public = public.ok_or(TpmError::Answer(CREATE_PRIMARY))?;
        Ok((response.handle, public.to_vec()))
    }

    /// What an index of its NV memory holds; `None`: there is no such index.
    fn nv(&mut self, index: u32, max: usize) -> Result<Option<Vec<u8>>, TpmError> {
        let mut command = Command::new(NV_READ_PUBLIC, &[index]);
        let answer = self.send(&mut command, NV_READ_PUBLIC)?;
        let mut response = match answer.of(false) {
            Err(TpmError::Refused {
                code: NO_SUCH_INDEX,
                ..
            }) => return Ok(None),
            response => response?,
        };
        let wrong = || TpmError::Answer(NV_READ_PUBLIC);
        let public = response.parameters.sized().ok_or_else(wrong)?;
        let (attributes, size) = nv_public(public).ok_or_else(wrong)?;
        if usize::from(size) > max {
            return Err(wrong());
        }
        let reader = match attributes & AUTH_READ {
            0 => RH_OWNER,
            _ => index,
        };
        let mut bytes = Vec::new();
        while bytes.len() < usize::from(size) {
            let offset = u16::try_from(bytes.len()).unwrap_or(size);
            let left = size - offset;
            let mut command = Command::new(NV_READ, &[reader, index]);
            command.authorized_by(&[RS_PASSWORD]);
            command.u16(left.min(NV_PIECE_BYTES)).u16(offset);
            let answer = self.send(&mut command, NV_READ)?;
            match answer.of(false)?.parameters.sized() {
                Some(piece) if (1..=usize::from(left)).contains(&piece.len()) => {
                    bytes.extend_from_slice(piece);
                }
                _ => return Err(TpmError::Answer(NV_READ)),
            }
        }
        Ok(Some(bytes))
    }

    fn send(&mut self, command: &mut Command, code: u32) -> Result<Answer, TpmError> {
        let bytes = self.transport.exchange(command.finished())?;
        Ok(Answer { code, bytes })
    }
}

impl Drop for Tpm<'_> {
    fn drop(&mut self) {
        for handle in std::mem::take(&mut self.loaded) {
            // A TPM without resource manager would keep it; there is nobody to tell.
            let _ = self.send(&mut Command::new(FLUSH_CONTEXT, &[handle]), FLUSH_CONTEXT);
        }
    }
}

/// What came back, of which command.
struct Answer {
    code: u32,
    bytes: Vec<u8>,
}

impl Answer {
    fn of(&self, has_handle: bool) -> Result<Response<'_>, TpmError> {
        let command = self.code;
        let response = Response::read(&self.bytes, has_handle);
        let response = response.ok_or(TpmError::Answer(command))?;
        match response.code {
            0 => Ok(response),
            code => Err(TpmError::Refused { command, code }),
        }
    }
}

/// Attributes and size of an index (`TPMS_NV_PUBLIC`).
fn nv_public(bytes: &[u8]) -> Option<(u32, u16)> {
    let mut reader = Reader(bytes);
    let (_index, _algorithm) = (reader.u32()?, reader.u16()?);
    let attributes = reader.u32()?;
    let _policy = reader.sized()?;
    Some((attributes, reader.u16()?))
}
