//! Malicious content that is on an allowlist is recalled.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::allowlist::{List, SigningKey};
use model::{Digest, Generation};
use proto::v1::{self, envelope::Body};

use super::rig::{Double, Guest};
use super::*;

/// A folder with a key and lists in it.
struct Lists {
    folder: tempfile::TempDir,
    key: SigningKey,
}

impl Lists {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::create(&folder.path().join("key")).unwrap();
        Self { folder, key }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("gold.list")
    }

    fn put(&self, serial: u64, listed: &[&[u8]]) {
        let listed = listed.iter().map(|content| Digest::of(content).0).collect();
        let list = List::new("gold", serial, 0, listed, Vec::new()).unwrap();
        list.write(&self.path(), Some(&self.key)).unwrap();
    }

    fn config(&self) -> String {
        let (path, key) = (self.path(), self.key.public());
        let path: &Path = &path;
        format!("[allowlist]\nfiles = [{path:?}]\ntrusted_keys = ['{key}']\n")
    }
}

/// The next frame is a recall of just this content.
#[track_caller]
fn recalls(frame: &(u64, Body), content: &[u8]) {
    let (0, Body::Recall(recall)) = frame else {
        panic!("not a recall: {frame:?}");
    };
    assert_eq!(recall.digests, [Digest::of(content).0.to_vec()]);
}

/// A gate that was told which lists there are.
async fn gate(rig: &Rig, guest: model::GuestId) -> Guest {
    let mut gate = rig.guest(guest);
    offers(&gate.next().await);
    gate
}

#[track_caller]
fn offers(frame: &(u64, Body)) -> v1::AllowlistOffer {
    let (0, Body::AllowlistOffers(said)) = frame else {
        panic!("no offers: {frame:?}");
    };
    assert_eq!(said.offers.len(), 1);
    said.offers[0].clone()
}

/// Has content judged, which must be malicious.
async fn found(guest: &mut Guest, request_id: u64, content: &[u8]) {
    guest.check(request_id, check(content));
    malicious(&guest.reply(request_id).await, false);
}

#[tokio::test]
async fn malicious_content_of_a_list_is_recalled_from_everybody() {
    let lists = Lists::new();
    lists.put(1, &[EVIL, b"good"]);
    let rig = Rig::limited(&lists.config());
    let (mut asks, mut other) = (gate(&rig, A).await, gate(&rig, B).await);
    asks.check(1, check(b"good"));
    clean(&asks.reply(1).await, false);
    found(&mut asks, 3, b"EVIL, but on no list").await;
    assert!(asks.is_quiet() && other.is_quiet());
    asks.check(5, check(EVIL));
    recalls(&asks.next().await, EVIL);
    malicious(&asks.reply(5).await, false);
    recalls(&other.next().await, EVIL);
    asks.check(7, check(EVIL));
    malicious(&asks.reply(7).await, true);
    assert!(asks.is_quiet() && other.is_quiet(), "once");
    let mut late = rig.join(B, false);
    recalls(&late.next().await, EVIL);
    rig.shared.set_allowlist_gauges();
    assert!(rig.metric("lazaret_allowlist_recalled 1"));
}

#[tokio::test]
async fn new_rules_that_find_listed_content_recall_it() {
    let lists = Lists::new();
    lists.put(1, &[EVIL]);
    let blind = Double {
        finds: b"something else",
        ..Double::new()
    };
    let rig = Rig::with(&lists.config(), blind);
    let mut guest = gate(&rig, A).await;
    guest.check(1, check(EVIL));
    clean(&guest.reply(1).await, false);
    let newer = Double {
        generation: Generation([2; 16]),
        ..Double::new()
    };
    let config = daemon::config::parse(&lists.config(), "x").unwrap();
    super::force::use_engines(&rig, &config, vec![Arc::new(newer)]);
    assert!(matches!(guest.next().await, (0, Body::ContentChanged(_))));
    guest.check(3, check(EVIL));
    recalls(&guest.next().await, EVIL);
    malicious(&guest.reply(3).await, false);
}

#[tokio::test]
async fn a_name_that_a_guest_claims_recalls_nothing() {
    let lists = Lists::new();
    lists.put(1, &[b"good", EVIL]);
    let reads_names = Double {
        context_sensitive: true,
        finds_name: Some(b"/srv/file"),
        ..Double::new()
    };
    let rig = Rig::with(&lists.config(), reads_names);
    let mut guest = gate(&rig, A).await;
    for (request_id, cached) in [(1, false), (3, true)] {
        guest.check(request_id, check(b"good"));
        malicious(&guest.reply(request_id).await, cached);
    }
    lists.put(2, &[b"good", EVIL]);
    rig.shared.reload_allowlists();
    offers(&guest.next().await);
    assert!(guest.is_quiet());
    guest.check(5, check(EVIL));
    recalls(&guest.next().await, EVIL);
    malicious(&guest.reply(5).await, false);
}

#[tokio::test]
async fn what_was_recalled_is_told_after_a_restart() {
    let lists = Lists::new();
    lists.put(1, &[EVIL]);
    let rig = Rig::limited(&lists.config());
    let mut guest = gate(&rig, A).await;
    guest.check(1, check(EVIL));
    recalls(&guest.next().await, EVIL);
    malicious(&guest.reply(1).await, false);
    drop(guest);
    let rig = rig.restart_as(&lists.config(), Double::new()).await;
    let mut guest = rig.guest(A);
    recalls(&guest.next().await, EVIL);
    offers(&guest.next().await);
}

#[tokio::test]
async fn a_list_that_comes_later_is_compared_with_what_was_found() {
    let lists = Lists::new();
    lists.put(1, &[b"good"]);
    let rig = Rig::limited(&lists.config());
    let mut guest = gate(&rig, A).await;
    found(&mut guest, 1, EVIL).await;
    assert!(guest.is_quiet());
    lists.put(2, &[b"good", EVIL]);
    rig.shared.reload_allowlists();
    assert_eq!(offers(&guest.next().await).serial, 2);
    recalls(&guest.next().await, EVIL);
    // An older one is refused; the one in force stays.
    lists.put(1, &[]);
    rig.shared.reload_allowlists();
    assert!(rig.metric("lazaret_allowlists_refused_total 1"));
    let listed = Digest::of(b"good").0;
    assert!(rig.shared.shelf.as_ref().unwrap().lists(&listed));
}

#[tokio::test]
async fn a_full_table_of_recalls_still_tells_who_is_there() {
    let lists = Lists::new();
    let evils: [&[u8]; 2] = [b"EVIL one", b"EVIL two"];
    lists.put(1, &evils);
    let text = format!("{}[limits]\nallowlist_recalls_max = 1\n", lists.config());
    let rig = Rig::limited(&text);
    let mut guest = gate(&rig, A).await;
    for (n, evil) in evils.into_iter().enumerate() {
        let request_id = 2 * n as u64 + 1;
        guest.check(request_id, check(evil));
        // It cannot be remembered who was told: the scan itself tells it, too.
        let mut told = false;
        loop {
            match guest.next().await {
                (_, Body::CheckReply(reply)) => break malicious(&reply, false),
                (_, Body::Recall(recall)) => {
                    told |= recall.digests == [Digest::of(evil).0.to_vec()];
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(told);
    }
}

#[tokio::test]
async fn a_list_is_sent_piece_by_piece() {
    let lists = Lists::new();
    let many: Vec<[u8; 4]> = (0..10_000_u32).map(u32::to_le_bytes).collect();
    let many: Vec<&[u8]> = many.iter().map(|content| &content[..]).collect();
    lists.put(7, &many);
    let file = std::fs::read(lists.path()).unwrap();
    let rig = Rig::limited(&lists.config());
    let mut guest = rig.guest(A);
    let offer = offers(&guest.next().await);
    assert_eq!((&offer.name[..], offer.serial), ("gold", 7));
    assert_eq!(offer.size, file.len() as u64);
    let mut received = Vec::new();
    while received.len() < file.len() {
        let fetch = v1::FetchAllowlist {
            fingerprint: offer.fingerprint.clone(),
            offset: received.len() as u64,
        };
        guest.send(0, Body::FetchAllowlist(fetch)).unwrap();
        let (0, Body::AllowlistPart(part)) = guest.next().await else {
            panic!("no piece");
        };
        assert_eq!(part.offset, received.len() as u64);
        assert!(!part.bytes.is_empty() && part.bytes.len() <= 256 * 1024);
        received.extend_from_slice(&part.bytes);
    }
    assert!(received == file);
    for fingerprint in [vec![], vec![1; 32]] {
        let offset = u64::MAX;
        let fetch = v1::FetchAllowlist {
            fingerprint,
            offset,
        };
        guest.send(0, Body::FetchAllowlist(fetch)).unwrap();
        let (0, Body::AllowlistPart(part)) = guest.next().await else {
            panic!("no answer");
        };
        assert!(part.bytes.is_empty());
    }
}

#[tokio::test]
async fn a_guest_that_fetches_without_end_is_not_answered() {
    let lists = Lists::new();
    lists.put(1, &[]);
    let rig = Rig::limited(&lists.config());
    let mut guest = gate(&rig, A).await;
    for _ in 0..2000 {
        let fetch = v1::FetchAllowlist::default();
        guest.send(0, Body::FetchAllowlist(fetch)).unwrap();
    }
    let mut answers = 0;
    while !guest.is_quiet() {
        answers += 1;
    }
    // A minute may have ended meanwhile.
    assert!((1024..2000).contains(&answers), "{answers}");
}
