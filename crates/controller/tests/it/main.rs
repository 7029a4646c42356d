//! Tokens, enrolment, renewal and revocation, with real TLS on loopback.

mod endorsement;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use controller::fleet::Store;
use controller::{
    Authority, AuthorityError, Enrolled as Answer, Enrolment, EnrolmentLimits, Refusal, TokenTerms,
    TpmShown::NotAsked,
};
use link::enrol::{EnrolError, Enrolled, enrol};
use model::{GuestId, Machine};
use pki::{Ca, GuestKey, JoinToken, LIFETIME, Validity};
use proto::v1;

const HOUR: Duration = Duration::from_secs(3600);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn authority(dir: &Path) -> Authority {
    let ca_dir = dir.join("ca");
    let ca = Ca::load(&ca_dir).or_else(|_| Ca::init(&ca_dir)).unwrap();
    let state = dir.join("state");
    std::fs::create_dir_all(&state).unwrap();
    let store = Store::embedded(&state).await.unwrap();
    Authority::open(store, ca, &ca_dir).await.unwrap()
}

fn terms(uses_max: u32, valid: Duration) -> TokenTerms {
    TokenTerms {
        uses_max,
        valid,
        ..TokenTerms::default()
    }
}

async fn token_of(authority: &Authority, uses_max: u32, now: SystemTime) -> JoinToken {
    let made = authority.issue_token(terms(uses_max, HOUR), now);
    made.await.unwrap()
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
        has_tpm: false,
    }
}

/// Joins with a key of its own.
async fn join(
    authority: &Authority,
    token: &JoinToken,
    now: SystemTime,
) -> Result<GuestId, Refusal> {
    let key = GuestKey::generate().unwrap();
    let request = request(token, &key);
    match authority
        .enrol(&request, LOCAL, None, NotAsked, now)
        .await?
    {
        Answer::Joined { guest, .. } => Ok(guest),
        Answer::Waits(_) => panic!("it waits"),
    }
}

#[tokio::test]
async fn a_token_admits_as_many_guests_as_it_says_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let first = authority(dir.path()).await;
    let token = token_of(&first, 3, now).await;
    let mut ids = vec![
        join(&first, &token, now).await.unwrap(),
        join(&first, &token, now).await.unwrap(),
    ];
    assert_eq!(first.tokens(now)[0].uses_left, 1);
    drop(first);

    let second = authority(dir.path()).await;
    assert_eq!(second.tokens(now)[0].uses_left, 1);
    ids.push(join(&second, &token, now).await.unwrap());
    let spent = join(&second, &token, now).await;
    assert_eq!(spent.unwrap_err(), Refusal::Token);
    assert!(second.tokens(now).is_empty());
    let mut members: Vec<_> = second.guests().iter().map(|guest| guest.id).collect();
    members.sort_unstable();
    ids.sort_unstable();
    assert_eq!(members, ids);
    let guest = &second.guests()[0];
    assert_eq!(guest.hostname, "web-1");
    assert_eq!(guest.machine.system_uuid, Some([3; 16]));
    ids.dedup();
    assert_eq!(ids.len(), 3, "ids differ");
}

#[tokio::test]
async fn an_answer_that_was_lost_costs_no_second_use() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = authority(dir.path()).await;
    let token = token_of(&authority, 1, now).await;
    let other = token_of(&authority, 1, now).await;
    let key = GuestKey::generate().unwrap();
    let ask = |token: &JoinToken| request(token, &key);
    let first = authority
        .enrol(&ask(&token), LOCAL, None, NotAsked, now)
        .await
        .unwrap();
    let again = authority
        .enrol(&ask(&token), LOCAL, None, NotAsked, now)
        .await
        .unwrap();
    let (Answer::Joined { guest, .. }, Answer::Joined { guest: same, .. }) = (first, again) else {
        panic!("it waits");
    };
    assert_eq!(guest, same);
    assert_eq!(authority.guests().len(), 1);
    // Whoever knows the key alone is not that guest.
    let refused = authority
        .enrol(&ask(&other), LOCAL, None, NotAsked, now)
        .await;
    assert_eq!(refused.unwrap_err(), Refusal::Token);
    authority.revoke(guest, false, "", now).await.unwrap();
    let refused = authority
        .enrol(&ask(&token), LOCAL, None, NotAsked, now)
        .await;
    assert_eq!(refused.unwrap_err(), Refusal::Revoked);
}

#[tokio::test]
async fn the_secret_is_nowhere_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path()).await;
    let token = token_of(&authority, 1, SystemTime::now()).await;
    let mut hash_found = false;
    for file in std::fs::read_dir(dir.path().join("state")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&token.secret.expose()));
        hash_found |= text.contains(&token.secret.hash().to_string());
    }
    assert!(hash_found);
}

#[tokio::test]
async fn refusals_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path()).await;
    let now = SystemTime::now();
    let token = token_of(&authority, 1, now).await;
    let key = GuestKey::generate().unwrap();
    let good = request(&token, &key);
    let other = JoinToken::generate(token.ca).unwrap();
    type Spoil = Box<dyn Fn(&mut v1::EnrolRequest)>;
    let spoils: [(Spoil, Refusal); 5] = [
        (
            Box::new(move |r| r.token = other.secret.expose()),
            Refusal::Token,
        ),
        (Box::new(|r| r.token.clear()), Refusal::Token),
        (Box::new(|r| r.token.push('0')), Refusal::Token),
        (
            Box::new(|r| r.hostname = "x".repeat(256)),
            Refusal::Field("hostname"),
        ),
        (
            Box::new(|r| r.machine.as_mut().unwrap().system_uuid.truncate(15)),
            Refusal::Field("machine"),
        ),
    ];
    for (spoil, expected) in spoils {
        let mut request = good.clone();
        spoil(&mut request);
        let refused = authority.enrol(&request, LOCAL, None, NotAsked, now).await;
        assert_eq!(refused.unwrap_err(), expected);
    }
    let mut request = good.clone();
    request.csr.clear();
    let refused = authority.enrol(&request, LOCAL, None, NotAsked, now).await;
    assert!(matches!(refused, Err(Refusal::Request(_))));
    let late = authority
        .enrol(&good, LOCAL, None, NotAsked, now + 2 * HOUR)
        .await;
    assert_eq!(late.unwrap_err(), Refusal::Token, "expired");
    assert!(authority.guests().is_empty());
    assert_eq!(authority.tokens(now)[0].uses_left, 1);
    authority
        .enrol(&good, LOCAL, None, NotAsked, now)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_guest_is_renewed_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let first = authority(dir.path()).await;
    let token = token_of(&first, 1, now).await;
    let guest = join(&first, &token, now).await.unwrap();
    let stranger = GuestId([9; 16]);

    let next = GuestKey::generate().unwrap();
    let chain = first.renew(guest, None, next.csr(), now).await.unwrap();
    let csr = next.csr().to_vec();
    let identity = next.certified(chain).unwrap();
    assert_eq!(pki::guest_id_of(identity.leaf().unwrap()), Ok(guest));
    assert!(!first.is_revoked(guest));
    let unknown = first.renew(stranger, None, &csr, now).await;
    assert_eq!(unknown.unwrap_err(), Refusal::UnknownGuest);
    assert!(first.is_revoked(stranger));
    assert!(
        first
            .revoke(stranger, false, "", now)
            .await
            .unwrap()
            .is_none()
    );

    let mut ended = first.ended();
    assert!(
        first
            .revoke(guest, false, "stolen", now)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(ended.try_recv().unwrap(), guest);
    drop(first);
    let second = authority(dir.path()).await;
    assert!(second.is_revoked(guest));
    assert_eq!(second.guest(guest).unwrap().ended.unwrap().why, "stolen");
    let refused = second.renew(guest, None, &csr, now).await;
    assert_eq!(refused.unwrap_err(), Refusal::Revoked);
}

#[tokio::test]
async fn tokens_have_terms() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path()).await;
    let now = SystemTime::now();
    for (uses, valid) in [(0, HOUR), (1, Duration::ZERO), (1, Duration::MAX)] {
        let refused = authority.issue_token(terms(uses, valid), now).await;
        assert!(matches!(refused, Err(AuthorityError::TokenTerms)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_many_guests_at_once() {
    const USES: u32 = 5;
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(authority(dir.path()).await);
    let now = SystemTime::now();
    let token = token_of(&authority, USES, now).await;
    let guests: Vec<_> = (0..16)
        .map(|_| {
            let (authority, token) = (authority.clone(), token.clone());
            tokio::spawn(async move { join(&authority, &token, now).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for guest in guests {
        joined += u32::from(guest.await.unwrap());
    }
    assert_eq!(joined, USES);
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
        let authority = Arc::new(authority(dir.path()).await);
        let validity = Validity::starting(SystemTime::now(), LIFETIME);
        let identity = authority.ca().issue_appliance("controller", validity);
        let tls = link::tls::enrol_server_config(&identity.unwrap()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let appliances = vec!["10.0.0.1:7400".to_owned()];
        let theirs = Arc::clone(&authority);
        let enrolment = Enrolment::start(address, tls, theirs, None, appliances, limits);
        Self {
            authority,
            enrolment: enrolment.await.unwrap(),
            _dir: dir,
        }
    }

    async fn token(&self) -> JoinToken {
        token_of(&self.authority, 1, SystemTime::now()).await
    }

    async fn enrol(&self, token: &JoinToken) -> Result<Enrolled, EnrolError> {
        let (address, token) = (self.enrolment.local_addr().to_string(), token.clone());
        let machine = Machine {
            system_uuid: Some([3; 16]),
            ..Machine::default()
        };
        let key = GuestKey::generate().unwrap();
        let joining = move || enrol(&address, &token, &key, "web-1", &machine, None);
        tokio::task::spawn_blocking(joining).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_joins_over_tls() {
    let site = Site::new(EnrolmentLimits::default()).await;
    let token = site.token().await;
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
    let refused = theirs.enrol(&ours.token().await).await.unwrap_err();
    assert!(matches!(refused, EnrolError::WrongCa { .. }), "{refused}");
    assert_eq!(theirs.enrolment.stats().refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said_so() {
    let site = Site::new(EnrolmentLimits::default()).await;
    let token = site.token().await;
    let nobody = tokio::task::spawn_blocking(move || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let key = GuestKey::generate().unwrap();
        enrol(&address, &token, &key, "", &Machine::default(), None)
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
    let token = site.token().await;
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
    site.enrol(&site.token().await).await.unwrap_err();
    assert_eq!(site.enrolment.stats().rate_limited, 1);
    assert_eq!(site.authority.guests().len(), 1);
}
