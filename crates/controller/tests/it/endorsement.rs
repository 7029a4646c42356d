//! Machines with TPMs (swtpm, as hypervisors run it) that enrol over TLS.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::SystemTime;

use controller::{Authority, EnrolmentLimits, Pool, Proof, TokenTerms, TpmCa, VmRef};
use link::enrol::{EnrolError, Enrolled, GuestTpm, enrol};
use model::Machine;
use pki::{GuestKey, JoinToken};
use proto::v1;
use testbed::{TpmCa as HostCa, TpmSocket, VirtualTpm};
use tokio::task::JoinHandle;
use tpm::{Tpm, Transport};

use crate::{HOUR, Site};

const UUID: u8 = 0x5d;

struct Socket(TpmSocket);

impl Transport for Socket {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.exchange(command)
    }
}

/// What a guest does instead of what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trick {
    None,
    /// It shows the certificate of another machine's TPM.
    OtherCertificate(Vec<u8>),
    /// It has its TPM open the challenge for another request.
    OtherRequest,
    /// It answers what was right another time.
    Replay(Vec<u8>),
    /// The name of no key.
    NoName,
    /// It says that it does not work.
    Failing,
}

/// A guest's TPM, and the last proof that it gave.
struct Guest {
    tpm: Tpm<'static>,
    trick: Trick,
    proof: Vec<u8>,
}

impl GuestTpm for Guest {
    fn show(&mut self) -> v1::EnrolTpm {
        let shown = self.tpm.show().unwrap();
        let mut answer = v1::EnrolTpm {
            ek_certificate: shown.certificate,
            intermediates: shown.intermediates,
            key_name: shown.key_name.to_vec(),
            ..v1::EnrolTpm::default()
        };
        match &self.trick {
            Trick::OtherCertificate(other) => answer.ek_certificate.clone_from(other),
            Trick::NoName => answer.key_name.truncate(33),
            Trick::Failing => answer.failed = "it is \x1b busy".repeat(1000),
            _ => {}
        }
        answer
    }

    fn answer(&mut self, challenge: &[u8], csr: &[u8]) -> v1::EnrolTpm {
        let secret = match self.tpm.open(challenge) {
            Ok(secret) => secret,
            Err(error) => {
                return v1::EnrolTpm {
                    failed: error.to_string(),
                    ..v1::EnrolTpm::default()
                };
            }
        };
        self.proof = match &self.trick {
            Trick::OtherRequest => tpm::proof(&secret, b"another").to_vec(),
            Trick::Replay(old) => old.clone(),
            _ => tpm::proof(&secret, csr).to_vec(),
        };
        v1::EnrolTpm {
            proof: self.proof.clone(),
            ..v1::EnrolTpm::default()
        }
    }
}

/// A host that makes VMs with TPMs.
struct Host {
    ca: HostCa,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = HostCa::new(&dir.path().join("ca")).unwrap();
        Self { ca, dir }
    }

    fn tpm(&self, name: &str, uuid: u8) -> VirtualTpm {
        let digits = format!("{uuid:02x}").repeat(16);
        let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|at| &digits[at]);
        let state = self.dir.path().join(name);
        let vmid = format!("{name}:{a}-{b}-{c}-{d}-{e}");
        self.ca.manufacture(&state, &vmid).unwrap();
        VirtualTpm::serving(&state).unwrap()
    }

    fn issuer(&self) -> TpmCa {
        certificate(&self.ca.issuer())
    }
}

fn certificate(file: &Path) -> TpmCa {
    let read = pki::load_anchors(file).unwrap();
    TpmCa(read[0].to_vec().into())
}

/// A pool that takes the TPMs of this CA, and a token for it.
async fn token_for(authority: &Authority, ca: TpmCa) -> JoinToken {
    let now = SystemTime::now();
    let pool = Pool {
        name: "servers".into(),
        ephemeral: false,
        proof: Proof::Tpm,
        ranges: Vec::new(),
        tags: Vec::new(),
        clusters: Vec::new(),
        guests_max: 0,
        tpm_cas: vec![ca],
    };
    authority.set_pool(pool, now).await.unwrap();
    let terms = TokenTerms {
        uses_max: 10,
        valid: HOUR,
        pool: Some("servers".into()),
        vm: None,
    };
    authority.issue_token(terms, now).await.unwrap()
}

/// A machine that enrols; what came of it, and the proof that its TPM gave.
async fn join(
    site: &Site,
    token: &JoinToken,
    tpm: Option<&VirtualTpm>,
    trick: Trick,
) -> (Result<Enrolled, EnrolError>, Vec<u8>) {
    let mut guest = tpm.map(|tpm| Guest {
        tpm: Tpm::new(Socket(tpm.connect().unwrap())),
        trick,
        proof: Vec::new(),
    });
    let (address, token) = (site.enrolment.local_addr().to_string(), token.clone());
    let joining = move || {
        let machine = Machine {
            system_uuid: Some([UUID; 16]),
            ..Machine::default()
        };
        let key = GuestKey::generate().unwrap();
        let shown = guest.as_mut().map(|it| it as &mut dyn GuestTpm);
        let enrolled = enrol(&address, &token, &key, "web-1", &machine, shown);
        (enrolled, guest.map(|it| it.proof).unwrap_or_default())
    };
    tokio::task::spawn_blocking(joining).await.unwrap()
}

/// That it waits, beside those that did before, and why.
#[track_caller]
fn waits(
    site: &Site,
    before: &mut BTreeSet<String>,
    answer: Result<Enrolled, EnrolError>,
    why: &str,
) {
    assert!(
        matches!(answer, Err(EnrolError::Pending { .. })),
        "{answer:?}"
    );
    let mut waiting = site.authority.pending(SystemTime::now());
    waiting.retain(|entry| before.insert(entry.id.clone()));
    let [entry] = &waiting[..] else {
        panic!("{why}: {waiting:?}");
    };
    assert!(entry.why.contains(why), "{why}: {entry:?}");
    assert!(entry.why.len() < 300, "{entry:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_a_tpm_of_the_pool_joins_and_whoever_shows_less_waits() {
    let site = Site::new(EnrolmentLimits::default()).await;
    let (host, elsewhere) = (Host::new(), Host::new());
    let (mine, other) = (host.tpm("mine", UUID), host.tpm("other", 7));
    // One that could join.
    let fresh = host.tpm("fresh", UUID);
    let foreign = elsewhere.tpm("foreign", UUID);
    let token = token_for(&site.authority, host.issuer()).await;

    let (enrolled, proof) = join(&site, &token, Some(&mine), Trick::None).await;
    let guest = enrolled.unwrap().guest;
    let ek = site.authority.guest(guest).unwrap().ek;
    assert!(ek.is_some() && !proof.is_empty());

    let certificate = Tpm::new(Socket(mine.connect().unwrap()))
        .show()
        .unwrap()
        .certificate;
    let mut before = BTreeSet::new();
    for (tpm, trick, why) in [
        (None, Trick::None, "it has no TPM"),
        (
            Some(&mine),
            Trick::None,
            "a guest joined with this TPM already",
        ),
        (Some(&foreign), Trick::None, "no CA of this pool"),
        (Some(&other), Trick::None, "another SMBIOS UUID"),
        (
            Some(&other),
            Trick::OtherCertificate(certificate),
            "did not open the challenge",
        ),
        (
            Some(&other),
            Trick::OtherCertificate(vec![0x30]),
            "makes no sense",
        ),
        (Some(&fresh), Trick::OtherRequest, "for this request"),
        (Some(&fresh), Trick::Replay(proof), "for this request"),
        (Some(&fresh), Trick::Replay(Vec::new()), "for this request"),
        (Some(&fresh), Trick::NoName, "name of its TPM's key"),
        (Some(&fresh), Trick::Failing, "cannot be shown: it is"),
    ] {
        let (answer, _) = join(&site, &token, tpm, trick).await;
        waits(&site, &mut before, answer, why);
    }
    assert_eq!(site.enrolment.stats().failed, 0);
    assert_eq!(site.authority.counts(), [1, 0, 0]);
}

/// Of a pool that asks for nothing, or with a token for one VM, no TPM is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_is_asked_for_where_it_counts() {
    struct Untouched;
    impl GuestTpm for Untouched {
        fn show(&mut self) -> v1::EnrolTpm {
            panic!("it was asked for")
        }
        fn answer(&mut self, _: &[u8], _: &[u8]) -> v1::EnrolTpm {
            panic!("it was challenged")
        }
    }
    let site = Site::new(EnrolmentLimits::default()).await;
    let ca = TpmCa(site.authority.ca().cert().to_vec().into());
    token_for(&site.authority, ca).await;
    let of_vm = TokenTerms {
        uses_max: 1,
        valid: HOUR,
        pool: Some("servers".into()),
        vm: Some(VmRef {
            connector: "c".into(),
            id: "1".into(),
            name: "v".into(),
        }),
    };
    let of_vm = site.authority.issue_token(of_vm, SystemTime::now()).await;
    for token in [site.token().await, of_vm.unwrap()] {
        let address = site.enrolment.local_addr().to_string();
        let joining = move || {
            let key = GuestKey::generate().unwrap();
            let machine = Machine::default();
            enrol(&address, &token, &key, "a", &machine, Some(&mut Untouched))
        };
        tokio::task::spawn_blocking(joining).await.unwrap().unwrap();
    }
}

/// A TPM that answers when it is let: at the barrier once when it is asked, and once to go on.
struct Held(Arc<Barrier>);

impl GuestTpm for Held {
    fn show(&mut self) -> v1::EnrolTpm {
        self.0.wait();
        self.0.wait();
        v1::EnrolTpm::default()
    }
    fn answer(&mut self, _: &[u8], _: &[u8]) -> v1::EnrolTpm {
        v1::EnrolTpm::default()
    }
}

impl Held {
    /// Enrols on a thread; its TPM was asked for when this returns.
    async fn begin(
        site: &Site,
        token: &JoinToken,
    ) -> (Arc<Barrier>, JoinHandle<Result<Enrolled, EnrolError>>) {
        let barrier = Arc::new(Barrier::new(2));
        let mut held = Self(Arc::clone(&barrier));
        let (address, token) = (site.enrolment.local_addr().to_string(), token.clone());
        let joining = tokio::task::spawn_blocking(move || {
            let key = GuestKey::generate().unwrap();
            let machine = Machine::default();
            enrol(&address, &token, &key, "a", &machine, Some(&mut held))
        });
        wait_at(&barrier).await;
        (barrier, joining)
    }
}

async fn wait_at(barrier: &Arc<Barrier>) {
    let barrier = Arc::clone(barrier);
    tokio::task::spawn_blocking(move || barrier.wait())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_long_to_show_a_tpm_keeps_nobody_from_joining() {
    let site = Site::new(EnrolmentLimits {
        exchanges_max: 2,
        showing_max_per_address: 2,
        ..EnrolmentLimits::default()
    })
    .await;
    let ca = TpmCa(site.authority.ca().cert().to_vec().into());
    let token = token_for(&site.authority, ca).await;
    let held = [
        Held::begin(&site, &token).await,
        Held::begin(&site, &token).await,
    ];
    let (joined, _) = join(&site, &site.token().await, None, Trick::None).await;
    joined.unwrap();
    // One more of this address has to come again; nobody need decide on it.
    let mut next = Held(Arc::new(Barrier::new(1)));
    let address = site.enrolment.local_addr().to_string();
    let again = tokio::task::spawn_blocking(move || {
        let key = GuestKey::generate().unwrap();
        enrol(
            &address,
            &token,
            &key,
            "b",
            &Machine::default(),
            Some(&mut next),
        )
    });
    let again = again.await.unwrap();
    assert!(
        matches!(again, Err(EnrolError::Pending { .. })),
        "{again:?}"
    );
    assert!(site.authority.pending(SystemTime::now()).is_empty());
    assert_eq!(site.enrolment.stats().rate_limited, 1);
    for (barrier, joining) in held {
        wait_at(&barrier).await;
        let shown = joining.await.unwrap();
        assert!(
            matches!(shown, Err(EnrolError::Pending { .. })),
            "{shown:?}"
        );
    }
    assert_eq!(site.authority.pending(SystemTime::now()).len(), 2);
}

/// Who leaves when it is asked has not joined; nothing is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_never_answers_ends_the_exchange() {
    let site = Site::new(EnrolmentLimits {
        tpm_timeout: std::time::Duration::from_millis(100),
        ..EnrolmentLimits::default()
    })
    .await;
    let ca = TpmCa(site.authority.ca().cert().to_vec().into());
    let token = token_for(&site.authority, ca).await;
    let (barrier, joining) = Held::begin(&site, &token).await;
    while site.enrolment.stats().failed == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    wait_at(&barrier).await;
    let broken = joining.await.unwrap();
    assert!(
        matches!(broken, Err(EnrolError::Conversation { .. })),
        "{broken:?}"
    );
    assert!(site.authority.pending(SystemTime::now()).is_empty());
}
