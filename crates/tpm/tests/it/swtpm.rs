//! Both halves with a real TPM between them.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use testbed::{TpmCa, TpmSocket, VirtualTpm};
use tpm::{CertificateError, Tpm, TpmError, Transport, make_credential, proof, proves, verify};

const UUID: &str = "5d1c7a52-8f0e-4a5a-9d0b-3f6f2b7e0001";
const READ_PUBLIC: [u8; 4] = [0, 0, 1, 0x73];
const CREATE_PRIMARY: [u8; 4] = [0, 0, 1, 0x31];

/// A TPM that counts commands, and may lack its endorsement key.
struct Wire {
    socket: TpmSocket,
    /// It answers that it keeps no key.
    keeps_none: bool,
    made: usize,
}

impl Transport for &mut Wire {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.made += usize::from(command[6..10] == CREATE_PRIMARY);
        if self.keeps_none && command[6..10] == READ_PUBLIC {
            return Ok(vec![0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x8b]);
        }
        self.socket.exchange(command)
    }
}

fn wire(tpm: &VirtualTpm) -> Wire {
    Wire {
        socket: tpm.connect().unwrap(),
        keeps_none: false,
        made: 0,
    }
}

fn made(ca: &TpmCa, dir: &Path, vmid: &str) -> VirtualTpm {
    ca.manufacture(dir, vmid).unwrap();
    VirtualTpm::serving(dir).unwrap()
}

fn der(path: &Path) -> Vec<u8> {
    let text = std::fs::read(path).unwrap();
    pem::parse(text).unwrap().into_contents()
}

#[test]
fn a_tpm_proves_which_one_it_is_and_no_other_can() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TpmCa::new(&dir.path().join("ca")).unwrap();
    let first = made(&ca, &dir.path().join("first"), &format!("win10:{UUID}"));
    let other = made(&ca, &dir.path().join("other"), "no uuid");
    let now = SystemTime::now();
    let (issuer, root) = (der(&ca.issuer()), der(&ca.root()));

    let mut device = wire(&first);
    let mut tpm = Tpm::new(&mut device);
    let shown = tpm.show().unwrap();
    assert!(shown.intermediates.is_empty());
    let endorsed = verify(&shown.certificate, &[], &[&issuer], now).unwrap();
    let uuid = u128::from_str_radix(&UUID.replace('-', ""), 16).unwrap();
    assert_eq!(endorsed.vm_uuid, Some(uuid.to_be_bytes()));
    // The root alone needs the issuer's certificate, which this TPM has not.
    let by_root = verify(&shown.certificate, &[], &[&root], now);
    assert_eq!(by_root, Err(CertificateError::NoChain));
    let by_root = verify(&shown.certificate, &issuer, &[&root], now);
    assert_eq!(by_root.as_ref(), Ok(&endorsed));
    let early = verify(
        &shown.certificate,
        &[],
        &[&issuer],
        now - Duration::from_secs(3600),
    );
    assert_eq!(early, Err(CertificateError::NotNow));

    let (secret, challenge) = make_credential(&endorsed.key, &shown.key_name).unwrap();
    let opened = tpm.open(&challenge).unwrap();
    assert_eq!(opened, secret);
    assert!(proves(&proof(&opened, b"csr"), &secret, b"csr"));

    // A challenge for another name, and the same challenge at another TPM.
    let (_, for_another) = make_credential(&endorsed.key, &[7; 34]).unwrap();
    let refused = tpm.open(&for_another);
    assert!(
        matches!(refused, Err(TpmError::Refused { .. })),
        "{refused:?}"
    );
    let mut device = wire(&other);
    let mut tpm = Tpm::new(&mut device);
    let others = tpm.show().unwrap();
    let verified = verify(&others.certificate, &[], &[&issuer], now).unwrap();
    assert_eq!(verified.vm_uuid, None);
    assert_ne!(verified.id(), endorsed.id());
    let refused = tpm.open(&challenge);
    assert!(
        matches!(refused, Err(TpmError::Refused { .. })),
        "{refused:?}"
    );
}

/// More often than a TPM has places: what was loaded goes again.
#[test]
fn a_tpm_that_keeps_no_endorsement_key_makes_it_and_nothing_stays_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TpmCa::new(&dir.path().join("ca")).unwrap();
    let tpm = made(&ca, &dir.path().join("tpm"), &format!("a:{UUID}"));
    let issuer = der(&ca.issuer());
    let mut device = wire(&tpm);
    for round in 0..5 {
        device.keeps_none = round % 2 == 1;
        device.made = 0;
        let mut tpm = Tpm::new(&mut device);
        let shown = tpm.show().unwrap();
        let now = SystemTime::now();
        let endorsed = verify(&shown.certificate, &[], &[&issuer], now).unwrap();
        let (secret, challenge) = make_credential(&endorsed.key, &shown.key_name).unwrap();
        assert_eq!(tpm.open(&challenge).unwrap(), secret, "round {round}");
        drop(tpm);
        assert_eq!(device.made, 1 + round % 2, "round {round}");
    }
}
