//! Which certificates count.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SignatureAlgorithm,
};
use time::OffsetDateTime;
use tpm::{CertificateError, check_ca, verify};

/// `tcg-kp-EKCertificate`.
const EK_USE: [u64; 5] = [2, 23, 133, 8, 1];

/// An RSA 2048 public key; nobody has the other half.
struct Rsa {
    key: Vec<u8>,
}

impl Rsa {
    fn of_bits(bits: usize) -> Self {
        let mut modulus = vec![0; bits / 8 + 1];
        modulus[1] = 0xc5;
        modulus[bits / 8] = 1;
        let integer = |bytes: &[u8]| tlv(2, bytes);
        let key = tlv(0x30, &[integer(&modulus), integer(&[1, 0, 1])].concat());
        Self { key }
    }
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = match content.len() {
        0..0x80 => vec![tag, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [head, content.to_vec()].concat()
}

impl PublicKeyData for Rsa {
    fn der_bytes(&self) -> &[u8] {
        &self.key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// A CA with a key.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

fn days(days: i64) -> OffsetDateTime {
    OffsetDateTime::from(SystemTime::now()) + time::Duration::days(days)
}

fn named(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = days(-1);
    params.not_after = days(1);
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    named(&mut params, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn root(params: &CertificateParams) -> Ca {
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    let issuer = Issuer::new(params.clone(), key);
    Ca { issuer, der }
}

fn below(above: &Ca, params: &CertificateParams) -> Ca {
    let key = KeyPair::generate().unwrap();
    let der = params
        .signed_by(&key, &above.issuer)
        .unwrap()
        .der()
        .to_vec();
    let issuer = Issuer::new(params.clone(), key);
    Ca { issuer, der }
}

fn leaf_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    named(&mut params, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK_USE.to_vec())];
    params
}

fn leaf(ca: &Ca, params: &CertificateParams) -> Vec<u8> {
    let key = Rsa::of_bits(2048);
    params.signed_by(&key, &ca.issuer).unwrap().der().to_vec()
}

/// An endorsement certificate and its CA's.
pub(crate) struct Made {
    pub(crate) leaf: Vec<u8>,
    pub(crate) ca: Vec<u8>,
}

pub(crate) fn endorsed() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let ca = root(&ca_params("ca"));
        let leaf = leaf(&ca, &leaf_params("vm"));
        Made { leaf, ca: ca.der }
    })
}

#[track_caller]
fn check(leaf: &[u8], between: &[&Ca], ca: &Ca, expected: Result<(), CertificateError>) {
    let between: Vec<u8> = between.iter().flat_map(|it| it.der.clone()).collect();
    let verified = verify(leaf, &between, &[&ca.der], SystemTime::now());
    assert_eq!(verified.map(|_| ()), expected);
}

#[test]
fn a_chain_ends_at_a_ca_of_the_pool_or_nowhere() {
    let (top, other) = (root(&ca_params("top")), root(&ca_params("other")));
    // The same name, another key.
    let impostor = root(&ca_params("top"));
    let middle = below(&top, &ca_params("middle"));
    let low = below(&middle, &ca_params("low"));
    let ek = leaf(&low, &leaf_params("vm"));
    check(&ek, &[], &low, Ok(()));
    check(&ek, &[&low, &middle], &top, Ok(()));
    check(&ek, &[&middle, &low], &top, Ok(()));
    for (between, ca) in [
        (&[&low][..], &top),
        (&[&low, &middle], &other),
        (&[&low, &middle], &impostor),
        // What a guest brings along is no anchor.
        (&[&low, &middle, &top], &other),
    ] {
        check(&ek, between, ca, Err(CertificateError::NoChain));
    }
    let anchors = [&b"no certificate"[..], &other.der, &low.der];
    let endorsed = verify(&ek, &[], &anchors, SystemTime::now()).unwrap();
    assert_eq!(endorsed.ca, 2, "which one it was");
    let many = [&low; 5];
    check(&ek, &many, &top, Err(CertificateError::Intermediates));
}

#[test]
fn who_may_not_issue_has_not_issued() {
    let top = root(&ca_params("top"));
    let mut short = ca_params("short");
    short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = root(&short);
    let middle = below(&short, &ca_params("middle"));
    let ek = leaf(&middle, &leaf_params("vm"));
    check(&ek, &[&middle], &short, Err(CertificateError::NoChain));
    check(&ek, &[], &middle, Ok(()));

    let mut no_ca = ca_params("no ca");
    no_ca.is_ca = IsCa::ExplicitNoCa;
    let mut no_signer = ca_params("no signer");
    no_signer.key_usages = vec![KeyUsagePurpose::CrlSign];
    let mut strange = ca_params("strange");
    let mut extension = CustomExtension::from_oid_content(&[2, 23, 133, 99], vec![5, 0]);
    extension.set_criticality(true);
    strange.custom_extensions = vec![extension];
    for (params, why) in [
        (no_ca, CertificateError::NotACa),
        (no_signer, CertificateError::NotACa),
        (strange, CertificateError::Critical),
    ] {
        let it = below(&top, &params);
        assert_eq!(check_ca(&it.der), Err(why));
        let ek = leaf(&it, &leaf_params("vm"));
        check(&ek, &[], &it, Err(CertificateError::NoChain));
        check(&ek, &[&it], &top, Err(CertificateError::NoChain));
    }
    assert_eq!(check_ca(&top.der), Ok(()));
}

#[test]
fn what_is_over_does_not_count() {
    let over = |mut params: CertificateParams| {
        params.not_after = days(0) - time::Duration::minutes(1);
        params
    };
    let top = root(&ca_params("top"));
    let ek = leaf(&top, &over(leaf_params("vm")));
    check(&ek, &[], &top, Err(CertificateError::NotNow));
    let middle = below(&top, &over(ca_params("middle")));
    let ek = leaf(&middle, &leaf_params("vm"));
    check(&ek, &[&middle], &top, Err(CertificateError::NotNow));
    let old = root(&over(ca_params("old")));
    let ek = leaf(&old, &leaf_params("vm"));
    check(&ek, &[], &old, Err(CertificateError::NotNow));
    // Not yet.
    let verified = verify(
        &endorsed().leaf,
        &[],
        &[&endorsed().ca],
        SystemTime::now() - Duration::from_secs(3 * 86_400),
    );
    assert_eq!(verified, Err(CertificateError::NotNow));
}

#[test]
fn a_certificate_for_something_else_is_not_taken() {
    let top = root(&ca_params("top"));
    let mut server = leaf_params("vm");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut signer = leaf_params("vm");
    signer.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    for params in [server, signer, ca_params("vm")] {
        let ek = leaf(&top, &params);
        check(&ek, &[], &top, Err(CertificateError::NotEndorsement));
    }
    // Some makers name no use.
    let mut silent = leaf_params("vm");
    silent.extended_key_usages.clear();
    check(&leaf(&top, &silent), &[], &top, Ok(()));
    let long = leaf_params("vm").signed_by(&Rsa::of_bits(3072), &top.issuer);
    check(
        long.unwrap().der(),
        &[],
        &top,
        Err(CertificateError::NotRsa),
    );
    let curve = KeyPair::generate().unwrap();
    let curve = leaf_params("vm").signed_by(&curve, &top.issuer).unwrap();
    check(curve.der(), &[], &top, Err(CertificateError::NotRsa));
}

#[test]
fn the_vm_is_the_end_of_a_name_that_stands_alone() {
    const UUID: &str = "5d1c7a52-8f0e-4a5a-9d0b-3f6f2b7e0001";
    let top = root(&ca_params("top"));
    let vm = |params: &CertificateParams| {
        let ek = leaf(&top, params);
        let verified = verify(&ek, &[], &[&top.der], SystemTime::now());
        verified.unwrap().vm_uuid.is_some()
    };
    for (name, expected) in [
        (format!("web:{UUID}"), true),
        (UUID.to_owned(), true),
        (format!("a:b:{}", UUID.to_uppercase()), true),
        (format!("{UUID}:web"), false),
        (format!("web:{}", UUID.replace('-', "")), false),
        (format!("web:{}", UUID.replace("5d1", "+d1")), false),
        ("unknown".to_owned(), false),
    ] {
        assert_eq!(vm(&leaf_params(&name)), expected, "{name}");
    }
    let mut two = leaf_params(&format!("evil:{UUID}"));
    two.distinguished_name
        .push(DnType::OrganizationName, "x:other");
    assert!(!vm(&two));
}
