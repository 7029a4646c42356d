//! What a machine shows of its TPM while it enrols: a certificate by a CA of its pool, and that it has
//! the TPM that the certificate is for.

use std::io;
use std::time::SystemTime;

use proto::v1;
use tpm::{EkId, SECRET_BYTES};

use crate::enrolment::Conversation;
use crate::members::TpmCa;

/// Of what an agent says went wrong, so much is kept for people.
const FAILED_MAX_CHARS: usize = 200;

/// A TPM that a machine was seen to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm {
    /// Its endorsement key: one TPM is one guest.
    pub ek: EkId,
    /// The SMBIOS UUID of the VM that it was made for, where its certificate says so.
    pub vm_uuid: Option<[u8; 16]>,
    /// Who vouches for it: it counts while its pool has that CA.
    pub ca: TpmCa,
}

/// What a machine showed of its TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmShown {
    /// Its pool does not ask for it.
    NotAsked,
    /// It has this one.
    Proved(Tpm),
    /// Why that is not enough, for people.
    TooLittle(String),
}

/// A challenge, and what it is to bring out.
struct Challenge {
    tpm: Tpm,
    secret: [u8; SECRET_BYTES],
    sealed: Vec<u8>,
}

/// Asks for a machine's TPM. A machine that cannot show it, or shows another, may still be approved.
///
/// # Errors
/// The conversation broke off.
pub(crate) async fn ask(
    conversation: &mut Conversation,
    request: &v1::EnrolRequest,
    cas: &[TpmCa],
) -> io::Result<TpmShown> {
    let too_little = |why: &str| Ok(TpmShown::TooLittle(why.to_owned()));
    if !request.has_tpm {
        return too_little("it has no TPM, or an agent that cannot show it");
    }
    let wanted = v1::EnrolReply {
        tpm_wanted: true,
        ..v1::EnrolReply::default()
    };
    conversation.send(&wanted).await?;
    let shown: v1::EnrolTpm = conversation.receive().await?;
    let challenge = match challenge(&shown, cas, SystemTime::now()) {
        Ok(challenge) => challenge,
        Err(why) => return Ok(TpmShown::TooLittle(why)),
    };
    let asked = v1::EnrolReply {
        tpm_challenge: challenge.sealed,
        ..v1::EnrolReply::default()
    };
    conversation.send(&asked).await?;
    let answer: v1::EnrolTpm = conversation.receive().await?;
    if !answer.failed.is_empty() {
        let why = format!("its TPM did not open the challenge: {}", failed(&answer));
        return Ok(TpmShown::TooLittle(why));
    }
    if !tpm::proves(&answer.proof, &challenge.secret, &request.csr) {
        return too_little("it did not show that its TPM opened the challenge for this request");
    }
    Ok(TpmShown::Proved(challenge.tpm))
}

/// What only the TPM that this certificate is for can open.
fn challenge(shown: &v1::EnrolTpm, cas: &[TpmCa], now: SystemTime) -> Result<Challenge, String> {
    if !shown.failed.is_empty() {
        return Err(format!("its TPM cannot be shown: {}", failed(shown)));
    }
    let endorsed = tpm::verify(&shown.ek_certificate, &shown.intermediates, cas, now);
    let endorsed = endorsed.map_err(|error| error.to_string())?;
    let name = shown.key_name.as_slice().try_into();
    let name = name.map_err(|_| "the name of its TPM's key makes no sense".to_owned())?;
    let made = tpm::make_credential(&endorsed.key, name);
    let (secret, sealed) = made.map_err(|error| error.to_string())?;
    let ca = cas.get(endorsed.ca).cloned();
    let tpm = Tpm {
        ek: endorsed.id(),
        vm_uuid: endorsed.vm_uuid,
        ca: ca.ok_or_else(|| "no CA of its pool vouches for its TPM".to_owned())?,
    };
    Ok(Challenge {
        tpm,
        secret,
        sealed,
    })
}

fn failed(answer: &v1::EnrolTpm) -> String {
    answer.failed.chars().take(FAILED_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testbed::{TpmCa as HostCa, TpmSocket, VirtualTpm};
    use tpm::Transport;

    use super::*;

    struct Socket(TpmSocket);

    impl Transport for Socket {
        fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
            self.0.exchange(command)
        }
    }

    #[test]
    fn a_certificate_that_is_not_valid_now_has_no_challenge() {
        let dir = tempfile::tempdir().unwrap();
        let ca = HostCa::new(&dir.path().join("ca")).unwrap();
        let state = dir.path().join("tpm");
        ca.manufacture(&state, "a").unwrap();
        let served = VirtualTpm::serving(&state).unwrap();
        let mut tpm = tpm::Tpm::new(Socket(served.connect().unwrap()));
        let shown = tpm.show().unwrap();
        let shown = v1::EnrolTpm {
            ek_certificate: shown.certificate,
            key_name: shown.key_name.to_vec(),
            ..v1::EnrolTpm::default()
        };
        let issuer = pki::load_anchors(&ca.issuer()).unwrap();
        let cas = [TpmCa(issuer[0].to_vec().into())];
        let now = SystemTime::now();
        let made = challenge(&shown, &cas, now).ok().unwrap();
        assert_eq!(tpm.open(&made.sealed).unwrap(), made.secret);
        let before = challenge(&shown, &cas, now - Duration::from_secs(86_400));
        let why = before.err().unwrap();
        assert!(why.contains("not valid now"), "{why}");
    }
}
