use super::rig::{claim, verdict};
use super::*;
use bytes::Bytes;
use model::{Coverage, UnscannedReason};
use proto::v1;
use proto::v1::envelope::Body;

#[tokio::test]
async fn known_content_costs_no_scan() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, check(b"good"));
    let reply = guest.reply(1).await;
    clean(&reply, false);
    let verdict = verdict(&reply);
    assert_eq!(verdict.coverage, Coverage::whole(4));
    assert_eq!(verdict.sha256, None, "nobody asks for it");
    guest.check(3, claim(b"good"));
    clean(&guest.reply(3).await, true);
    assert_eq!(rig.double.scans(), 1);
    assert!(rig.metric(r#"lazaret_checks_total{class="open",outcome="clean",cached="yes"} 1"#));
}

#[tokio::test]
async fn an_empty_file_needs_no_data() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    guest.check(1, claim(b""));
    clean(&guest.reply(1).await, false);
}

#[tokio::test]
async fn malicious_content_is_ordered_away_for_each_guest_and_recorded() {
    let rig = Rig::new();
    let (mut a, mut b) = (rig.guest(A), rig.guest(B));
    a.check(1, check(EVIL));
    let first = a.reply(1).await;
    malicious(&first, false);
    b.check(1, claim(EVIL));
    let second = b.reply(1).await;
    malicious(&second, true);
    let (first, second) = (first.order.unwrap(), second.order.unwrap());
    assert_ne!(first.order_id, second.order_id);
    let Some(v1::order::Action::Quarantine(quarantine)) = &first.action else {
        panic!("not quarantine: {first:?}");
    };
    assert_eq!(quarantine.path, b"/srv/file");
    assert_eq!(quarantine.blake3, model::Digest::of(EVIL).0);
    let recorded = rig.shared.detections.newest(10);
    let guests: Vec<_> = recorded.iter().map(|record| record.guest).collect();
    assert_eq!(guests, [B, A]);
}

#[tokio::test]
async fn an_order_is_settled_by_its_own_guest_only() {
    let rig = Rig::new();
    let (mut a, b) = (rig.guest(A), rig.guest(B));
    a.check(1, check(EVIL));
    let order = a.reply(1).await.order.unwrap();
    let result = v1::OrderResult {
        order_id: order.order_id,
        status: v1::OrderStatus::Done as i32,
        ..v1::OrderResult::default()
    };
    let removal = || rig.shared.detections.newest(1)[0].removal;
    b.send(0, Body::OrderResult(result.clone())).unwrap();
    assert_eq!(removal(), None);
    a.send(0, Body::OrderResult(result)).unwrap();
    assert_eq!(removal(), Some(v1::OrderStatus::Done));
}

#[tokio::test]
async fn deny_leaves_the_file_and_a_file_without_a_path_cannot_be_removed() {
    let rig = Rig::limited("[removal]\non_malicious = 'deny'\n");
    let mut guest = rig.guest(A);
    guest.check(1, check(EVIL));
    assert!(guest.reply(1).await.order.is_none());
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let nameless = v1::Check {
        context: Some(v1::FileContext::default()),
        ..check(EVIL)
    };
    guest.check(1, nameless);
    let reply = guest.reply(1).await;
    malicious(&reply, false);
    assert!(reply.order.is_none());
}

#[tokio::test]
async fn released_content_passes_and_stays_malicious() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let digest = model::Digest::of(EVIL);
    rig.shared.released.release(digest, "ours", 1, 9).unwrap();
    guest.check(1, check(EVIL));
    let reply = guest.reply(1).await;
    malicious(&reply, false);
    assert!(reply.released && reply.order.is_none());
    rig.shared.released.revoke(digest).unwrap();
    guest.check(3, claim(EVIL));
    let reply = guest.reply(3).await;
    assert!(!reply.released && reply.order.is_some());
}

#[tokio::test]
async fn lies_about_content_are_unscanned_and_never_kept() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let lie = |content: &'static [u8], size, claimed: &[u8]| v1::Check {
        size,
        content: Some(Bytes::from_static(content)),
        ..claim(claimed)
    };
    guest.check(1, lie(EVIL, EVIL.len() as u64, b"this is good"));
    unscanned(&guest.reply(1).await, UnscannedReason::Changed);
    guest.check(3, lie(b"good", 5, b"good"));
    unscanned(&guest.reply(3).await, UnscannedReason::Truncated);
    guest.check(5, lie(b"good", 3, b"good"));
    unscanned(&guest.reply(5).await, UnscannedReason::Truncated);
    assert_eq!(rig.double.scans(), 0);
    guest.check(7, claim(b"this is good"));
    guest.needed(7).await;
}

#[tokio::test]
async fn what_an_engine_could_not_judge_is_not_kept() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    for id in [1, 3] {
        guest.check(id, check(b"CRASH"));
        unscanned(&guest.reply(id).await, UnscannedReason::EngineCrashed);
    }
    assert_eq!(rig.double.scans(), 2);
    assert!(rig.metric(r#"lazaret_verdicts_total{outcome="unscanned",reason="engine_crashed"} 2"#));
}

#[tokio::test]
async fn a_broken_contract_ends_the_session() {
    let rig = Rig::new();
    let guest = rig.guest(A);
    let breach = |request_id, check| {
        let sent = guest.send(request_id, Body::Check(check));
        sent.unwrap_err().to_string()
    };
    let no_class = v1::Check {
        class: 0,
        ..check(b"x")
    };
    assert_eq!(breach(1, no_class), "check: class is not valid");
    let short = v1::Check {
        blake3: vec![0; 31],
        ..check(b"x")
    };
    assert_eq!(breach(1, short), "check: blake3 must have 32 bytes");
    let no_context = v1::Check {
        context: None,
        ..check(b"x")
    };
    assert_eq!(breach(1, no_context), "check: context is not set");
    let mut long = check(b"x");
    long.context.as_mut().unwrap().path = vec![b'a'; 40_000];
    assert!(breach(1, long).contains("context.path"));
    guest.check(9, claim(b"never sent"));
    assert_eq!(breach(9, claim(b"x")), "request 9 is already open");
    let not_yours = guest.send(1, Body::Welcome(v1::Welcome::default()));
    assert!(matches!(not_yours, Err(crate::session::Breach::NotYours)));
}

#[tokio::test]
async fn a_newer_gate_takes_over_and_a_scan_does_not() {
    let rig = Rig::new();
    let older = rig.guest(A);
    let _scan = rig.join(A, false);
    assert_eq!(*older.mailbox.ended.lock(), None);
    let newer = rig.guest(A);
    assert!(older.mailbox.ended.lock().is_some());
    drop(older);
    assert_eq!(rig.shared.guests.with_gate(), [A]);
    drop(newer);
    assert!(rig.shared.guests.with_gate().is_empty());
}

fn renew(csr: Vec<u8>) -> v1::Renew {
    v1::Renew {
        csr,
        ..v1::Renew::default()
    }
}

#[tokio::test]
async fn what_guests_report_is_kept_for_status() {
    let rig = Rig::new();
    let mut guest = rig.guest(A);
    let report = v1::LedgerReport {
        open_entries: 5,
        ..v1::LedgerReport::default()
    };
    guest.send(0, Body::LedgerReport(report)).unwrap();
    assert_eq!(rig.shared.guests.status()[0].ledger_open, 5);
    let found = v1::FastPaths {
        filesystems: 2,
        standing: 1,
        ..v1::FastPaths::default()
    };
    guest.send(0, Body::FastPaths(found)).unwrap();
    let told = |path: &str, count: u32| {
        let labels = format!(r#"{{guest="{A}",path="{path}"}} {count}"#);
        rig.metric(&format!("lazaret_guest_fast_paths{labels}"))
    };
    assert!(told("tried", 2) && told("standing", 1) && told("cache", 0));
    let alert = v1::Alert {
        kind: "late_malicious".into(),
        ..v1::Alert::default()
    };
    guest.send(0, Body::Alert(alert)).unwrap();
    assert!(rig.metric(r#"lazaret_alerts_total{kind="late_malicious"} 1"#));
    guest.send(11, Body::Renew(renew(b"csr".to_vec()))).unwrap();
    let (id, Body::Renewed(renewed)) = guest.next().await else {
        panic!("not renewed");
    };
    assert_eq!((id, renewed.chain.len()), (11, 1));
}

#[tokio::test]
async fn alerts_of_any_kind_make_one_metric() {
    let rig = Rig::new();
    let guest = rig.guest(A);
    for n in 0..100 {
        let alert = v1::Alert {
            kind: format!("mine_{n}"),
            detail: "x".repeat(100_000),
            path: vec![b'x'; 100_000],
        };
        guest.send(0, Body::Alert(alert)).unwrap();
    }
    assert!(rig.metric(r#"lazaret_alerts_total{kind="other"} 100"#));
    assert!(!rig.registry.render().contains("mine_"));
    let rates = rig.shared.guests.rates(A).unwrap();
    assert_eq!(rates.alerts.allow(std::time::Instant::now()), None);
}

#[tokio::test]
async fn a_guest_gets_few_certificates_in_a_minute() {
    let rig = Rig::new();
    let mut gate = rig.guest(A);
    let mut scan = rig.join(A, false);
    let mut chains = 0;
    for n in 0..100u64 {
        let guest = if n % 2 == 0 { &mut gate } else { &mut scan };
        let csr = b"csr".to_vec();
        guest.send(2 * n + 1, Body::Renew(renew(csr))).unwrap();
        let (_, Body::Renewed(renewed)) = guest.next().await else {
            panic!("not renewed");
        };
        chains += renewed.chain.len();
        assert!(!renewed.chain.is_empty() || renewed.refused.contains("too many"));
    }
    assert!((4..20).contains(&chains), "{chains}");
    let mut other = rig.guest(B);
    let csr = b"csr".to_vec();
    other.send(1, Body::Renew(renew(csr))).unwrap();
    let (_, Body::Renewed(renewed)) = other.next().await else {
        panic!("not renewed");
    };
    assert_eq!(renewed.chain.len(), 1);
}
