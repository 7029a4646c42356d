//! Content that is like something that the guest has sent, and every lie that can be told about it.

use super::rig::{Guest, claim};
use super::*;

use std::path::Path;

use bytes::Bytes;
use chunks::{Kind, Lister, Manifest};
use model::UnscannedReason;
use proto::v1;
use proto::v1::envelope::Body;

/// As random as compressed content.
fn content(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut xof = blake3::Hasher::new().update(&[seed]).finalize_xof();
    xof.fill(&mut bytes);
    bytes
}

/// The next version: something is put in and something appended.
fn next_version(old: &[u8], put_in: &[u8]) -> Vec<u8> {
    let (head, tail) = old.split_at(old.len() / 3);
    [head, put_in, tail, b"one more line\n"].concat()
}

fn list(bytes: &[u8]) -> Manifest {
    let mut lister = Lister::new(Kind::of(bytes.len() as u64, bytes).unwrap());
    lister.update(bytes);
    lister.finish().0
}

fn message(manifest: &Manifest) -> Body {
    Body::Manifest(v1::Manifest {
        kind: manifest.kind().number(),
        chunks: manifest.encode(),
    })
}

impl Guest {
    /// Has content judged that a chunk store knows nothing of, and waits until it is kept.
    async fn teach(&mut self, rig: &Rig, request_id: u64, bytes: &[u8]) {
        let before = rig.shared.chunks.totals().0;
        clean(&self.upload(request_id, bytes).await, false);
        while rig.shared.chunks.totals().0 == before || rig.holds_content() {
            tokio::task::yield_now().await;
        }
    }

    /// The list that the appliance asks for, and what it asks for then.
    async fn list(&mut self, request_id: u64, bytes: &[u8], manifest: Body) -> Body {
        self.check(request_id, claim(bytes));
        let need = self.needed(request_id).await;
        assert!(need.manifest && need.ranges.is_empty(), "{need:?}");
        self.send(request_id, manifest).unwrap();
        self.next().await.1
    }

    /// Sends ranges; the number of bytes.
    fn ranges(&self, request_id: u64, ranges: &[v1::ByteRange], bytes: &[u8]) -> u64 {
        for range in ranges {
            let from = range.offset as usize;
            let own = &bytes[from..from + range.length as usize];
            for (n, piece) in own.chunks(64 << 10).enumerate() {
                self.data(request_id, range.offset + ((n as u64) << 16), piece);
            }
        }
        ranges.iter().map(|range| range.length).sum()
    }

    /// The whole exchange of an honest agent; the reply and the bytes that were sent.
    async fn by_chunks(&mut self, request_id: u64, bytes: &[u8]) -> (v1::CheckReply, u64) {
        match self.list(request_id, bytes, message(&list(bytes))).await {
            Body::CheckReply(reply) => (reply, 0),
            Body::Need(need) => {
                let sent = self.ranges(request_id, &need.ranges, bytes);
                self.end(request_id);
                (self.reply(request_id).await, sent)
            }
            other => panic!("not wanted: {other:?}"),
        }
    }

    /// The appliance gave up the list and wants the whole.
    async fn whole(&mut self, request_id: u64, asked: Body, bytes: &[u8]) -> v1::CheckReply {
        let Body::Need(need) = asked else {
            panic!("not a need: {asked:?}");
        };
        assert!(need.ranges.is_empty() && !need.manifest, "{need:?}");
        let all = v1::ByteRange {
            offset: 0,
            length: bytes.len() as u64,
        };
        self.ranges(request_id, &[all], bytes);
        self.end(request_id);
        self.reply(request_id).await
    }
}

impl Rig {
    fn holds_content(&self) -> bool {
        self.shared.budget.lock().bytes_held() != (0, 0)
    }
}

#[tokio::test]
async fn of_a_new_version_only_what_is_new_is_sent() {
    let rig = Rig::limited("[limits]\nupload_memory_max_bytes = 1100000\n");
    let mut guest = rig.guest(A);
    // In memory and on disk.
    for (n, size) in [(0u8, 1_000_000), (1, 3_000_000)] {
        let id = u64::from(n) * 100 + 1;
        let old = content(n, size);
        guest.teach(&rig, id, &old).await;
        let new = next_version(&old, b"a paragraph");
        let (reply, sent) = guest.by_chunks(id + 2, &new).await;
        clean(&reply, false);
        assert!(sent > 0 && sent < 300_000, "{sent}");
        let evil = next_version(&old, EVIL);
        let (reply, _) = guest.by_chunks(id + 4, &evil).await;
        malicious(&reply, false);
    }
    assert!(rig.metric("lazaret_manifests_total{result=\"used\"} 4"));
    let spool = rig.dir.path().join("spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0);
}

#[tokio::test]
async fn what_was_put_together_is_known_next_time() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let first = content(0, 600_000);
    guest.teach(&rig, 1, &first).await;
    let second = next_version(&first, &content(9, 200_000));
    let before = rig.shared.chunks.totals().0;
    guest.by_chunks(3, &second).await;
    while rig.shared.chunks.totals().0 == before || rig.holds_content() {
        tokio::task::yield_now().await;
    }
    let third = next_version(&second, b"more");
    let (reply, sent) = guest.by_chunks(5, &third).await;
    clean(&reply, false);
    assert!(sent < 250_000, "{sent}");
}

#[tokio::test]
async fn nobody_learns_what_another_guest_has_sent() {
    let rig = Rig::new();
    let (mut one, mut other) = (rig.guest(A), rig.guest(B));
    let old = content(0, 600_000);
    one.teach(&rig, 1, &old).await;
    let new = next_version(&old, b"x");
    other.check(1, claim(&new));
    assert!(!other.needed(1).await.manifest, "B has sent nothing");
    other.send(1, Body::Cancel(v1::Cancel {})).unwrap();
    let own = content(1, 600_000);
    other.teach(&rig, 3, &own).await;
    let asked = other.list(5, &new, message(&list(&new))).await;
    clean(&other.whole(5, asked, &new).await, false);
}

#[tokio::test]
async fn guests_share_where_an_administrator_says_so() {
    let rig = Rig::limited("[chunks]\nshare = 'all'\n");
    let (mut one, mut other) = (rig.guest(A), rig.guest(B));
    let old = content(0, 600_000);
    one.teach(&rig, 1, &old).await;
    let (reply, sent) = other.by_chunks(1, &next_version(&old, b"x")).await;
    clean(&reply, false);
    assert!(sent < 250_000, "{sent}");
}

/// A rig whose appliance has chunks of an image with this file.
fn rig_of_image(dir: &Path, file: &[u8]) -> Rig {
    let root = dir.join("image");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file"), file).unwrap();
    let made = dir.join("image.chunks");
    let mut builder = image_chunks::Builder::create(&made).unwrap();
    builder
        .directory(&root, 1, |path, error| panic!("{path:?}: {error}"))
        .unwrap();
    builder.finish().unwrap();
    Rig::limited(&format!("[chunks]\nimages = [{made:?}]\n"))
}

#[tokio::test]
async fn what_the_image_had_is_sent_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let old = content(0, 600_000);
    let rig = rig_of_image(dir.path(), &old);
    for id in [A, B] {
        let (reply, sent) = rig.guest(id).by_chunks(1, &next_version(&old, &id.0)).await;
        clean(&reply, false);
        assert!(sent < 250_000, "{sent}");
    }
    let (reply, _) = rig.guest(A).by_chunks(3, &next_version(&old, EVIL)).await;
    malicious(&reply, false);
    // Without the image there is nothing to compare a third guest's content with.
    rig.shared.chunks.set_images(Default::default());
    let mut third = rig.guest(model::GuestId([77; 16]));
    third.check(1, claim(&next_version(&old, b"third")));
    assert!(!third.needed(1).await.manifest);
    assert!(found(&rig, "image") > 30 && found(&rig, "nowhere") > 3);
    assert_eq!(found(&rig, "damaged"), 0);
}

/// Chunks that were looked for, by where they were.
fn found(rig: &Rig, place: &str) -> u64 {
    let name = format!("lazaret_chunks_found_total{{where=\"{place}\"}} ");
    let text = rig.registry.render();
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0, |value| value.parse().unwrap())
}

/// Chunks are what their names say, or are asked for.
#[tokio::test]
async fn a_damaged_image_costs_bytes_and_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let old = content(0, 600_000);
    let rig = rig_of_image(dir.path(), &old);
    let made = dir.path().join("image.chunks");
    let file = std::fs::OpenOptions::new().write(true).open(made).unwrap();
    // The first of the chunks, all of which are stored as they are.
    std::os::unix::fs::FileExt::write_all_at(&file, b"damaged", 100).unwrap();
    let (reply, sent) = rig.guest(A).by_chunks(1, &[&old, EVIL].concat()).await;
    malicious(&reply, false);
    assert!((4096..200_000).contains(&sent), "{sent}");
    assert!(found(&rig, "damaged") > 0);
}

#[test]
fn an_image_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none");
    std::fs::write(&path, b"something else altogether").unwrap();
    let text = format!("[chunks]\nimages = [{path:?}]\n");
    let config: crate::Config = daemon::config::parse(&text, "test.toml").unwrap();
    config.validate().unwrap();
    let error = crate::images::open(&config).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{}: not a file of image chunks", path.display())
    );
}

#[test]
fn images_without_a_store_are_refused() {
    let text = "[chunks]\nimages = ['x']\nsize_min_bytes = 0\n";
    let config: crate::Config = daemon::config::parse(text, "test.toml").unwrap();
    let error = config.validate().unwrap_err();
    assert_eq!(error.key, "chunks.images");
}

#[test]
fn there_are_so_many_images_at_most() {
    for (files, is_good) in [(64, true), (65, false)] {
        let images = vec!["x"; files];
        let text = format!("[chunks]\nimages = {images:?}\n");
        let config: crate::Config = daemon::config::parse(&text, "test.toml").unwrap();
        assert_eq!(config.validate().is_ok(), is_good, "{files}");
    }
}

#[tokio::test]
async fn small_content_and_a_store_of_nothing_are_sent_whole() {
    for text in [
        "[chunks]\nsize_min_bytes = 0\n",
        "[limits]\nchunk_bytes_max = 0\n",
    ] {
        let rig = Rig::limited(text);
        let mut guest = rig.guest(A);
        let old = content(0, 600_000);
        clean(&guest.upload(1, &old).await, false);
        guest.check(3, claim(&next_version(&old, b"x")));
        assert!(!guest.needed(3).await.manifest, "{text}");
    }
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.teach(&rig, 1, &content(0, 600_000)).await;
    guest.check(3, claim(&content(1, 200_000)));
    assert!(!guest.needed(3).await.manifest);
}

/// What is gone between two versions is asked for: the verdict is the same.
#[tokio::test]
async fn eviction_changes_no_verdict() {
    let rig = Rig::limited("[limits]\nguest_chunk_bytes_max = 700000\n");
    let mut guest = rig.guest(A);
    let old = content(0, 600_000);
    guest.teach(&rig, 1, &old).await;
    // Half of it goes.
    let other = content(1, 400_000);
    clean(&guest.upload(3, &other).await, false);
    while rig.shared.chunks.totals().0 <= 600_000 || rig.holds_content() {
        tokio::task::yield_now().await;
    }
    let evil = next_version(&old, EVIL);
    let (reply, sent) = guest.by_chunks(5, &evil).await;
    malicious(&reply, false);
    assert!((300_000..600_000).contains(&sent), "{sent}");
}

#[tokio::test]
async fn an_agent_that_lists_nothing_sends_the_content() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let old = content(0, 600_000);
    guest.teach(&rig, 1, &old).await;
    let new = next_version(&old, EVIL);
    malicious(&guest.upload(3, &new).await, false);
    assert!(rig.metric("lazaret_manifests_total{result=\"declined\"} 1"));
}

#[tokio::test]
async fn a_list_that_is_none_has_the_content_sent_whole() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let old = content(0, 600_000);
    guest.teach(&rig, 1, &old).await;
    let new = next_version(&old, b"x");
    let (honest, size) = (list(&new).encode(), new.len() as u64);
    let entry = |len: u16| [&(len - 1).to_le_bytes()[..], &[7; 8]].concat();
    let lies: [(u32, Vec<u8>); 8] = [
        (0, honest.clone()),
        (99, honest.clone()),
        // Cut, too short, too long, of nothing.
        (2, honest[..honest.len() - 1].to_vec()),
        (2, honest[..honest.len() - 10].to_vec()),
        (2, [honest, entry(2000)].concat()),
        (2, Vec::new()),
        // Tens of thousands of chunks of one byte.
        (2, entry(1).repeat(80_000)),
        // Groups that do not make the digest.
        (1, vec![7; 32 * size.div_ceil(65_536) as usize]),
    ];
    let count = lies.len();
    for (n, (kind, chunks)) in lies.into_iter().enumerate() {
        let id = n as u64 * 2 + 11;
        // A new content each time, or its verdict would be known.
        let new = [&new[..new.len() - 1], &[n as u8]].concat();
        let lie = Body::Manifest(v1::Manifest { kind, chunks });
        let asked = guest.list(id, &new, lie).await;
        clean(&guest.whole(id, asked, &new).await, false);
    }
    let line = format!("lazaret_manifests_total{{result=\"refused\"}} {count}");
    assert!(rig.metric(&line), "{}", rig.registry.render());
}

/// Content that is not what its list says is found out, and the truth is judged.
#[tokio::test]
async fn a_list_of_other_content_has_the_content_sent_whole() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let old = content(0, 600_000);
    guest.teach(&rig, 1, &old).await;
    // The digest of evil, the list of what is held and clean: nothing is missing by it.
    let mut evil = old.clone();
    evil[300_000..300_000 + EVIL.len()].copy_from_slice(EVIL);
    let asked = guest.list(3, &evil, message(&list(&old))).await;
    malicious(&guest.whole(3, asked, &evil).await, false);
    assert!(rig.metric("lazaret_manifests_total{result=\"mismatch\"} 1"));
    // The same, and no content that would prove it: no verdict, and no second chance.
    let mut other = old.clone();
    other[5] ^= 1;
    let asked = guest.list(5, &other, message(&list(&old))).await;
    let reply = guest.whole(5, asked, &old).await;
    unscanned(&reply, UnscannedReason::Changed);
    let mut honest = rig.guest(B);
    clean(&honest.upload(1, &other).await, false);
}

/// Bytes that are not what the list says of them.
#[tokio::test]
async fn chunks_that_are_not_what_they_are_called_do_not_stay() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let old = content(0, 600_000);
    guest.teach(&rig, 1, &old).await;
    let new = next_version(&old, &content(5, 100_000));
    let Body::Need(need) = guest.list(3, &new, message(&list(&new))).await else {
        panic!("no need");
    };
    let zeros = vec![0; new.len()];
    guest.ranges(3, &need.ranges, &zeros);
    guest.end(3);
    let asked = guest.next().await.1;
    clean(&guest.whole(3, asked, &new).await, false);
    // Nothing of the lie is found under those names.
    while rig.holds_content() {
        tokio::task::yield_now().await;
    }
    let newer = next_version(&new, EVIL);
    malicious(&guest.by_chunks(5, &newer).await.0, false);
}

#[tokio::test]
async fn ranges_that_were_not_asked_for_are_unscanned() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let old = content(0, 600_000);
    guest.teach(&rig, 1, &old).await;
    for (id, shift) in [(3u64, 1u64), (5, 100_000), (7, u64::MAX / 2)] {
        let new = next_version(&old, &[id as u8; 10]);
        let Body::Need(need) = guest.list(id, &new, message(&list(&new))).await else {
            panic!("no need");
        };
        guest.data(id, need.ranges[0].offset + shift, &[1; 5000]);
        unscanned(&guest.reply(id).await, UnscannedReason::Truncated);
    }
    // Too little.
    let new = next_version(&old, b"other");
    guest.list(9, &new, message(&list(&new))).await;
    guest.end(9);
    unscanned(&guest.reply(9).await, UnscannedReason::Truncated);
    assert!(!rig.holds_content());
}

/// A guest that finds its file changed says so instead.
#[tokio::test]
async fn a_file_that_changed_is_unscanned() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let old = content(0, 600_000);
    guest.teach(&rig, 1, &old).await;
    let changed = Body::DataEnd(v1::DataEnd {
        failed: v1::UnscannedReason::Changed as i32,
    });
    guest.check(3, claim(&next_version(&old, b"x")));
    assert!(guest.needed(3).await.manifest);
    guest.send(3, changed).unwrap();
    unscanned(&guest.reply(3).await, UnscannedReason::Changed);
}

#[tokio::test]
async fn compressed_content_is_judged_as_what_it_becomes() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let text = [&b"nothing to see here, ".repeat(1000)[..], EVIL].concat();
    let along = |bytes: &[u8], small: Vec<u8>| v1::Check {
        content: Some(Bytes::from(small)),
        content_compressed: true,
        ..claim(bytes)
    };
    guest.check(1, along(&text, chunks::compress(&text).unwrap()));
    malicious(&guest.reply(1).await, false);
    // Of an upload, piece by piece.
    let long = [text.clone(), b"and so on; ".repeat(20_000)].concat();
    guest.check(3, claim(&long));
    guest.needed(3).await;
    for (n, piece) in long.chunks(100_000).enumerate() {
        let data = v1::Data {
            offset: n as u64 * 100_000,
            bytes: chunks::compress(piece).unwrap().into(),
            plain_bytes: piece.len() as u32,
        };
        guest.send(3, Body::Data(data)).unwrap();
    }
    guest.end(3);
    malicious(&guest.reply(3).await, false);
}

#[tokio::test]
async fn a_piece_that_does_not_become_what_it_says_is_unscanned() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let plain = vec![0; 500_000];
    let bomb = chunks::compress(&plain).unwrap();
    let lies = [
        (bomb.clone(), 1000),
        (bomb.clone(), 600_000),
        (bomb[..bomb.len() - 1].to_vec(), 500_000),
        (b"this is no zstd frame".to_vec(), 1000),
    ];
    for (n, (small, says)) in lies.into_iter().enumerate() {
        let id = n as u64 * 4 + 1;
        let announced = v1::Check {
            size: says,
            ..claim(&plain)
        };
        let along = v1::Check {
            content: Some(Bytes::from(small.clone())),
            content_compressed: true,
            ..announced.clone()
        };
        match guest.send(id, Body::Check(along)) {
            // More than anything that rides along: the session ends.
            Err(_) => assert!(says > 512 << 10),
            Ok(()) => unscanned(&guest.reply(id).await, UnscannedReason::Truncated),
        }
        guest.check(id + 2, announced);
        guest.needed(id + 2).await;
        let data = v1::Data {
            offset: 0,
            bytes: small.into(),
            plain_bytes: says as u32,
        };
        guest.send(id + 2, Body::Data(data)).unwrap();
        unscanned(&guest.reply(id + 2).await, UnscannedReason::Truncated);
    }
    assert!(!rig.holds_content());
}
