//! Content that guests report on instead of sending it.

use std::sync::Arc;

use literal_filter::{Filter, Needles, Pack};
use model::{FilterId, FilterPack, Generation, Outcome, UnscannedReason};
use proto::v1;
use proto::v1::envelope::Body;

use super::rig::{Double, Guest, claim, verdict};
use super::*;

const FILTER: [u8; 16] = [6; 16];
const POLICY: &str = "[policy]\nreport_min_bytes = 4096\n";

/// Looks for nothing; what begins with "packed" is wanted whole.
fn pack() -> Vec<u8> {
    let filter = Filter::build(&[]).unwrap();
    Pack::write_with_heads(&[b"packed"], &filter, &Needles::default())
}

async fn rig() -> Rig {
    rig_as(POLICY).await
}

async fn rig_as(text: &str) -> Rig {
    let double = Double {
        filter: Some(Arc::new(FilterPack {
            id: FilterId(FILTER),
            generation: Generation([1; 16]),
            bytes: pack(),
        })),
        ..Double::new()
    };
    let rig = Rig::with(text, double);
    rig.shared.follow_filter().await;
    rig
}

/// A guest that has heard of the filter.
async fn guest(rig: &Rig, id: model::GuestId) -> Guest {
    let mut guest = rig.guest(id);
    match guest.next().await {
        (0, Body::FilterOffer(offer)) => {
            let size = pack().len() as u64;
            assert_eq!((&offer.filter[..], offer.size), (&FILTER[..], size))
        }
        other => panic!("not an offer: {other:?}"),
    }
    guest
}

fn content(evil_at: Option<usize>) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    if let Some(at) = evil_at {
        bytes[at..at + 4].copy_from_slice(b"EVIL");
    }
    bytes
}

fn reporting(bytes: &[u8]) -> v1::Check {
    v1::Check {
        filter: FILTER.to_vec(),
        ..claim(bytes)
    }
}

fn places(places: &[u64]) -> Vec<u8> {
    places.iter().flat_map(|at| at.to_be_bytes()).collect()
}

fn report(guest: &Guest, id: u64, bytes: &[u8], found: &[u8]) {
    let report = v1::FilterReport {
        filter: FILTER.to_vec(),
        head: bytes[..512].to_vec(),
        report: found.to_vec().into(),
    };
    guest.send(id, Body::FilterReport(report)).unwrap();
}

/// Asks, and reports what is asked for.
async fn ask(guest: &mut Guest, id: u64, bytes: &[u8], found: &[u8]) {
    guest.check(id, reporting(bytes));
    assert!(guest.needed(id).await.report);
    report(guest, id, bytes, found);
}

/// Sends the ranges that are asked for; returns how many bytes they are.
async fn send_ranges(guest: &mut Guest, id: u64, bytes: &[u8]) -> usize {
    let need = guest.needed(id).await;
    assert!(!need.report && !need.ranges.is_empty());
    let mut sent = 0;
    for range in need.ranges {
        let from = usize::try_from(range.offset).unwrap();
        let own = &bytes[from..from + usize::try_from(range.length).unwrap()];
        guest.data(id, range.offset, own);
        sent += own.len();
    }
    guest.end(id);
    sent
}

/// The content is asked for whole, and sent.
async fn send_whole(guest: &mut Guest, id: u64, bytes: &[u8]) -> v1::CheckReply {
    let need = guest.needed(id).await;
    assert!(need.ranges.is_empty() && !need.report);
    for (n, piece) in bytes.chunks(64 * 1024).enumerate() {
        guest.data(id, n as u64 * 64 * 1024, piece);
    }
    guest.end(id);
    guest.reply(id).await
}

#[tokio::test]
async fn a_report_that_leaves_nothing_open_is_enough() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = content(None);
    ask(&mut guest, 1, &bytes, &[]).await;
    let reply = guest.reply(1).await;
    clean(&reply, false);
    let judged = verdict(&reply);
    assert_eq!(judged.digest, None, "nothing proves it");
    assert_eq!(judged.coverage.bytes_judged, 512);
    assert_eq!(judged.coverage.ranges, [(0, 512)]);
    assert_eq!(judged.coverage.filter, Some(FilterId(FILTER)));
    assert_eq!(judged.generation, rig.shared.force().generation);
    // For this guest it is known now.
    guest.check(3, reporting(&bytes));
    clean(&guest.reply(3).await, true);
    assert_eq!(rig.shared.budget.lock().bytes_held(), (0, 0));
}

fn found_along(bytes: &[u8], filter: [u8; 16], found: &[u8]) -> v1::Check {
    v1::Check {
        report: Some(v1::FilterReport {
            filter: filter.to_vec(),
            head: bytes[..512].to_vec(),
            report: found.to_vec().into(),
        }),
        ..reporting(bytes)
    }
}

#[tokio::test]
async fn a_report_that_comes_along_is_not_asked_for() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = content(None);
    guest.check(1, found_along(&bytes, FILTER, &[]));
    let reply = guest.reply(1).await;
    clean(&reply, false);
    let judged = verdict(&reply);
    assert_eq!((judged.digest, judged.coverage.bytes_judged), (None, 512));
    // Ranges because of it, and the whole because of these.
    let evil = content(Some(50_000));
    guest.check(3, found_along(&evil, FILTER, &places(&[50_000])));
    assert_eq!(send_ranges(&mut guest, 3, &evil).await, 4);
    malicious(&send_whole(&mut guest, 3, &evil).await, false);
    // By a filter that is not the one in force it says nothing.
    let other = [&bytes[..], b"x"].concat();
    guest.check(5, found_along(&other, [7; 16], &[]));
    assert!(guest.needed(5).await.report);
    report(&guest, 5, &other, &[]);
    clean(&guest.reply(5).await, false);
    // What is known is answered without a look at it.
    guest.check(7, found_along(&evil, FILTER, &[]));
    malicious(&guest.reply(7).await, true);
    assert_eq!(rig.shared.budget.lock().bytes_held(), (0, 0));
}

#[tokio::test]
async fn what_could_change_the_verdict_is_asked_for() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = content(None);
    ask(&mut guest, 1, &bytes, &places(&[700, 50_000, 99_998])).await;
    assert_eq!(send_ranges(&mut guest, 1, &bytes).await, 4 + 4 + 2);
    let reply = guest.reply(1).await;
    clean(&reply, false);
    let coverage = verdict(&reply).coverage;
    let expected = [(0, 512), (700, 4), (50_000, 4), (99_998, 2)];
    assert_eq!(coverage.ranges, expected);
    assert_eq!(rig.shared.budget.lock().bytes_held(), (0, 0));
}

#[tokio::test]
async fn what_is_found_by_parts_is_proved_by_the_whole() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = content(Some(50_000));
    ask(&mut guest, 1, &bytes, &places(&[50_000])).await;
    send_ranges(&mut guest, 1, &bytes).await;
    let reply = send_whole(&mut guest, 1, &bytes).await;
    malicious(&reply, false);
    assert_eq!(verdict(&reply).digest, Some(model::Digest::of(&bytes)));
}

#[tokio::test]
async fn another_guest_does_not_profit_from_a_claim() {
    let rig = rig().await;
    let (mut liar, mut honest) = (guest(&rig, A).await, guest(&rig, B).await);
    let bytes = content(Some(50_000));
    // It says that there is nothing to see, and is believed about itself.
    ask(&mut liar, 1, &bytes, &[]).await;
    clean(&liar.reply(1).await, false);
    ask(&mut honest, 1, &bytes, &places(&[50_000])).await;
    send_ranges(&mut honest, 1, &bytes).await;
    malicious(&send_whole(&mut honest, 1, &bytes).await, false);
    // What was proved counts for all.
    liar.check(3, reporting(&bytes));
    malicious(&liar.reply(3).await, true);
}

/// Each guest reports for itself, until a proof is cheaper than one more report.
#[tokio::test]
async fn what_many_have_is_proved_once() {
    let rig = rig().await;
    let bytes = content(None);
    for n in 0..8 {
        let mut guest = guest(&rig, model::GuestId([n; 16])).await;
        ask(&mut guest, 1, &bytes, &[]).await;
        clean(&guest.reply(1).await, false);
        guest.check(3, reporting(&bytes));
        clean(&guest.reply(3).await, true);
    }
    let mut ninth = guest(&rig, model::GuestId([8; 16])).await;
    ninth.check(1, reporting(&bytes));
    let reply = send_whole(&mut ninth, 1, &bytes).await;
    clean(&reply, false);
    assert_eq!(verdict(&reply).digest, Some(model::Digest::of(&bytes)));
    let mut tenth = guest(&rig, model::GuestId([9; 16])).await;
    tenth.check(1, reporting(&bytes));
    clean(&tenth.reply(1).await, true);
    // Where a report is a large part of it, at once.
    let small = &bytes[..4096];
    ask(
        &mut ninth,
        3,
        small,
        &places(&(600..1600).step_by(4).collect::<Vec<_>>()),
    )
    .await;
    assert!(send_ranges(&mut ninth, 3, small).await > 4096 / 4 - 512);
    clean(&ninth.reply(3).await, false);
    tenth.check(3, reporting(small));
    clean(&send_whole(&mut tenth, 3, small).await, false);
}

#[tokio::test]
async fn the_whole_is_asked_for_where_parts_do_not_do() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = content(None);
    for (id, found) in [(1, &b"whole"[..]), (3, b"crash"), (5, b"more")] {
        let mut own = bytes.clone();
        own[90_000] = id as u8;
        ask(&mut guest, id, &own, found).await;
        let rounds = if found == b"more" { 8 } else { 0 };
        for _ in 0..rounds {
            send_ranges(&mut guest, id, &own).await;
        }
        clean(&send_whole(&mut guest, id, &own).await, false);
    }
    // More than half of it.
    let own = [&bytes[..], b"x"].concat();
    let many: Vec<u64> = (0..15_000).map(|n| 600 + n * 5).collect();
    ask(&mut guest, 7, &own, &places(&many[..8000])).await;
    send_ranges(&mut guest, 7, &own).await;
    clean(&guest.reply(7).await, false);
    let own = [&bytes[..], b"y"].concat();
    ask(&mut guest, 9, &own, &places(&many)).await;
    clean(&send_whole(&mut guest, 9, &own).await, false);
}

#[tokio::test]
async fn what_the_engine_wants_whole_is_asked_for_without_asking_it() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = [b"packed", &content(None)[..]].concat();
    ask(&mut guest, 1, &bytes, &places(&[700])).await;
    assert_eq!(rig.double.scans(), 0);
    clean(&send_whole(&mut guest, 1, &bytes).await, false);
    assert_eq!(rig.double.scans(), 1);
}

#[tokio::test]
async fn no_report_and_a_bad_one_lead_to_the_whole() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = content(None);
    let of = |filter: &[u8], head: usize| v1::FilterReport {
        filter: filter.to_vec(),
        head: bytes[..head].to_vec(),
        report: Default::default(),
    };
    let reports = [of(&[], 0), of(&[9; 16], 512), of(&FILTER, 511)];
    for (n, report) in (0u64..).zip(reports) {
        let id = 2 * n + 1;
        let mut own = bytes.clone();
        own[90_000] = id as u8;
        guest.check(id, reporting(&own));
        assert!(guest.needed(id).await.report);
        guest.send(id, Body::FilterReport(report)).unwrap();
        clean(&send_whole(&mut guest, id, &own).await, false);
    }
    guest.check(9, reporting(&bytes));
    assert!(guest.needed(9).await.report);
    let failed = v1::UnscannedReason::Changed as i32;
    guest
        .send(9, Body::DataEnd(v1::DataEnd { failed }))
        .unwrap();
    unscanned(&guest.reply(9).await, UnscannedReason::Changed);
}

#[tokio::test]
async fn only_where_policy_and_filter_say_so() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let bytes = content(None);
    let other = v1::Check {
        filter: vec![7; 16],
        ..claim(&bytes)
    };
    for (id, check) in [
        (1, other),
        (3, claim(&bytes)),
        (5, reporting(&bytes[..4095])),
    ] {
        guest.check(id, check);
        assert!(!guest.needed(id).await.report, "{id}");
        guest.send(id, Body::Cancel(v1::Cancel {})).unwrap();
    }
    let off = rig_as("[policy]\nreport_min_bytes = 0\n").await;
    let mut guest = off.guest(A);
    guest.check(1, reporting(&bytes));
    assert!(!guest.needed(1).await.report);
    assert!(guest.is_quiet(), "nothing is offered");
}

#[tokio::test]
async fn a_guest_that_leaves_holds_no_place() {
    let rig = rig().await;
    rig.double.gate.forget_permits(1000);
    let mut one = guest(&rig, A).await;
    let bytes = content(None);
    ask(&mut one, 1, &bytes, &[]).await;
    while rig.double.scans() == 0 {
        tokio::task::yield_now().await;
    }
    one.send(1, Body::Cancel(v1::Cancel {})).unwrap();
    drop(one);
    rig.double.gate.add_permits(1000);
    while rig.shared.scans.depth() != ([0; 3], 0) || rig.shared.budget.lock().bytes_held() != (0, 0)
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.double.scans(), 1);
}

#[tokio::test]
async fn a_guest_that_fetches_filters_without_end_is_not_answered() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let fetch = || v1::FetchFilter {
        filter: FILTER.to_vec(),
        ..v1::FetchFilter::default()
    };
    for _ in 0..300 {
        guest.send(0, Body::FetchFilter(fetch())).unwrap();
    }
    let mut parts = 0;
    while !guest.is_quiet() {
        parts += 1;
    }
    assert_eq!(parts, 256);
}

#[tokio::test]
async fn a_crash_is_no_verdict() {
    let rig = rig().await;
    let mut guest = guest(&rig, A).await;
    let mut bytes = content(None);
    bytes[60_000..60_005].copy_from_slice(b"CRASH");
    ask(&mut guest, 1, &bytes, b"crash").await;
    let reply = send_whole(&mut guest, 1, &bytes).await;
    assert!(matches!(verdict(&reply).outcome, Outcome::Unscanned { .. }));
}
