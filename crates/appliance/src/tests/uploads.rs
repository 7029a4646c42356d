use super::rig::{claim, verdict};
use super::*;
use std::time::Duration;

use model::{Outcome, UnscannedReason};
use proto::v1;
use proto::v1::envelope::Body;

/// In the heap, in anonymous memory, on disk.
#[tokio::test]
async fn content_of_every_size_is_judged_whole() {
    let rig = Rig::limited("[limits]\nupload_memory_max_bytes = 1000000\n");
    let mut guest = rig.guest(A);
    for (id, size) in [(1, 10_000), (3, 500_000), (5, 3_000_000)] {
        let mut bytes = vec![id as u8; size];
        clean(&guest.upload(id, &bytes).await, false);
        let end = bytes.len();
        bytes[end - EVIL.len()..].copy_from_slice(EVIL);
        let reply = guest.upload(id + 100, &bytes).await;
        malicious(&reply, false);
        let sha256 = verdict(&reply).sha256;
        let whole = engine::host::Content::Inline(bytes.into());
        assert_eq!(sha256, crate::assembly::sha256_of(&whole).ok());
    }
    // Until its chunks are kept.
    while rig.shared.budget.lock().bytes_held() != (0, 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn credit_comes_back_as_data_is_taken() {
    let rig = Rig::limited("[limits]\nupload_credit_bytes = 131072\n");
    let mut guest = rig.guest(A);
    let bytes = vec![1; 300_000];
    guest.check(1, claim(&bytes));
    let mut credit = u64::from(guest.needed(1).await.credit_bytes);
    let mut sent = 0u64;
    while sent < bytes.len() as u64 {
        if credit == 0 {
            match guest.next().await {
                (1, Body::Credit(more)) => credit += u64::from(more.bytes),
                other => panic!("not credit: {other:?}"),
            }
            continue;
        }
        let len = credit.min(20_000).min(bytes.len() as u64 - sent);
        let from = usize::try_from(sent).unwrap();
        guest.data(1, sent, &bytes[from..from + usize::try_from(len).unwrap()]);
        credit -= len;
        sent += len;
    }
    guest.end(1);
    clean(&guest.reply(1).await, false);
}

async fn sent(pieces: &[(u64, &[u8])], announced: &[u8]) -> v1::CheckReply {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, claim(announced));
    guest.needed(1).await;
    for (offset, bytes) in pieces {
        guest.data(1, *offset, bytes);
    }
    guest.end(1);
    let reply = guest.reply(1).await;
    guest.data(1, 0, b"after the end");
    guest.end(1);
    assert!(guest.is_quiet(), "one reply");
    assert_eq!(rig.shared.budget.lock().bytes_held(), (0, 0));
    reply
}

#[tokio::test]
async fn data_that_is_not_as_announced_is_unscanned() {
    use UnscannedReason::{Changed, Truncated};
    unscanned(&sent(&[(0, b"abc")], b"abcd").await, Truncated);
    unscanned(&sent(&[(0, b"abcde")], b"abcd").await, Truncated);
    unscanned(&sent(&[(0, b"abc"), (2, b"cd")], b"abcd").await, Truncated);
    unscanned(&sent(&[(0, b"ab"), (3, b"d")], b"abcd").await, Truncated);
    unscanned(&sent(&[(0, b"abcx")], b"abcd").await, Changed);
    clean(&sent(&[(0, b"ab"), (2, b"cd")], b"abcd").await, false);
}

#[tokio::test]
async fn data_after_the_end_is_nothing() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, claim(b"abcd"));
    guest.needed(1).await;
    guest.data(1, 0, b"abcd");
    guest.end(1);
    guest.data(1, 4, b"more");
    clean(&guest.reply(1).await, false);
}

#[tokio::test]
async fn an_agent_that_cannot_read_says_so() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, claim(b"abcd"));
    guest.needed(1).await;
    guest.data(1, 0, b"ab");
    let failed = v1::UnscannedReason::ReadFailed as i32;
    guest
        .send(1, Body::DataEnd(v1::DataEnd { failed }))
        .unwrap();
    unscanned(&guest.reply(1).await, UnscannedReason::ReadFailed);
}

#[tokio::test]
async fn an_upload_that_brings_nothing_is_given_up() {
    let rig = Rig::limited("[limits]\nupload_idle_timeout_ms = 10\n");
    let mut guest = rig.guest(A);
    guest.check(1, claim(b"abcd"));
    guest.needed(1).await;
    unscanned(&guest.reply(1).await, UnscannedReason::Truncated);
    assert_eq!(rig.shared.budget.lock().bytes_held(), (0, 0));
}

/// Bytes that trickle in keep it from being idle for ever, and do not help.
#[tokio::test]
async fn an_upload_that_trickles_is_given_up() {
    let rig = Rig::limited(
        "[limits]\nupload_idle_timeout_ms = 300\nupload_bytes_per_second_min = 1000000000\n",
    );
    let mut guest = rig.guest(A);
    let bytes = vec![1; 100_000];
    guest.check(1, claim(&bytes));
    guest.needed(1).await;
    for (offset, byte) in bytes.chunks(1).enumerate() {
        guest.data(1, offset as u64, byte);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if rig.shared.budget.lock().bytes_held() == (0, 0) {
            break;
        }
    }
    let reply = guest.reply(1).await;
    let Outcome::Unscanned { reason, detail } = verdict(&reply).outcome else {
        panic!("not unscanned: {reply:?}");
    };
    assert_eq!(reason, UnscannedReason::Truncated);
    assert!(detail.contains("upload_bytes_per_second_min"), "{detail}");
}

#[tokio::test]
async fn what_an_upload_held_is_free_when_nobody_waits() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    for id in [1, 3] {
        guest.check(id, claim(&vec![id as u8; 1000]));
        guest.needed(id).await;
    }
    assert_eq!(rig.shared.budget.lock().bytes_held(), (2000, 0));
    guest.send(1, Body::Cancel(v1::Cancel {})).unwrap();
    drop(guest);
    while rig.shared.budget.lock().bytes_held() != (0, 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_spool_that_cannot_hold_it_is_no_space() {
    let rig = Rig::limited("[limits]\nupload_memory_max_bytes = 0\n");
    std::fs::remove_dir(rig.dir.path().join("spool")).unwrap();
    let mut guest = rig.guest(A);
    guest.check(1, claim(&vec![1; 100_000]));
    unscanned(&guest.reply(1).await, UnscannedReason::NoSpace);
}
