//! Tokens, enrolment, renewal and revocation, with real TLS on loopback.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use controller::{Authority, AuthorityError, Enrolment, EnrolmentLimits, Refusal};
use link::enrol::{EnrolError, Enrolled, enrol};
use model::{GuestId, Machine};
use pki::{Ca, GuestKey, JoinToken, LIFETIME, Validity};
use proto::v1;

const HOUR: Duration = Duration::from_secs(3600);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn authority(dir: &Path) -> Authority {
    let ca_dir = dir.join("ca");
    let ca = Ca::load(&ca_dir).or_else(|_| Ca::init(&ca_dir)).unwrap();
    Authority::open(&dir.join("state"), ca).unwrap()
}

fn request(token: &JoinToken, key: &GuestKey) -> v1::EnrolRequest {
    v1::EnrolRequest {
        token: token.secret.expose(),
        csr: key.csr().to_vec(),
        hostname: "web-1".into(),
        machine: Some(v1::MachineFacts {
            system_uuid: vec![3; 16],
            ..v1::MachineFacts::default()
        }),
    }
}

#[test]
fn a_token_admits_as_many_guests_as_it_says_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let first = authority(dir.path());
    let token = first.issue_token(3, HOUR, now).unwrap();
    let key = GuestKey::generate().unwrap();
    let mut ids = Vec::new();
    ids.push(first.enrol(&request(&token, &key), LOCAL, now).unwrap().0);
    ids.push(first.enrol(&request(&token, &key), LOCAL, now).unwrap().0);
    assert_eq!(first.tokens(now)[0].uses_left, 1);
    drop(first);

    let second = authority(dir.path());
    assert_eq!(second.tokens(now)[0].uses_left, 1);
    ids.push(second.enrol(&request(&token, &key), LOCAL, now).unwrap().0);
    let spent = second.enrol(&request(&token, &key), LOCAL, now);
    assert_eq!(spent.unwrap_err(), Refusal::Token);
    assert!(second.tokens(now).is_empty());
    let members: Vec<_> = second.guests().iter().map(|guest| guest.id).collect();
    assert_eq!(members, ids);
    let guest = &second.guests()[0];
    assert_eq!(guest.hostname, "web-1");
    assert_eq!(guest.system_uuid, Some([3; 16]));
    ids.dedup();
    assert_eq!(ids.len(), 3, "ids differ");
}

#[test]
fn the_secret_is_nowhere_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let token = authority.issue_token(1, HOUR, SystemTime::now()).unwrap();
    for file in std::fs::read_dir(dir.path().join("state")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&token.secret.expose()));
        assert!(text.contains(&token.secret.hash().to_string()));
    }
}

#[test]
fn refusals_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let now = SystemTime::now();
    let token = authority.issue_token(1, HOUR, now).unwrap();
    let key = GuestKey::generate().unwrap();
    let good = request(&token, &key);
    let other = JoinToken::generate(token.ca).unwrap();
    let refused = |request: v1::EnrolRequest, at| authority.enrol(&request, LOCAL, at).unwrap_err();
    assert_eq!(refused(request(&other, &key), now), Refusal::Token);
    assert_eq!(
        refused(good.clone(), now + 2 * HOUR),
        Refusal::Token,
        "expired"
    );
    let spoilt = |spoil: &dyn Fn(&mut v1::EnrolRequest)| {
        let mut request = good.clone();
        spoil(&mut request);
        refused(request, now)
    };
    assert_eq!(spoilt(&|r| r.token.clear()), Refusal::Token);
    assert_eq!(spoilt(&|r| r.token.push('0')), Refusal::Token);
    let long = spoilt(&|r| r.hostname = "x".repeat(256));
    assert_eq!(long, Refusal::Field("hostname"));
    let short = spoilt(&|r| r.machine.as_mut().unwrap().system_uuid.truncate(15));
    assert_eq!(short, Refusal::Field("machine"));
    assert!(matches!(spoilt(&|r| r.csr.clear()), Refusal::Request(_)));
    assert!(authority.guests().is_empty());
    assert_eq!(authority.tokens(now)[0].uses_left, 1);
    authority.enrol(&good, LOCAL, now).unwrap();
}

#[test]
fn a_guest_is_renewed_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let first = authority(dir.path());
    let token = first.issue_token(1, HOUR, now).unwrap();
    let key = GuestKey::generate().unwrap();
    let (guest, _) = first.enrol(&request(&token, &key), LOCAL, now).unwrap();
    let stranger = GuestId([9; 16]);

    let next = GuestKey::generate().unwrap();
    let chain = first.renew(guest, next.csr(), now).unwrap();
    let identity = next.certified(chain).unwrap();
    assert_eq!(pki::guest_id_of(identity.leaf().unwrap()), Ok(guest));
    assert!(!first.is_revoked(guest));
    let unknown = first.renew(stranger, key.csr(), now);
    assert_eq!(unknown.unwrap_err(), Refusal::UnknownGuest);
    assert!(first.is_revoked(stranger));
    assert!(!first.revoke(stranger, now).unwrap());

    assert!(first.revoke(guest, now).unwrap());
    drop(first);
    let second = authority(dir.path());
    assert!(second.is_revoked(guest));
    let refused = second.renew(guest, key.csr(), now);
    assert_eq!(refused.unwrap_err(), Refusal::Revoked);
}

#[test]
fn tokens_have_terms() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let now = SystemTime::now();
    for (uses, valid) in [(0, HOUR), (1, Duration::ZERO), (1, Duration::MAX)] {
        let refused = authority.issue_token(uses, valid, now);
        assert!(matches!(refused, Err(AuthorityError::TokenTerms)));
    }
}

#[test]
fn one_token_many_guests_at_once() {
    const USES: u32 = 5;
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let now = SystemTime::now();
    let token = authority.issue_token(USES, HOUR, now).unwrap();
    let joined = std::thread::scope(|scope| {
        let guests: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let key = GuestKey::generate().unwrap();
                    authority.enrol(&request(&token, &key), LOCAL, now).is_ok()
                })
            })
            .collect();
        let results = guests.into_iter().map(|guest| guest.join().unwrap());
        results.filter(|joined| *joined).count()
    });
    assert_eq!(joined, USES as usize);
}

/// A service with its authority.
struct Site {
    authority: Arc<Authority>,
    enrolment: Enrolment,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn new(limits: EnrolmentLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(authority(dir.path()));
        let validity = Validity::starting(SystemTime::now(), LIFETIME);
        let identity = authority.ca().issue_appliance("controller", validity);
        let tls = link::tls::enrol_server_config(&identity.unwrap()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let appliances = vec!["10.0.0.1:7400".to_owned()];
        let theirs = Arc::clone(&authority);
        let enrolment = Enrolment::start(address, tls, theirs, appliances, limits);
        Self {
            authority,
            enrolment: enrolment.await.unwrap(),
            _dir: dir,
        }
    }

    fn token(&self) -> JoinToken {
        let now = SystemTime::now();
        self.authority.issue_token(1, HOUR, now).unwrap()
    }

    async fn enrol(&self, token: &JoinToken) -> Result<Enrolled, EnrolError> {
        let (address, token) = (self.enrolment.local_addr().to_string(), token.clone());
        let machine = Machine {
            system_uuid: Some([3; 16]),
            ..Machine::default()
        };
        let joining = move || enrol(&address, &token, "web-1", &machine);
        tokio::task::spawn_blocking(joining).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_joins_over_tls() {
    let site = Site::new(EnrolmentLimits::default()).await;
    let token = site.token();
    let enrolled = site.enrol(&token).await.unwrap();
    assert_eq!(enrolled.appliances, ["10.0.0.1:7400"]);
    assert_eq!(enrolled.anchors, site.authority.anchors());
    assert_eq!(site.authority.guests()[0].id, enrolled.guest);
    assert_eq!(site.authority.guests()[0].address, LOCAL);
    link::tls::client_config(&enrolled.identity, &enrolled.anchors).unwrap();

    let again = site.enrol(&token).await.unwrap_err();
    assert!(
        matches!(&again, EnrolError::Refused(why) if why.contains("token")),
        "{again}"
    );
    let stats = site.enrolment.stats();
    assert_eq!((stats.enrolled, stats.refused), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_give_its_secret_to_a_foreign_controller() {
    let (ours, theirs) = (
        Site::new(EnrolmentLimits::default()).await,
        Site::new(EnrolmentLimits::default()).await,
    );
    let refused = theirs.enrol(&ours.token()).await.unwrap_err();
    assert!(matches!(refused, EnrolError::WrongCa { .. }), "{refused}");
    assert_eq!(theirs.enrolment.stats().refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said_so() {
    let site = Site::new(EnrolmentLimits::default()).await;
    let token = site.token();
    let nobody = tokio::task::spawn_blocking(move || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        enrol(&address, &token, "", &Machine::default())
    });
    let error = nobody.await.unwrap().unwrap_err();
    assert!(matches!(error, EnrolError::Connect { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_and_silence_end_and_too_many_attempts_are_not_heard() {
    let site = Site::new(EnrolmentLimits {
        // Enough for the one that does speak, on a busy machine.
        exchange_timeout: Duration::from_secs(4),
        burst_per_address: 3,
        per_minute_per_address: 1,
        ..EnrolmentLimits::default()
    })
    .await;
    let address = site.enrolment.local_addr();
    let token = site.token();
    site.enrol(&token).await.unwrap();
    let held = tokio::task::spawn_blocking(move || {
        let silent = TcpStream::connect(address).unwrap();
        let mut junk = TcpStream::connect(address).unwrap();
        // It may be closed before all is written.
        let _ = junk.write_all(b"GET / HTTP/1.1\r\n\r\n");
        (silent, junk)
    });
    let _held = held.await.unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while site.enrolment.stats().failed < 2 {
        assert!(std::time::Instant::now() < until, "never both failed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    site.enrol(&site.token()).await.unwrap_err();
    assert_eq!(site.enrolment.stats().rate_limited, 1);
    assert_eq!(site.authority.guests().len(), 1);
}
