//! Commands and responses as they travel (Part 3; big-endian), and the few structures that are needed.

/// A command or response without sessions.
const NO_SESSIONS: u16 = 0x8001;
/// One with sessions.
const SESSIONS: u16 = 0x8002;
/// Tag, size and code.
const HEADER_BYTES: usize = 10;
/// Most bytes of a response: what Linux' driver has room for.
pub(crate) const RESPONSE_MAX_BYTES: usize = 4096;

/// `TPM_ALG_SHA256`.
pub(crate) const SHA256: u16 = 0x000b;
/// `TPM_ALG_NULL`.
pub(crate) const NULL: u16 = 0x0010;
/// `TPM_RH_NULL`.
pub(crate) const RH_NULL: u32 = 0x4000_0007;
/// `TPM_RH_OWNER`.
pub(crate) const RH_OWNER: u32 = 0x4000_0001;
/// `TPM_RH_ENDORSEMENT`.
pub(crate) const RH_ENDORSEMENT: u32 = 0x4000_000b;
/// `TPM_RS_PW`: a password, which is empty here.
pub(crate) const RS_PASSWORD: u32 = 0x4000_0009;

/// A key for HMACs, which costs the TPM nothing to make: `TPMT_PUBLIC` of a keyed hash, fixed to its
/// TPM, with an empty password.
pub(crate) const NAMED_KEY: [u8; 16] = [
    0x00, 0x08, // TPM_ALG_KEYEDHASH
    0x00, 0x0b, // its name by SHA-256
    0x00, 0x04, 0x04,
    0x72, // sign, noDA, userWithAuth, sensitiveDataOrigin, fixedParent, fixedTPM
    0x00, 0x00, // no policy
    0x00, 0x05, 0x00, 0x0b, // HMAC by SHA-256
    0x00, 0x00, // unique: the TPM's to make
];

/// Template L-1 of the EK Credential Profile up to the modulus: RSA 2048, restricted decryption with
/// AES-128-CFB, used by the policy that asks for the endorsement hierarchy's authorization.
pub(crate) const EK_HEAD: [u8; 56] = [
    0x00, 0x01, // TPM_ALG_RSA
    0x00, 0x0b, // its name by SHA-256
    0x00, 0x03, 0x00,
    0xb2, // decrypt, restricted, adminWithPolicy, sensitiveDataOrigin, fixed
    0x00, 0x20, // PolicySecret(TPM_RH_ENDORSEMENT)
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
    0x00, 0x06, 0x00, 0x80, 0x00, 0x43, // AES, 128, CFB
    0x00, 0x10, // no scheme
    0x08, 0x00, // 2048 bits
    0x00, 0x00, 0x00, 0x00, // 65537
];
/// Bytes of an endorsement key's modulus.
pub(crate) const MODULUS_BYTES: usize = 256;

/// A command while it is put together.
pub(crate) struct Command(Vec<u8>);

impl Command {
    pub(crate) fn new(code: u32, handles: &[u32]) -> Self {
        let mut command = Self(Vec::with_capacity(1024));
        command.u16(NO_SESSIONS).u32(0).u32(code);
        for handle in handles {
            command.u32(*handle);
        }
        command
    }

    /// The sessions that authorize it, in the order of its handles. None of them makes an HMAC.
    pub(crate) fn authorized_by(&mut self, sessions: &[u32]) -> &mut Self {
        const SESSION_BYTES: u32 = 9;
        const CONTINUE: u8 = 1;
        self.patch(0, &SESSIONS.to_be_bytes());
        self.u32(SESSION_BYTES * u32::try_from(sessions.len()).unwrap_or(0));
        for session in sessions {
            self.u32(*session).u16(0);
            self.0.push(CONTINUE);
            self.u16(0);
        }
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes behind their count (`TPM2B`); of ours none has more than 64 KiB.
    pub(crate) fn sized(&mut self, bytes: &[u8]) -> &mut Self {
        self.u16(u16::try_from(bytes.len()).unwrap_or(0));
        self.bytes(bytes)
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    pub(crate) fn finished(&mut self) -> &[u8] {
        let size = u32::try_from(self.0.len()).unwrap_or(0);
        self.patch(2, &size.to_be_bytes());
        &self.0
    }
}

/// What is left of a response. `None`: it is too short for that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// Bytes behind their count.
    pub(crate) fn sized(&mut self) -> Option<&'a [u8]> {
        let count = self.u16()?;
        self.take(count.into())
    }
}

/// A response: its code, the handle that it may begin with, and its parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Response<'a> {
    pub(crate) code: u32,
    pub(crate) handle: u32,
    pub(crate) parameters: Reader<'a>,
}

impl<'a> Response<'a> {
    /// `None`: it makes no sense.
    pub(crate) fn read(bytes: &'a [u8], has_handle: bool) -> Option<Self> {
        let mut reader = Reader(bytes);
        let (tag, size, code) = (reader.u16()?, reader.u32()?, reader.u32()?);
        let is_whole = usize::try_from(size).is_ok_and(|size| size == bytes.len());
        if !is_whole || bytes.len() < HEADER_BYTES || bytes.len() > RESPONSE_MAX_BYTES {
            return None;
        }
        let mut handle = 0;
        if code == 0 {
            if has_handle {
                handle = reader.u32()?;
            }
            if tag == SESSIONS {
                // What comes after the parameters is of sessions that make no HMAC.
                let count = reader.u32()?;
                reader = Reader(reader.take(usize::try_from(count).ok()?)?);
            }
        }
        Some(Self {
            code,
            handle,
            parameters: reader,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_as_the_standard_has_it() {
        let mut command = Command::new(0x0000_0151, &[RH_ENDORSEMENT, 0x0300_0000]);
        command.authorized_by(&[RS_PASSWORD]).sized(b"").u32(0);
        let expected = [
            0x80, 0x02, 0, 0, 0, 37, 0, 0, 1, 0x51, 0x40, 0, 0, 0x0b, 3, 0, 0, 0, 0, 0, 0, 9, 0x40,
            0, 0, 9, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(command.finished(), expected);
    }

    #[test]
    fn a_response_is_taken_whole_or_not_at_all() {
        let whole = [
            0x80, 2, 0, 0, 0, 23, 0, 0, 0, 0, 0x80, 0, 0, 1, 0, 0, 0, 3, 0, 1, 7, 0, 0,
        ];
        let mut read = Response::read(&whole, true).unwrap();
        assert_eq!((read.code, read.handle), (0, 0x8000_0001));
        assert_eq!(read.parameters.sized(), Some(&[7][..]));
        assert_eq!(
            read.parameters.u16(),
            None,
            "what follows is of the session"
        );
        for cut in 0..whole.len() {
            assert!(Response::read(&whole[..cut], true).is_none(), "{cut}");
        }
        let refused = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x8b];
        assert_eq!(Response::read(&refused, true).unwrap().code, 0x18b);
    }
}
