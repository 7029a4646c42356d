use super::rig::{Double, claim};
use super::*;
use crate::config::Config;
use crate::engines::{EngineSet, SharedEngine};
use crate::force::Force;
use model::{Generation, UnscannedReason};
use proto::v1;
use proto::v1::envelope::Body;
use std::sync::Arc;

const NEW: Generation = Generation([2; 16]);

fn newer() -> Double {
    Double {
        generation: NEW,
        ..Double::new()
    }
}

/// What a reload does once the engines are there.
pub(super) fn use_engines(rig: &Rig, config: &Config, engines: Vec<SharedEngine>) {
    let settings = config.unpack.settings();
    let engines = Arc::new(EngineSet { engines, settings });
    let force = Arc::new(Force::new(config, &engines.facts()));
    *rig.shared.engines.write() = engines;
    crate::appliance::put_in_force(&rig.shared, force);
}

#[tokio::test]
async fn another_generation_judges_anew_and_everybody_is_told() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, check(b"good"));
    let before = rig::verdict(&guest.reply(1).await).generation;
    use_engines(&rig, &Config::default(), vec![Arc::new(newer())]);
    let (0, Body::ContentChanged(changed)) = guest.next().await else {
        panic!("not told");
    };
    guest.check(3, check(b"good"));
    let reply = guest.reply(3).await;
    clean(&reply, false);
    let after = rig::verdict(&reply).generation;
    assert_ne!(before, after);
    assert_eq!(changed.generation, after.0);
}

#[tokio::test]
async fn another_policy_is_pushed() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let text = "[policy]\nopen_budget_ms = 77\n";
    let config = daemon::config::parse(text, "x").unwrap();
    use_engines(&rig, &config, vec![rig.double.clone()]);
    let (0, Body::Policy(policy)) = guest.next().await else {
        panic!("not told");
    };
    assert_eq!(policy.open_budget_ms, 77);
}

#[tokio::test]
async fn other_unpack_limits_are_another_generation() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, check(b"good"));
    clean(&guest.reply(1).await, false);
    let config = daemon::config::parse("[unpack]\ndepth_max = 3\n", "x").unwrap();
    use_engines(&rig, &config, vec![rig.double.clone()]);
    assert!(matches!(guest.next().await, (0, Body::ContentChanged(_))));
    guest.check(3, check(b"good"));
    clean(&guest.reply(3).await, false);
}

#[tokio::test]
async fn a_restart_keeps_verdicts_and_a_new_generation_drops_them() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, check(b"good"));
    guest.check(3, check(EVIL));
    guest.check(5, check(b"CRASH"));
    for _ in 0..3 {
        guest.next().await;
    }
    drop(guest);
    let rig = rig.restart(Double::new()).await;
    let mut guest = rig.guest(A);
    guest.check(1, claim(b"good"));
    clean(&guest.reply(1).await, true);
    guest.check(3, claim(EVIL));
    malicious(&guest.reply(3).await, true);
    guest.check(5, claim(b"CRASH"));
    guest.needed(5).await;
    drop(guest);
    let rig = rig.restart(newer()).await;
    let mut guest = rig.guest(A);
    guest.check(1, claim(b"good"));
    guest.needed(1).await;
}

fn named(path: &[u8], bytes: &[u8]) -> v1::Check {
    let mut check = check(bytes);
    check.context.as_mut().unwrap().path = path.to_vec();
    check
}

#[tokio::test]
async fn rules_that_read_names_get_a_verdict_for_each_name() {
    let double = Double {
        context_sensitive: true,
        ..Double::new()
    };
    let rig = Rig::with("", double);
    assert!(rig.shared.force().policy.context_sensitive);
    let mut guest = rig.guest(A);
    guest.check(1, named(b"/a.txt", b"good"));
    clean(&guest.reply(1).await, false);
    guest.check(3, named(b"/b.exe", b"good"));
    clean(&guest.reply(3).await, false);
    guest.check(5, named(b"/a.txt", b"good"));
    clean(&guest.reply(5).await, true);
    let contexts = rig.double.contexts.lock();
    let paths: Vec<_> = contexts.iter().flatten().map(|c| c.path.clone()).collect();
    assert_eq!(paths, [b"/a.txt".to_vec(), b"/b.exe".to_vec()]);
}

#[tokio::test]
async fn rules_that_read_no_names_are_given_none() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, named(b"/a.txt", b"good"));
    clean(&guest.reply(1).await, false);
    guest.check(3, named(b"/b.exe", b"good"));
    clean(&guest.reply(3).await, true);
    assert_eq!(*rig.double.contexts.lock(), [None]);
}

#[tokio::test]
async fn without_an_engine_nothing_is_clean() {
    let rig = Rig::new();
    use_engines(&rig, &Config::default(), vec![]);
    let mut guest = rig.guest(A);
    guest.check(1, check(b"good"));
    unscanned(&guest.reply(1).await, UnscannedReason::EngineUnavailable);
}

/// Engines come into use a moment before what is in force says so.
#[tokio::test]
async fn a_verdict_under_other_unpack_limits_is_kept_for_those() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let config: Config = daemon::config::parse("[unpack]\ndepth_max = 1\n", "x").unwrap();
    let old = rig.shared.force().generation;
    *rig.shared.engines.write() = Arc::new(EngineSet {
        engines: vec![rig.double.clone()],
        settings: config.unpack.settings(),
    });
    for id in [1, 3] {
        guest.check(id, check(b"good"));
        let reply = guest.reply(id).await;
        clean(&reply, false);
        assert_ne!(rig::verdict(&reply).generation, old);
    }
    use_engines(&rig, &config, vec![rig.double.clone()]);
    let (0, Body::ContentChanged(_)) = guest.next().await else {
        panic!("not told");
    };
    guest.check(5, check(b"good"));
    clean(&guest.reply(5).await, true);
}
