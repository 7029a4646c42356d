//! The client's side of NTLMv2 (MS-NLMP), bound to the TLS channel. WinRM takes Kerberos or this.

use hmac::{Hmac, KeyInit, Mac};
use md4::Md4;
use md5::{Digest, Md5};

const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";
/// Unicode, request target, NTLM, always sign, extended session security, target info, version,
/// 128 bits, 56 bits.
const FLAGS: u32 = 0x0000_0001
    | 0x0000_0004
    | 0x0000_0200
    | 0x0000_8000
    | 0x0008_0000
    | 0x0080_0000
    | 0x0200_0000
    | 0x2000_0000
    | 0x8000_0000;
/// Windows 10, NTLM revision 15: servers only log it.
const VERSION: [u8; 8] = [10, 0, 0x61, 0x4a, 0, 0, 0, 15];

const AV_END: u16 = 0;
const AV_FLAGS: u16 = 6;
const AV_TIMESTAMP: u16 = 7;
const AV_CHANNEL_BINDINGS: u16 = 10;
const AV_FLAG_MIC: u32 = 2;
/// Where the message integrity code is in the last message.
const MIC_AT: usize = 72;

/// A challenge that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadChallenge;

/// Who authenticates.
pub(crate) struct Account<'a> {
    pub(crate) domain: &'a str,
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
}

/// What is fresh in one authentication.
pub(crate) struct Fresh {
    /// Random.
    pub(crate) challenge: [u8; 8],
    /// 100 ns since 1601; the server's own where it sends one.
    pub(crate) time: u64,
    /// SHA-256 of the server's certificate, DER.
    pub(crate) certificate_sha256: Option<[u8; 32]>,
}

/// The first message.
pub(crate) fn negotiate() -> Vec<u8> {
    let mut message = SIGNATURE.to_vec();
    message.extend(1_u32.to_le_bytes());
    message.extend(FLAGS.to_le_bytes());
    message.extend([0; 16]);
    message.extend(VERSION);
    message
}

/// The last message, in answer to the server's challenge.
pub(crate) fn authenticate(
    account: &Account<'_>,
    fresh: &Fresh,
    challenge: &[u8],
) -> Result<Vec<u8>, BadChallenge> {
    let server = read_challenge(challenge)?;
    let time = server.time.unwrap_or(fresh.time);
    let has_mic = server.time.is_some();
    let info = target_info(&server.info, has_mic, fresh.certificate_sha256);
    let key = ntowf_v2(account);
    let blob = client_blob(time, fresh.challenge, &info);
    let proof = mac(&key, &[&server.challenge, &blob]);
    let session_key = mac(&key, &[&proof]);
    let nt_response = [&proof[..], &blob].concat();

    let mut payload: Vec<u8> = Vec::new();
    let mut fields: Vec<u8> = Vec::new();
    let header_len = MIC_AT + 16;
    for part in [
        &[0; 24][..],
        &nt_response,
        &utf16(account.domain),
        &utf16(account.user),
        &[],
        &[],
    ] {
        let len = u16::try_from(part.len()).map_err(|_| BadChallenge)?;
        let at = (header_len + payload.len()) as u32;
        fields.extend(len.to_le_bytes());
        fields.extend(len.to_le_bytes());
        fields.extend(at.to_le_bytes());
        payload.extend(part);
    }
    let mut message = SIGNATURE.to_vec();
    message.extend(3_u32.to_le_bytes());
    message.extend(fields);
    message.extend((FLAGS & server.flags).to_le_bytes());
    message.extend(VERSION);
    message.extend([0; 16]);
    message.extend(payload);
    if has_mic {
        let mic = mac(&session_key, &[&negotiate(), challenge, &message]);
        message[MIC_AT..MIC_AT + 16].copy_from_slice(&mic);
    }
    Ok(message)
}

struct Challenge {
    flags: u32,
    challenge: [u8; 8],
    info: Vec<(u16, Vec<u8>)>,
    time: Option<u64>,
}

fn read_challenge(message: &[u8]) -> Result<Challenge, BadChallenge> {
    let bytes = |at: usize, len: usize| -> Result<&[u8], BadChallenge> {
        let end = at.checked_add(len).ok_or(BadChallenge)?;
        message.get(at..end).ok_or(BadChallenge)
    };
    let u16_at = |at| -> Result<u16, BadChallenge> { read_u16(bytes(at, 2)?) };
    let u32_at = |at: usize| -> Result<u32, BadChallenge> {
        let four = bytes(at, 4)?.try_into().map_err(|_| BadChallenge)?;
        Ok(u32::from_le_bytes(four))
    };
    if bytes(0, 8)? != SIGNATURE || u32_at(8)? != 2 {
        return Err(BadChallenge);
    }
    let info = bytes(u32_at(44)? as usize, u16_at(40)?.into())?;
    let info = read_info(info)?;
    let time = info.iter().find(|(id, _)| *id == AV_TIMESTAMP);
    let time = time.and_then(|(_, value)| value[..].try_into().ok());
    Ok(Challenge {
        flags: u32_at(20)?,
        challenge: bytes(24, 8)?.try_into().map_err(|_| BadChallenge)?,
        time: time.map(u64::from_le_bytes),
        info,
    })
}

fn read_u16(two: &[u8]) -> Result<u16, BadChallenge> {
    let two = two.try_into().map_err(|_| BadChallenge)?;
    Ok(u16::from_le_bytes(two))
}

fn read_info(mut bytes: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, BadChallenge> {
    let mut pairs = Vec::new();
    loop {
        let (head, rest) = bytes.split_at_checked(4).ok_or(BadChallenge)?;
        let (id, len) = (read_u16(&head[..2])?, read_u16(&head[2..])?);
        if id == AV_END {
            return Ok(pairs);
        }
        let (value, rest) = rest.split_at_checked(len.into()).ok_or(BadChallenge)?;
        pairs.push((id, value.to_vec()));
        bytes = rest;
    }
}

/// The server's pairs, with what we add.
fn target_info(
    pairs: &[(u16, Vec<u8>)],
    has_mic: bool,
    certificate_sha256: Option<[u8; 32]>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut push = |id: u16, value: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(value);
    };
    for (id, value) in pairs {
        if ![AV_FLAGS, AV_CHANNEL_BINDINGS].contains(id) {
            push(*id, value);
        }
    }
    if has_mic {
        push(AV_FLAGS, &AV_FLAG_MIC.to_le_bytes());
    }
    if let Some(sha256) = certificate_sha256 {
        push(AV_CHANNEL_BINDINGS, &channel_bindings(sha256));
    }
    push(AV_END, &[]);
    out
}

/// RFC 5929, `tls-server-end-point`, as the hash of a GSS channel binding.
fn channel_bindings(certificate_sha256: [u8; 32]) -> [u8; 16] {
    let data = [&b"tls-server-end-point:"[..], &certificate_sha256].concat();
    let mut binding = vec![0; 16];
    binding.extend((data.len() as u32).to_le_bytes());
    binding.extend(data);
    Md5::digest(binding).into()
}

fn client_blob(time: u64, challenge: [u8; 8], info: &[u8]) -> Vec<u8> {
    let mut blob = vec![1, 1, 0, 0, 0, 0, 0, 0];
    blob.extend(time.to_le_bytes());
    blob.extend(challenge);
    blob.extend([0; 4]);
    blob.extend(info);
    blob.extend([0; 4]);
    blob
}

fn ntowf_v2(account: &Account<'_>) -> [u8; 16] {
    let hash = Md4::digest(utf16(account.password));
    let who = account.user.to_uppercase() + account.domain;
    mac(&hash, &[&utf16(&who)])
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Hmac::<Md5>::new_from_slice(key).expect("a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// The server's side, for the fake.
#[cfg(test)]
pub(crate) mod server {
    use super::*;

    pub(crate) const CHALLENGE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    /// A challenge with a time stamp, as Windows makes it.
    pub(crate) fn challenge() -> Vec<u8> {
        let mut info = Vec::new();
        for (id, value) in [
            (2_u16, utf16("DOMAIN")),
            (AV_TIMESTAMP, vec![7; 8]),
            (AV_END, vec![]),
        ] {
            info.extend(id.to_le_bytes());
            info.extend((value.len() as u16).to_le_bytes());
            info.extend(value);
        }
        let mut message = SIGNATURE.to_vec();
        message.extend(2_u32.to_le_bytes());
        message.extend([0, 0, 0, 0, 56, 0, 0, 0]);
        message.extend(FLAGS.to_le_bytes());
        message.extend(CHALLENGE);
        message.extend([0; 8]);
        message.extend((info.len() as u16).to_le_bytes());
        message.extend((info.len() as u16).to_le_bytes());
        message.extend(56_u32.to_le_bytes());
        message.extend(VERSION);
        message.extend(info);
        message
    }

    /// Whether a last message shows that the password is known.
    pub(crate) fn accepts(account: &Account<'_>, message: &[u8]) -> bool {
        let at = |at: usize| -> Option<Vec<u8>> {
            let len = read_u16(message.get(at..at + 2)?).ok()?;
            let from = u32::from_le_bytes(message.get(at + 4..at + 8)?.try_into().ok()?) as usize;
            Some(message.get(from..from + usize::from(len))?.to_vec())
        };
        let (Some(response), Some(domain), Some(user)) = (at(20), at(28), at(36)) else {
            return false;
        };
        let Some((proof, blob)) = response.split_at_checked(16) else {
            return false;
        };
        let key = ntowf_v2(account);
        let is_who = domain == utf16(account.domain) && user == utf16(account.user);
        is_who && mac(&key, &[&CHALLENGE, blob]) == proof
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const ACCOUNT: Account<'_> = Account {
        domain: "Domain",
        user: "User",
        password: "Password",
    };

    /// The example of MS-NLMP, section 4.2.4.
    #[test]
    fn the_example_of_the_standard() {
        let key = ntowf_v2(&ACCOUNT);
        assert_eq!(hex(&key), "0c868a403bfd7a93a3001ef22ef02e3f");
        let info = [
            &[2, 0, 12, 0][..],
            &utf16("Domain"),
            &[1, 0, 12, 0],
            &utf16("Server"),
            &[0; 4],
        ]
        .concat();
        let blob = client_blob(0, [0xaa; 8], &info);
        let challenge = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
        let proof = mac(&key, &[&challenge, &blob]);
        assert_eq!(hex(&proof), "68cd0ab851e51c96aabc927bebef6a1c");
    }

    #[test]
    fn a_challenge_that_makes_no_sense_is_refused() {
        let fresh = Fresh {
            challenge: [1; 8],
            time: 0,
            certificate_sha256: None,
        };
        let whole = server::challenge();
        authenticate(&ACCOUNT, &fresh, &whole).expect("good");
        for len in 0..whole.len() {
            let cut = authenticate(&ACCOUNT, &fresh, &whole[..len]);
            assert_eq!(cut, Err(BadChallenge), "{len}");
        }
    }
}
