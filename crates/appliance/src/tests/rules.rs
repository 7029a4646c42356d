//! Rules change: what is known is judged by what is new alone.

use super::force::use_engines;
use super::rig::Double;
use super::*;
use crate::config::Config;
use crate::engines::{DeltaFuture, EngineSource, LoadFuture, ManifestFuture, SharedEngine};
use crate::rejudge::follow_rules;
use crate::rule_delta::Manifest;
use model::{Generation, GuestId};
use std::path::Path;
use std::sync::Arc;

const NEW: Generation = Generation([2; 16]);

/// Rules as they lie there, and the engine of those that are new.
struct Source {
    manifest: String,
    delta: Arc<Double>,
}

impl EngineSource for Source {
    fn load<'a>(&'a self, _: &'a Config) -> LoadFuture<'a> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    fn manifest<'a>(&'a self, _: &'a Config) -> ManifestFuture<'a> {
        let manifest = Manifest::read(self.manifest.clone());
        Box::pin(std::future::ready(manifest))
    }
    fn delta<'a>(&'a self, _: &'a Config, _: &'a Path) -> DeltaFuture<'a> {
        let delta = self.delta.clone() as SharedEngine;
        Box::pin(std::future::ready(Some(delta)))
    }
}

fn manifest(generation: Generation, rules: &str) -> String {
    format!("lazaret rules 1 v1 {generation}\n{rules}")
}

/// An appliance whose rules were EVIL, and are what `new` says. All rules together still find
/// EVIL, the new ones alone "fresh".
pub(super) struct Changed {
    pub(super) rig: Rig,
    pub(super) delta: Arc<Double>,
    pub(super) all: Arc<Double>,
}

impl Changed {
    pub(super) async fn new(rig: Rig, then: &str, now: &str) -> Self {
        let path = rig.dir.path().join("rules.manifest");
        std::fs::write(&path, manifest(Generation([1; 16]), then)).unwrap();
        let delta = Arc::new(Double {
            generation: NEW,
            finds: b"fresh",
            ..Double::new()
        });
        let all = Arc::new(Double {
            generation: NEW,
            ..Double::new()
        });
        let config = Config::default();
        use_engines(&rig, &config, vec![all.clone() as SharedEngine]);
        let source = Arc::new(Source {
            manifest: manifest(NEW, now),
            delta: delta.clone(),
        });
        follow_rules(rig.shared.clone(), source, config, path.clone()).await;
        let kept = std::fs::read_to_string(path).unwrap();
        assert_eq!(kept, manifest(NEW, now), "for the next change");
        Self { rig, delta, all }
    }
}

/// Without anything kept, so that only what is asked is judged.
pub(super) fn forgetful() -> Rig {
    Rig::limited("[limits]\nretained_bytes_max = 0\n")
}

async fn judged(rig: &Rig, contents: &[&[u8]]) {
    judged_by(rig, A, contents).await;
}

pub(super) async fn judged_by(rig: &Rig, guest: GuestId, contents: &[&[u8]]) {
    let mut guest = rig.guest(guest);
    for (n, content) in (0..).zip(contents) {
        guest.check(2 * n + 1, check(content));
        guest.reply(2 * n + 1).await;
    }
    // All of it is in the stores, too.
    while Arc::strong_count(&rig.shared) > 2 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_what_is_new_is_run() {
    let rig = forgetful();
    judged(&rig, &[b"good", b"a fresh one", EVIL]).await;
    let Changed { rig, delta, all } = Changed::new(rig, "aa Evil\n", "aa Evil\nbb Fresh\n").await;
    let mut guest = rig.guest(B);
    guest.check(1, check(b"good"));
    clean(&guest.reply(1).await, false);
    guest.check(3, check(b"a fresh one"));
    malicious(&guest.reply(3).await, false);
    assert_eq!((delta.scans(), all.scans()), (2, 0));
    // Malicious by a rule that did not change: it holds.
    guest.check(5, check(EVIL));
    let reply = guest.reply(5).await;
    assert!(matches!(
        rig::verdict(&reply).outcome,
        model::Outcome::Malicious { .. }
    ));
    assert_eq!((delta.scans(), all.scans()), (2, 0));
    // What nobody knew is judged by all.
    guest.check(7, check(b"something else"));
    clean(&guest.reply(7).await, false);
    assert_eq!((delta.scans(), all.scans()), (2, 1));
    assert!(rig.metric(r#"lazaret_rejudged_total{when="asked",how="rerun"} 2"#));
}

#[tokio::test]
async fn what_found_it_is_gone_so_all_judge() {
    let rig = forgetful();
    judged(&rig, &[b"good", EVIL]).await;
    let Changed { rig, delta, all } = Changed::new(rig, "aa Test.Evil\n", "").await;
    let mut guest = rig.guest(B);
    guest.check(1, check(EVIL));
    malicious(&guest.reply(1).await, false);
    assert_eq!((delta.scans(), all.scans()), (0, 1));
    // Rules that went make nothing malicious.
    guest.check(3, check(b"good"));
    clean(&guest.reply(3).await, false);
    assert_eq!((delta.scans(), all.scans()), (0, 1));
}

#[tokio::test]
async fn new_rules_that_cannot_finish_leave_it_to_all() {
    let rig = Rig::with(
        "[limits]\nretained_bytes_max = 0\n",
        Double {
            crashes: b"never",
            ..Double::new()
        },
    );
    judged(&rig, &[b"CRASH"]).await;
    let Changed { rig, delta, all } = Changed::new(rig, "aa Evil\n", "aa Evil\nbb Fresh\n").await;
    let mut guest = rig.guest(B);
    guest.check(1, check(b"CRASH"));
    // Clean once is not clean by rules that saw nothing.
    unscanned(&guest.reply(1).await, model::UnscannedReason::EngineCrashed);
    assert_eq!((delta.scans(), all.scans()), (1, 1));
    assert!(rig.metric(r#"lazaret_rejudged_total{when="asked",how="dropped"} 1"#));
}

#[tokio::test]
async fn what_is_here_is_judged_before_anybody_asks() {
    let rig = Rig::new();
    judged(&rig, &[b"good", b"a fresh one"]).await;
    let Changed { rig, delta, all } = Changed::new(rig, "aa Evil\n", "aa Evil\nbb Fresh\n").await;
    assert_eq!((delta.scans(), all.scans()), (2, 0));
    // Nobody has to send it again.
    let mut guest = rig.guest(B);
    guest.check(1, rig::claim(b"good"));
    clean(&guest.reply(1).await, true);
    guest.check(3, rig::claim(b"a fresh one"));
    malicious(&guest.reply(3).await, true);
    assert_eq!((delta.scans(), all.scans()), (2, 0));
    assert!(rig.metric(r#"lazaret_rejudged_total{when="background",how="rerun"} 2"#));
}
