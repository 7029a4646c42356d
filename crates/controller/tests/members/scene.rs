//! Controllers, machines that join, VMs that a connector reports.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use controller::fleet::{Fleet, FleetConfig, Retirement, Standing, Store};
use controller::{
    Authority, AuthorityError, Enrolled, Pending, Pool, Proof, Refusal, TokenTerms, TpmShown, Word,
};
use fleet_core::{CoreSettings, HostRecord, InventoryChange, Power, SiteRules, VmRecord};
use model::GuestId;
use pki::{Ca, GuestKey, JoinToken};
use proto::v1;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn ca(dir: &Path) -> Ca {
    Ca::load(dir).or_else(|_| Ca::init(dir)).unwrap()
}

/// A controller over a database of its own.
pub(crate) async fn embedded(dir: &Path) -> Arc<Authority> {
    let store = Store::embedded(dir).await.unwrap();
    let pki = dir.join("pki");
    Arc::new(Authority::open(store, ca(&pki), &pki).await.unwrap())
}

/// A controller over a database that others have, too.
pub(crate) async fn sharing(url: &str, pki: &Path) -> Arc<Authority> {
    let store = Store::postgres(url).await.unwrap();
    Arc::new(Authority::open(store, ca(pki), pki).await.unwrap())
}

pub(crate) fn pool(name: &str, proof: Proof) -> Pool {
    Pool {
        name: name.into(),
        ephemeral: false,
        proof,
        ranges: Vec::new(),
        tags: Vec::new(),
        clusters: Vec::new(),
        guests_max: 0,
        tpm_cas: Vec::new(),
    }
}

pub(crate) async fn token(authority: &Authority, pool: Option<&str>, uses_max: u32) -> JoinToken {
    let terms = TokenTerms {
        uses_max,
        valid: HOUR,
        pool: pool.map(str::to_owned),
        vm: None,
    };
    authority
        .issue_token(terms, SystemTime::now())
        .await
        .unwrap()
}

/// A machine with a key of its own.
pub(crate) struct Joiner {
    pub(crate) key: GuestKey,
    pub(crate) hostname: String,
    pub(crate) uuid: Option<u8>,
    pub(crate) from: IpAddr,
    pub(crate) tpm: TpmShown,
}

impl Joiner {
    pub(crate) fn new(number: u8) -> Self {
        Self {
            key: GuestKey::generate().unwrap(),
            hostname: format!("v{number}"),
            uuid: Some(number),
            from: address(number),
            tpm: TpmShown::NotAsked,
        }
    }

    pub(crate) async fn ask(
        &self,
        authority: &Authority,
        token: &JoinToken,
        fleet: Option<&Fleet>,
    ) -> Result<Enrolled, Refusal> {
        self.ask_at(authority, token, fleet, SystemTime::now())
            .await
    }

    pub(crate) async fn ask_at(
        &self,
        authority: &Authority,
        token: &JoinToken,
        fleet: Option<&Fleet>,
        now: SystemTime,
    ) -> Result<Enrolled, Refusal> {
        let request = v1::EnrolRequest {
            token: token.secret.expose(),
            csr: self.key.csr().to_vec(),
            hostname: self.hostname.clone(),
            machine: Some(v1::MachineFacts {
                system_uuid: self.uuid.map_or_else(Vec::new, |uuid| vec![uuid; 16]),
                ..v1::MachineFacts::default()
            }),
            has_tpm: false,
        };
        authority
            .enrol(&request, self.from, fleet, self.tpm.clone(), now)
            .await
    }
}

pub(crate) fn address(number: u8) -> IpAddr {
    [10, 1, 0, number].into()
}

/// A guest that has joined by a token of no pool.
pub(crate) async fn a_guest(authority: &Authority) -> GuestId {
    let made = token(authority, None, 1).await;
    joined(Joiner::new(1).ask(authority, &made, None).await)
}

#[track_caller]
pub(crate) fn joined(answer: Result<Enrolled, Refusal>) -> GuestId {
    match answer.unwrap() {
        Enrolled::Joined { guest, .. } => guest,
        Enrolled::Waits(_) => panic!("it waits"),
    }
}

#[track_caller]
pub(crate) fn waits(answer: Result<Enrolled, Refusal>) {
    assert!(matches!(answer, Ok(Enrolled::Waits(_))), "{answer:?}");
}

/// The placer over an authority's database, with one host in the cluster `c`.
pub(crate) async fn placer(dir: &Path) -> Fleet {
    placer_with(dir, None).await
}

/// The same, which keeps members and retires them soon.
pub(crate) async fn placer_with(dir: &Path, members: Option<Arc<Authority>>) -> Fleet {
    let store = Store::embedded(dir).await.unwrap();
    let config = FleetConfig {
        holder: "embedded".into(),
        address: String::new(),
        settings: CoreSettings::default(),
        sites: SiteRules::default(),
        members,
        retirement: Retirement {
            look_every: Duration::from_millis(50),
            after_start: Duration::from_millis(100),
            deleted_for: Duration::ZERO,
            kept_deleted_for: Duration::ZERO,
        },
    };
    let fleet = Fleet::start(store, config).await.unwrap();
    let until = Instant::now() + PATIENCE;
    while !matches!(fleet.standing(), Standing::Leads(_)) {
        assert!(Instant::now() < until, "nobody leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let host = HostRecord {
        id: "h".into(),
        name: "h".into(),
        cluster: Some("c".into()),
        maintenance: false,
        reachable: true,
    };
    tell(&fleet, InventoryChange::Host(host)).await;
    fleet
}

pub(crate) async fn tell(fleet: &Fleet, change: InventoryChange) {
    let told = fleet.with(move |lead, clock| lead.core.inventory(clock, "kvm", change));
    told.await.unwrap();
}

pub(crate) fn vm(number: u8) -> VmRecord {
    VmRecord {
        id: format!("id-{number}"),
        name: format!("v{number}"),
        host: Some("h".into()),
        power: Power::Running,
        migrating: false,
        uuid: Some([number; 16]),
        addresses: [address(number)].into(),
        tags: ["vdi".to_owned()].into(),
        pool: None,
    }
}

/// A controller with one pool, a token for that, and the placer that connectors tell.
pub(crate) struct Scene {
    _dir: tempfile::TempDir,
    pub(crate) authority: Arc<Authority>,
    pub(crate) fleet: Fleet,
    token: JoinToken,
}

impl Scene {
    pub(crate) async fn of(pool: Pool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = embedded(dir.path()).await;
        let fleet = placer(dir.path()).await;
        let name = pool.name.clone();
        authority.set_pool(pool, SystemTime::now()).await.unwrap();
        let token = token(&authority, Some(&name), 100).await;
        Self {
            _dir: dir,
            authority,
            fleet,
            token,
        }
    }

    pub(crate) async fn ask(&self, machine: &Joiner) -> Result<Enrolled, Refusal> {
        machine
            .ask(&self.authority, &self.token, Some(&self.fleet))
            .await
    }

    #[track_caller]
    pub(crate) fn says(&self, why: &str) {
        let waiting = self.authority.pending(SystemTime::now());
        assert!(
            waiting.iter().any(|entry| entry.why.contains(why)),
            "{why}: {waiting:?}"
        );
    }

    /// The one request that waits.
    #[track_caller]
    pub(crate) fn waiting(&self) -> Pending {
        let mut waiting = self.authority.pending(SystemTime::now());
        assert_eq!(waiting.len(), 1, "{waiting:?}");
        waiting.remove(0)
    }

    pub(crate) async fn decide(&self, id: &str, word: Word) -> Result<(), AuthorityError> {
        self.authority.decide(id, word, SystemTime::now()).await
    }
}
