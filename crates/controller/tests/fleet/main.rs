//! The fleet's database and its placer: one suite over SQLite and a real PostgreSQL (needs
//! `postgresql` and, as root, the user `postgres`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use controller::fleet::{CommitError, Fleet, FleetConfig, Lead, Retirement, Standing, Store};
use fleet_core::{
    ApplianceHello, CoreSettings, GuestFacts, HostRecord, InventoryChange, Power, Row, SiteRules,
    TurnAsk, VmRecord,
};
use model::GuestId;
use placement::{LeaseId, WorkKind};
use proto::v1;
use proto::v1::fleet_order::Body as Told;
use tempfile::TempDir;

const VALID: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL of the test's own, on a unix socket.
struct Postgres {
    server: Child,
    dir: TempDir,
}

impl Postgres {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let own = Command::new("chown")
            .args(["-R", "postgres"])
            .arg(dir.path())
            .status();
        assert!(
            own.unwrap().success(),
            "this test needs root and the user postgres"
        );
        let mut init = as_postgres("initdb");
        init.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"])
            .arg(&data);
        let made = init
            .output()
            .expect("this test needs the package postgresql");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut server = as_postgres("postgres");
        server
            .args(["-h", "", "-F", "-k"])
            .arg(dir.path())
            .arg("-D")
            .arg(&data);
        let server = server
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { server, dir }
    }

    fn url(&self) -> String {
        format!(
            "postgres://postgres@localhost/postgres?host={}",
            self.dir.path().display()
        )
    }

    async fn store(&self) -> Store {
        let until = Instant::now() + PATIENCE;
        loop {
            match Store::postgres(&self.url()).await {
                Ok(store) => return store,
                Err(error) => assert!(Instant::now() < until, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Debian keeps the programs in a folder of their version.
fn as_postgres(program: &str) -> Command {
    let mut found = PathBuf::from(program);
    for version in 15..30 {
        let path = format!("/usr/lib/postgresql/{version}/bin/{program}");
        if Path::new(&path).exists() {
            found = path.into();
        }
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--clear-groups",
        ])
        .arg(found)
        .current_dir("/");
    command
}

fn host(id: &str) -> HostRecord {
    HostRecord {
        id: id.to_owned(),
        name: id.to_owned(),
        cluster: Some("c".to_owned()),
        maintenance: false,
        reachable: true,
    }
}

fn vm(number: u64, host: &str) -> VmRecord {
    VmRecord {
        id: format!("v{number}"),
        name: format!("v{number}"),
        host: Some(host.to_owned()),
        power: Power::Running,
        migrating: false,
        uuid: Some(uuid(number)),
        addresses: std::iter::once([10, 0, 0, 1].into()).collect(),
        tags: std::iter::once("t".to_owned()).collect(),
        pool: None,
    }
}

fn uuid(number: u64) -> [u8; 16] {
    let mut uuid = [1; 16];
    uuid[..8].copy_from_slice(&number.to_be_bytes());
    uuid
}

fn config(holder: &str) -> FleetConfig {
    FleetConfig {
        holder: holder.to_owned(),
        address: format!("{holder}:7445"),
        settings: CoreSettings::default(),
        sites: SiteRules::default(),
        members: None,
        retirement: Retirement::default(),
    }
}

type Sent = Arc<Mutex<BTreeMap<(GuestId, u64), Vec<String>>>>;

/// Two appliances whose orders are kept; everything on two hosts.
async fn people(fleet: &Fleet, vms: u64, sent: &Sent) {
    let sent = sent.clone();
    fleet
        .with(move |lead, clock| {
            let mut ids = Vec::new();
            for name in ["a", "b"] {
                let hello = ApplianceHello {
                    name: name.to_owned(),
                    address: format!("{name}:7443"),
                    host_name: Some(format!("h{name}")),
                    cluster: None,
                    site: None,
                    capacity: 1000,
                    labels: Vec::new(),
                };
                let id = lead.core.appliance_up(clock, hello);
                let sent = sent.clone();
                lead.attach(id, Box::new(move |told| keep(&sent, told)));
                ids.push(id);
                let change = InventoryChange::Host(host(&format!("h{name}")));
                lead.core.inventory(clock, "t", change);
            }
            for number in 0..vms {
                let at = if number.is_multiple_of(2) { "ha" } else { "hb" };
                lead.core
                    .inventory(clock, "t", InventoryChange::Vm(vm(number, at)));
                let facts = GuestFacts {
                    uuid: Some(uuid(number)),
                    address: [10, 0, 0, 1].into(),
                    hostname: format!("v{number}"),
                    epoch: 0,
                    channel: None,
                    key: None,
                    machine: model::Machine::default(),
                    known: None,
                    vm: None,
                };
                lead.core
                    .guest_up(clock, ids[0], GuestId(uuid(number)), facts);
            }
            lead.core.inventory(clock, "t", InventoryChange::Synced);
        })
        .await
        .unwrap();
}

/// Waits until so many lists are written down.
async fn until_written(store: &Store, lists: usize) {
    let until = Instant::now() + PATIENCE;
    while store.load(0).await.unwrap().placements.len() < lists {
        assert!(Instant::now() < until, "nothing is written down");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn keep(sent: &Sent, told: Told) -> bool {
    if let Told::Place(place) = told {
        let guest = GuestId::from_slice(&place.guest_id).unwrap();
        let same = sent
            .lock()
            .unwrap()
            .insert((guest, place.epoch), place.appliances.clone());
        assert!(
            same.is_none_or(|same| same == place.appliances),
            "two lists of one epoch"
        );
    }
    true
}

async fn until_leads(fleet: &Fleet) {
    let until = Instant::now() + PATIENCE;
    while !matches!(fleet.standing(), Standing::Leads(_)) {
        assert!(Instant::now() < until, "nobody leads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn rows_are_kept(store: &Store) {
    let lease = store.lead("one", "one:1", VALID).await.unwrap().unwrap();
    assert_eq!(store.leader().await.unwrap(), "one:1");
    let fleet = Fleet::start(store.clone(), config("one")).await.unwrap();
    until_leads(&fleet).await;
    let sent = Sent::default();
    people(&fleet, 300, &sent).await;
    fleet.stop().await;
    let loaded = store.load(10_000).await.unwrap();
    assert_eq!(
        (
            loaded.hosts.len(),
            loaded.vms.len(),
            loaded.appliances.len()
        ),
        (2, 300, 2)
    );
    assert_eq!(loaded.placements.len(), 300);
    assert!(loaded.vms.iter().all(|vm| vm.guest.is_some()));
    assert!(
        loaded
            .events
            .iter()
            .any(|event| event.kind == "host_appeared")
    );
    let stale = store.commit(&lease, VALID, &[], 10).await;
    assert!(matches!(stale, Err(CommitError::Fenced)), "{stale:?}");
    let seed = store.seed(7).await.unwrap();
    assert_eq!(store.seed(8).await.unwrap(), seed);

    let next = store.lead("two", "", VALID).await.unwrap().unwrap();
    assert!(next.term > lease.term);
    let other = store.lead("three", "", VALID).await.unwrap();
    assert_eq!(other, None, "the lease is held");
    let gone: Vec<Row> = loaded.vms.iter().map(|vm| Row::VmGone(vm.id)).collect();
    store.commit(&next, VALID, &gone, 1).await.unwrap();
    let loaded = store.load(10_000).await.unwrap();
    assert!(loaded.vms.is_empty() && loaded.placements.is_empty());
    store.resign(&next).await.unwrap();
    assert!(store.lead("three", "", VALID).await.unwrap().is_some());
}

/// Ended at any moment: what was sent is what is written, or older; nothing else moves.
async fn a_crash_loses_nothing(store: &Store) {
    let sent = Sent::default();
    let mut last = 0;
    for round in 0..6_u64 {
        let fleet = Fleet::start(store.clone(), config("one")).await.unwrap();
        until_leads(&fleet).await;
        people(&fleet, 40, &sent).await;
        until_written(store, 40).await;
        let moving = fleet.clone();
        let migrations = tokio::spawn(async move {
            for step in 0..400_u64 {
                let moved = moving.with(move |lead, clock| {
                    let at = if (step + round).is_multiple_of(3) {
                        "ha"
                    } else {
                        "hb"
                    };
                    let change = InventoryChange::Vm(vm(step % 40, at));
                    lead.core.inventory(clock, "t", change);
                });
                if moved.await.is_err() {
                    return;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(20 + 35 * round)).await;
        fleet.abort();
        drop(fleet);
        migrations.abort();
        let _ = migrations.await;
        let loaded = store.load(10).await.unwrap();
        let guest_of: BTreeMap<u64, GuestId> = loaded
            .vms
            .iter()
            .filter_map(|vm| Some((vm.id, vm.guest?)))
            .collect();
        let names: BTreeMap<u64, String> = loaded
            .appliances
            .iter()
            .map(|appliance| (appliance.id, appliance.address.clone()))
            .collect();
        for list in &loaded.placements {
            let guest = guest_of[&list.vm];
            let sent = sent.lock().unwrap();
            let newest = sent.range((guest, 0)..=(guest, u64::MAX)).next_back();
            if let Some(((_, epoch), appliances)) = newest {
                assert!(*epoch <= list.epoch, "sent before it was written");
                if *epoch == list.epoch {
                    let written: Vec<_> = list.appliances.iter().map(|id| &names[id]).collect();
                    assert_eq!(written, appliances.iter().collect::<Vec<_>>());
                }
            }
        }
        let term = loaded
            .placements
            .iter()
            .map(|list| list.epoch)
            .max()
            .unwrap();
        assert!(term >= last);
        last = term;
    }
}

/// Asks for a turn through the appliance `a`, as often as the answer says; the last answer.
async fn turn_of(fleet: &Fleet, number: u64) -> v1::Turn {
    let (sink, mut told) = tokio::sync::mpsc::unbounded_channel();
    let attach = move |lead: &mut Lead, _| {
        let via = lead.core.find_appliance("a").unwrap();
        let sink = move |body| match body {
            Told::Turn(turn) => sink.send(turn).is_ok(),
            _ => true,
        };
        lead.attach(via, Box::new(sink));
        via
    };
    let via = fleet.with(attach).await.unwrap();
    let mut ask = TurnAsk {
        kind: WorkKind::Sweep,
        again: None,
        takes: Duration::from_secs(30),
        within: Duration::ZERO,
    };
    loop {
        let ask_now = move |lead: &mut Lead, clock| {
            lead.core
                .order_turn(clock, (via, number), GuestId(uuid(number)), ask);
        };
        fleet.with(ask_now).await.unwrap();
        let told = tokio::time::timeout(PATIENCE, told.recv()).await;
        let told = told.expect("no answer").unwrap();
        assert_eq!(told.ticket, number);
        let turn = told.turn.unwrap();
        if turn.wait_ms == 0 {
            return turn;
        }
        ask.again = Some(LeaseId(turn.turn_id));
        tokio::time::sleep(Duration::from_millis(turn.wait_ms.into())).await;
    }
}

/// A placer that takes over gives no turn before those that it does not know have ended.
async fn turns_outlive_their_placer(store: &Store) {
    let quick = || {
        let mut config = config("one");
        config.settings.storm.step = Duration::from_millis(100);
        config
    };
    let fleet = Fleet::start(store.clone(), quick()).await.unwrap();
    until_leads(&fleet).await;
    people(&fleet, 2, &Sent::default()).await;
    let turn = turn_of(&fleet, 0).await;
    assert!(turn.turn_id != 0 && turn.refused.is_empty(), "{turn:?}");
    let out_s = store.load(0).await.unwrap().turns_out_s;
    assert!(out_s >= 30, "{out_s}");
    fleet.abort();
    drop(fleet);
    let fleet = Fleet::start(store.clone(), quick()).await.unwrap();
    until_leads(&fleet).await;
    people(&fleet, 2, &Sent::default()).await;
    let refused = turn_of(&fleet, 1).await;
    assert!(!refused.refused.is_empty(), "{refused:?}");
    // It could be given then.
    assert!(refused.possible_within_s > 30, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_turns() {
    let dir = tempfile::tempdir().unwrap();
    turns_outlive_their_placer(&Store::embedded(dir.path()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_rows() {
    let dir = tempfile::tempdir().unwrap();
    rows_are_kept(&Store::embedded(dir.path()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_survives_crashes() {
    let dir = tempfile::tempdir().unwrap();
    a_crash_loses_nothing(&Store::embedded(dir.path()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_rows_and_survives_crashes() {
    let postgres = Postgres::start();
    turns_outlive_their_placer(&postgres.store().await).await;
    rows_are_kept(&postgres.store().await).await;
    let store = postgres.store().await;
    let lease = store
        .lead("three", "", Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    store.resign(&lease).await.unwrap();
    a_crash_loses_nothing(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_controllers_one_places_and_the_other_takes_over() {
    let postgres = Postgres::start();
    let first = Fleet::start(postgres.store().await, config("first"))
        .await
        .unwrap();
    until_leads(&first).await;
    let sent = Sent::default();
    people(&first, 10, &sent).await;
    until_written(&postgres.store().await, 10).await;
    let second = Fleet::start(postgres.store().await, config("second"))
        .await
        .unwrap();
    assert_eq!(
        second.standing(),
        Standing::Follows("first:7445".to_owned())
    );
    let refused = second.with(|_, _| ()).await.unwrap_err();
    assert!(refused.to_string().contains("ask first:7445"), "{refused}");
    first.abort();
    until_leads(&second).await;
    let vms = second
        .with(|lead, _| lead.core.vm_rows(None, 0, usize::MAX))
        .await
        .unwrap();
    assert_eq!(vms.len(), 10);
    assert!(
        vms.iter()
            .all(|vm| vm.appliances.len() == 2 && vm.epoch > 0)
    );
}
