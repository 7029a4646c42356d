//! A CA on disk, what it signs, and what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use model::GuestId;
use pki::{
    CA_KEY_FILE, Ca, CaError, CertError, Fingerprint, GuestKey, Identity, KeyError, LIFETIME,
    SignError, Validity,
};

fn now() -> Validity {
    Validity::starting(SystemTime::now(), LIFETIME)
}

#[test]
fn init_then_load_gives_the_same_ca() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("deep/ca");
    let made = Ca::init(&folder).unwrap();
    let loaded = Ca::load(&folder).unwrap();
    assert_eq!(made.cert(), loaded.cert());
    assert_eq!(made.fingerprint(), Fingerprint::of(loaded.cert()));
    let key_file = fs::metadata(folder.join(CA_KEY_FILE)).unwrap();
    assert_eq!(key_file.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "no leftovers");
}

#[test]
fn a_ca_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    Ca::init(dir.path()).unwrap();
    let before = fs::read(dir.path().join(CA_KEY_FILE)).unwrap();
    let refused = Ca::init(dir.path()).err().unwrap();
    assert!(matches!(&refused, CaError::Exists(path) if path.ends_with(CA_KEY_FILE)));
    assert_eq!(fs::read(dir.path().join(CA_KEY_FILE)).unwrap(), before);
}

#[test]
fn only_one_of_many_makers_wins() {
    let dir = tempfile::tempdir().unwrap();
    let won = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| Ca::init(dir.path()).is_ok()))
            .collect();
        let results = makers.into_iter().map(|maker| maker.join().unwrap());
        results.filter(|won| *won).count()
    });
    assert_eq!(won, 1);
    Ca::load(dir.path()).unwrap();
}

#[test]
fn a_ca_that_cannot_be_used_is_named() {
    let check = |damage: &dyn Fn(&std::path::Path), expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        Ca::init(dir.path()).unwrap();
        damage(&dir.path().join(CA_KEY_FILE));
        let error = Ca::load(dir.path()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(CA_KEY_FILE), "{error}");
    };
    check(&|path| fs::remove_file(path).unwrap(), "cannot read");
    check(&|path| fs::write(path, "junk").unwrap(), "private key");
    check(
        &|path| fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap(),
        "chmod 600",
    );
    check(
        &|path| {
            let other = tempfile::tempdir().unwrap();
            Ca::init(other.path()).unwrap();
            let ours = fs::read_to_string(path).unwrap();
            let theirs = fs::read_to_string(other.path().join(CA_KEY_FILE)).unwrap();
            let key = ours.split_once("-----BEGIN CERTIFICATE").unwrap().0;
            let cert = theirs.split_once("-----BEGIN CERTIFICATE").unwrap().1;
            fs::write(path, format!("{key}-----BEGIN CERTIFICATE{cert}")).unwrap();
        },
        "not for its private key",
    );
}

#[test]
fn a_guest_gets_its_own_name_and_only_that() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::init(dir.path()).unwrap();
    let guest = GuestId([0x5a; 16]);
    let key = GuestKey::generate().unwrap();
    let cert = ca.sign_guest(key.csr(), guest, now()).unwrap();
    assert_eq!(pki::guest_id_of(&cert), Ok(guest));
    let life = pki::validity_of(&cert).unwrap();
    let length = life.not_after.duration_since(life.not_before).unwrap();
    assert_eq!(length.as_secs(), (LIFETIME + pki::BACK_DATE).as_secs());

    let other = GuestKey::generate().unwrap();
    let refused = other.certified(vec![cert.clone()]);
    assert!(matches!(refused, Err(KeyError::NotForThisKey)));
    let identity = key.certified(vec![cert]).unwrap();
    let path = dir.path().join("identity.pem");
    identity.save(&path).unwrap();
    let loaded = Identity::load(&path).unwrap();
    assert_eq!(loaded.chain, identity.chain);
    assert_eq!(loaded.key, identity.key);
}

#[test]
fn an_appliance_is_no_guest_and_a_request_cannot_choose_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::init(dir.path()).unwrap();
    let appliance = ca.issue_appliance("one", now()).unwrap();
    let leaf = appliance.leaf().unwrap();
    assert_eq!(pki::guest_id_of(leaf), Err(CertError::NotAGuest));
    assert_eq!(pki::guest_id_of(ca.cert()), Err(CertError::NotAGuest));
    assert_eq!(pki::guest_id_of(b"junk"), Err(CertError::NotACertificate));
    assert_eq!(appliance.chain[1], *ca.cert());

    // A request that asks to be an appliance and a CA gets a guest's certificate.
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut wish = rcgen::CertificateParams::new([pki::APPLIANCE_NAME.to_owned()]).unwrap();
    wish.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wish.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let csr = wish.serialize_request(&pair).unwrap();
    let guest = GuestId([1; 16]);
    let cert = ca.sign_guest(csr.der(), guest, now()).unwrap();
    assert_eq!(pki::guest_id_of(&cert), Ok(guest));
    let (_, parsed) = x509_parser::parse_x509_certificate(&cert).unwrap();
    assert!(!parsed.is_ca());
    let text = String::from_utf8_lossy(&cert);
    assert!(!text.contains(pki::APPLIANCE_NAME));
}

#[test]
fn bad_requests_and_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::init(dir.path()).unwrap();
    let refused = ca.sign_guest(b"junk", GuestId([1; 16]), now());
    assert!(matches!(
        refused,
        Err(SignError::Request(KeyError::NotARequest))
    ));
    for name in ["", "a\nb", &"x".repeat(65)] {
        let refused = ca.issue_appliance(name, now());
        assert!(matches!(refused, Err(SignError::Name(_))), "{name:?}");
    }
    let far = Validity {
        not_before: SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        not_after: SystemTime::now(),
    };
    let refused = ca.issue_appliance("a", far);
    assert!(matches!(refused, Err(SignError::Dates)));
}
