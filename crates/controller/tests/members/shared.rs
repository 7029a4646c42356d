//! Two controllers on one PostgreSQL.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use controller::fleet::{Fleet, FleetConfig, Retirement, Standing, Store, renew_guest};
use controller::{Authority, Proof, Refusal, Rekey, Word};
use fleet_core::{CoreSettings, SiteRules};
use model::GuestId;
use pki::GuestKey;
use proto::v1;
use testbed::Postgres;

use crate::scene::{HOUR, Joiner, PATIENCE, a_guest, joined, pool, sharing, token, waits};
use crate::site::{attach, guest_of, machine, member, until, up};

struct Two {
    a: Arc<Authority>,
    b: Arc<Authority>,
    postgres: Postgres,
    dir: tempfile::TempDir,
}

impl Two {
    async fn start() -> Self {
        let postgres = Postgres::start().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (
            sharing(&postgres.url(), dir.path()).await,
            sharing(&postgres.url(), dir.path()).await,
        );
        Self {
            a,
            b,
            postgres,
            dir,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_does_counts_at_the_other() {
    let two = Two::start().await;
    let (a, b) = (&two.a, &two.b);
    let now = SystemTime::now();
    // A token of one is good at the other at once, though that one has not looked.
    let made = token(a, None, 2).await;
    let guest = joined(Joiner::new(1).ask(b, &made, None).await);
    // A guest of one is renewed by the other, and let in before it has looked.
    assert!(!a.is_revoked(guest));
    let next = GuestKey::generate().unwrap();
    a.renew(guest, None, next.csr(), now).await.unwrap();
    joined(Joiner::new(2).ask(a, &made, None).await);
    let spent = Joiner::new(3).ask(b, &made, None).await;
    assert_eq!(spent.unwrap_err(), Refusal::Token, "spent at both");
    // A revocation of one ends it at the other.
    let mut ended = b.ended();
    tokio::spawn(b.clone().follow());
    a.revoke(guest, false, "", now).await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, ended.recv()).await;
    assert_eq!(heard.unwrap().unwrap(), guest);
    assert!(b.is_revoked(guest));
    let refused = b.renew(guest, None, next.csr(), now).await;
    assert_eq!(refused.unwrap_err(), Refusal::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_one_told_may_ask_at_the_other_and_the_placer_alone_judges() {
    let two = Two::start().await;
    let mut fleets = Vec::new();
    for (holder, members) in [("a", &two.a), ("b", &two.b)] {
        let store = Store::postgres(&two.postgres.url()).await.unwrap();
        let config = FleetConfig {
            holder: holder.into(),
            address: format!("{holder}:7445"),
            settings: CoreSettings::default(),
            sites: SiteRules::default(),
            members: Some(members.clone()),
            retirement: Retirement::default(),
        };
        fleets.push(Fleet::start(store, config).await.unwrap());
    }
    assert_eq!(fleets[1].standing(), Standing::Follows("a:7445".into()));
    let _told = attach(&fleets[0]).await;
    let guest = a_guest(&two.a).await;
    let its = member(&two.a, guest);
    let key = its.key.unwrap().id;
    up(&fleets[0], its.clone(), key, 1).await;
    up(&fleets[0], its, key, 2).await;
    until("it is not written down", || {
        !member(&two.a, guest).told.is_empty()
    })
    .await;
    let next = GuestKey::generate().unwrap();
    for rekey in [false, true] {
        let renew = v1::RenewGuest {
            guest_id: guest.0.to_vec(),
            ticket: 1,
            csr: next.csr().to_vec(),
            key_id: key.0.to_vec(),
            rekey,
            machine: Some((&machine(2)).into()),
        };
        let refused = renew_guest(&two.b, &fleets[1], &renew).await;
        assert_eq!(refused.unwrap_err(), Refusal::NotPlacer);
    }
    let asks = Rekey {
        of: guest,
        shown: Some(key),
        machine: &machine(2),
        is_seen: false,
    };
    let own = two.b.rekey(asks, next.csr(), SystemTime::now()).await;
    assert_ne!(guest_of(&own.unwrap()), guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_nobody_knows_ends_when_it_was_looked_for() {
    let two = Two::start().await;
    let stranger = GuestId([9; 16]);
    let mut ended = two.a.ended();
    assert!(!two.a.is_revoked(stranger), "another may know it");
    two.a.look_up(stranger).await;
    assert_eq!(ended.try_recv().unwrap(), stranger);
    let guest = a_guest(&two.b).await;
    two.a.look_up(guest).await;
    assert!(two.a.guest(guest).is_some());
    assert!(ended.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_is_spent_once_by_whoever_is_first() {
    const USES: u32 = 5;
    let two = Two::start().await;
    let made = token(&two.a, None, USES).await;
    let guests: Vec<_> = (0..24)
        .map(|number| {
            let at = if number % 2 == 0 { &two.a } else { &two.b };
            let (at, made) = (at.clone(), made.clone());
            tokio::spawn(async move { Joiner::new(number).ask(&at, &made, None).await })
        })
        .collect();
    let mut count = 0;
    for guest in guests {
        match guest.await.unwrap() {
            Ok(_) => count += 1,
            Err(refused) => assert_eq!(refused, Refusal::Token),
        }
    }
    assert_eq!(count, USES);
    let third = sharing(&two.postgres.url(), two.dir.path()).await;
    assert_eq!(third.guests().len(), USES as usize);
    assert!(third.tokens(SystemTime::now()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_at_one_is_approved_at_the_other() {
    let two = Two::start().await;
    let now = SystemTime::now();
    two.a
        .set_pool(pool("office", Proof::Approval), now)
        .await
        .unwrap();
    let made = token(&two.a, Some("office"), 1).await;
    let machine = Joiner::new(1);
    waits(machine.ask(&two.a, &made, None).await);
    tokio::spawn(two.b.clone().follow());
    let until = Instant::now() + PATIENCE;
    while two.b.pending(now).is_empty() {
        assert!(Instant::now() < until, "it is not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let id = two.b.pending(now)[0].id.clone();
    two.b.decide(&id, Word::Yes, now).await.unwrap();
    let until = Instant::now() + PATIENCE;
    tokio::spawn(two.a.clone().follow());
    while !two.a.tokens(now).is_empty() {
        assert!(Instant::now() < until, "it is not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    joined(machine.ask(&two.a, &made, None).await);
}

/// The database goes amid joins: a use is spent exactly where a guest is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_dies_leaves_no_half_state() {
    const USES: u32 = 1000;
    let mut two = Two::start().await;
    let made = token(&two.a, None, USES).await;
    for round in 0..3_u8 {
        let joining: Vec<_> = [&two.a, &two.b]
            .into_iter()
            .map(|at| {
                let (at, made) = (at.clone(), made.clone());
                tokio::spawn(async move {
                    let mut told = Vec::new();
                    for number in 0..40 {
                        match Joiner::new(number).ask(&at, &made, None).await {
                            Ok(answer) => told.push(joined(Ok(answer))),
                            Err(refused) => {
                                assert_eq!(refused, Refusal::Internal);
                                break;
                            }
                        }
                    }
                    told
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20 + 40 * u64::from(round))).await;
        two.postgres.stop().unwrap();
        let mut told = Vec::new();
        for joining in joining {
            told.extend(joining.await.unwrap());
        }
        two.postgres.restart().unwrap();
        let fresh = sharing(&two.postgres.url(), two.dir.path()).await;
        let members = fresh.guests().len();
        let left = fresh.tokens(SystemTime::now())[0].uses_left;
        assert_eq!(u32::try_from(members).unwrap() + left, USES);
        assert!(told.iter().all(|guest| fresh.guest(*guest).is_some()));
    }
    // Who was cut off goes on.
    let until = Instant::now() + PATIENCE;
    while Joiner::new(99).ask(&two.a, &made, None).await.is_err() {
        assert!(Instant::now() < until, "it does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(two.a.tokens(SystemTime::now() + 2 * HOUR).is_empty());
    drop(Store::postgres(&two.postgres.url()).await.unwrap());
}
