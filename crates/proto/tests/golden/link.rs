//! Values of `link.proto` and `enrol.proto`.

use proto::v1;
use proto::v1::envelope::Body;
use proto::v1::order::Action;
use proto::v1::verdict::Outcome;

use crate::Golden;
use crate::types::{detection, machine_facts, policy, range, verdict};

fn hello() -> v1::Hello {
    v1::Hello {
        version_min: 1,
        version_max: 2,
        agent_version: "0.1.0".into(),
        role: v1::SessionRole::Scan as i32,
        hostname: "web-1".into(),
        boot_id: vec![0x55; 16],
        placement_epoch: 5,
        machine: Some(machine_facts()),
        channel: vec![0x77; 16],
    }
}

fn welcome() -> v1::Welcome {
    v1::Welcome {
        version: 1,
        appliance: "rack-7".into(),
        generation: vec![0x11; 16],
        policy: Some(policy()),
        in_flight_max: 256,
    }
}

fn refused() -> v1::Refused {
    v1::Refused {
        reason: "this guest has been revoked".into(),
        retry_after_ms: 60_000,
    }
}

pub(crate) fn context() -> v1::FileContext {
    v1::FileContext {
        path: b"/tmp/\xff\n".to_vec(),
        uid: 1000,
        mode: 0o100_755,
        pid: 4242,
    }
}

fn check() -> v1::Check {
    v1::Check {
        blake3: vec![0x22; 32],
        size: 5,
        class: v1::AccessClass::Exec as i32,
        deadline_ms: 4000,
        context: Some(context()),
        content: Some(b"hello"[..].into()),
        content_compressed: true,
        filter: vec![0x66; 16],
        report: Some(filter_report()),
    }
}

fn need() -> v1::Need {
    v1::Need {
        ranges: vec![range()],
        credit_bytes: 1 << 20,
        manifest: true,
        report: true,
    }
}

fn filter_report() -> v1::FilterReport {
    v1::FilterReport {
        filter: vec![0x66; 16],
        head: b"MZ".to_vec(),
        report: vec![5, 2, 9].into(),
    }
}

fn filter_offer() -> v1::FilterOffer {
    v1::FilterOffer {
        filter: vec![0x66; 16],
        size: 900_000,
    }
}

fn fetch_filter() -> v1::FetchFilter {
    v1::FetchFilter {
        filter: vec![0x66; 16],
        offset: 262_144,
        base: vec![0x77; 16],
    }
}

fn filter_part() -> v1::FilterPart {
    v1::FilterPart {
        filter: vec![0x66; 16],
        offset: 262_144,
        bytes: b"piece"[..].into(),
        base: vec![0x77; 16],
        total: 300_000,
    }
}

fn data() -> v1::Data {
    v1::Data {
        offset: 65_536,
        bytes: b"bytes"[..].into(),
        plain_bytes: 9,
    }
}

fn manifest() -> v1::Manifest {
    v1::Manifest {
        kind: 2,
        chunks: b"names".to_vec(),
    }
}

fn data_end() -> v1::DataEnd {
    v1::DataEnd {
        failed: v1::UnscannedReason::Changed as i32,
    }
}

fn check_reply() -> v1::CheckReply {
    v1::CheckReply {
        verdict: Some(verdict(Outcome::Clean(v1::Clean {}))),
        released: true,
        order: Some(order(Action::Delete(delete()))),
        cached: true,
    }
}

fn quarantine() -> v1::QuarantineFile {
    v1::QuarantineFile {
        path: b"/srv/a".to_vec(),
        blake3: vec![0x22; 32],
        detections: vec![detection()],
    }
}

fn delete() -> v1::DeleteFile {
    v1::DeleteFile {
        path: b"/srv/a".to_vec(),
        blake3: vec![0x22; 32],
    }
}

fn restore() -> v1::RestoreItem {
    v1::RestoreItem {
        item_id: vec![0x66; 16],
        path: b"/srv/b".to_vec(),
    }
}

fn discard() -> v1::DiscardItem {
    v1::DiscardItem {
        item_id: vec![0x66; 16],
    }
}

pub(crate) fn order(action: Action) -> v1::Order {
    v1::Order {
        order_id: vec![0x77; 16],
        action: Some(action),
    }
}

fn item() -> v1::QuarantineItem {
    v1::QuarantineItem {
        item_id: vec![0x66; 16],
        path: b"/srv/a".to_vec(),
        blake3: vec![0x22; 32],
        size: 68,
        taken_at_s: 1_800_000_000,
        detections: vec![detection()],
    }
}

pub(crate) fn order_result() -> v1::OrderResult {
    v1::OrderResult {
        order_id: vec![0x77; 16],
        status: v1::OrderStatus::RefusedConflict as i32,
        detail: "the target exists".into(),
        item_id: vec![0x66; 16],
        items: vec![item()],
    }
}

fn ledger_report() -> v1::LedgerReport {
    v1::LedgerReport {
        open_entries: 1,
        entries_total: 3,
        paid_total: 2,
        overflow_total: 9,
    }
}

fn fast_paths() -> v1::FastPaths {
    v1::FastPaths {
        filesystems: 4,
        cache: 3,
        fine_stamps: 2,
        standing: 1,
    }
}

fn alert() -> v1::Alert {
    v1::Alert {
        kind: "late_malicious".into(),
        detail: "Eicar-Signature after 12 s".into(),
        path: b"/srv/a".to_vec(),
    }
}

fn recall() -> v1::Recall {
    v1::Recall {
        digests: vec![vec![0x66; 32], vec![0x77; 32]],
    }
}

fn offers() -> v1::AllowlistOffers {
    v1::AllowlistOffers {
        offers: vec![v1::AllowlistOffer {
            name: "golden".into(),
            serial: 7,
            size: 3_200_224,
            fingerprint: vec![0x99; 32],
        }],
    }
}

fn fetch() -> v1::FetchAllowlist {
    v1::FetchAllowlist {
        fingerprint: vec![0x99; 32],
        offset: 262_144,
    }
}

fn part() -> v1::AllowlistPart {
    v1::AllowlistPart {
        fingerprint: vec![0x99; 32],
        offset: 262_144,
        bytes: b"LZALLOW"[..].into(),
    }
}

fn renewed() -> v1::Renewed {
    v1::Renewed {
        chain: vec![vec![0x30, 0x82]],
        refused: "no".into(),
    }
}

fn recheck() -> v1::Recheck {
    let digests = vec![vec![0x22; 32], vec![0x33; 32]];
    v1::Recheck { digests }
}

fn not_held() -> v1::NotHeld {
    let digests = vec![vec![0x22; 32]];
    v1::NotHeld { digests }
}

fn bodies() -> Vec<(&'static str, Body)> {
    let generation = vec![0x11; 16];
    let reason = String::from("maintenance");
    vec![
        ("Hello", Body::Hello(hello())),
        ("Welcome", Body::Welcome(welcome())),
        ("Refused", Body::Refused(refused())),
        ("Check", Body::Check(check())),
        ("Need", Body::Need(need())),
        ("Data", Body::Data(data())),
        ("DataEnd", Body::DataEnd(data_end())),
        ("Manifest", Body::Manifest(manifest())),
        ("FilterOffer", Body::FilterOffer(filter_offer())),
        ("FetchFilter", Body::FetchFilter(fetch_filter())),
        ("FilterPart", Body::FilterPart(filter_part())),
        ("FilterReport", Body::FilterReport(filter_report())),
        ("Credit", Body::Credit(v1::Credit { bytes: 65_536 })),
        ("CheckReply", Body::CheckReply(check_reply())),
        ("Cancel", Body::Cancel(v1::Cancel {})),
        (
            "ContentChanged",
            Body::ContentChanged(v1::ContentChanged { generation }),
        ),
        ("Policy", Body::Policy(policy())),
        ("Order", Body::Order(order(Action::Delete(delete())))),
        ("OrderResult", Body::OrderResult(order_result())),
        ("LedgerReport", Body::LedgerReport(ledger_report())),
        ("FastPaths", Body::FastPaths(fast_paths())),
        ("Ping", Body::Ping(v1::Ping { nonce: u64::MAX })),
        ("Pong", Body::Pong(v1::Pong { nonce: u64::MAX })),
        ("Goodbye", Body::Goodbye(v1::Goodbye { reason })),
        ("Renew", Body::Renew(renew())),
        ("Renewed", Body::Renewed(renewed())),
        ("Alert", Body::Alert(alert())),
        ("Recall", Body::Recall(recall())),
        ("AllowlistOffers", Body::AllowlistOffers(offers())),
        ("FetchAllowlist", Body::FetchAllowlist(fetch())),
        ("AllowlistPart", Body::AllowlistPart(part())),
        ("Recheck", Body::Recheck(recheck())),
        ("NotHeld", Body::NotHeld(not_held())),
        ("Rekey", Body::Rekey(rekey())),
        ("Attached", Body::Attached(attached())),
    ]
}

fn renew() -> v1::Renew {
    v1::Renew {
        csr: vec![0x30],
        rekey: true,
        machine: Some(machine_facts()),
    }
}

fn attached() -> v1::Attached {
    v1::Attached {
        channel: vec![0x44; 16],
    }
}

fn rekey() -> v1::Rekey {
    v1::Rekey {
        reason: "a copy".into(),
    }
}

fn enrolment(golden: &mut Golden) {
    golden.add(
        "EnrolRequest",
        &v1::EnrolRequest {
            token: "ab".repeat(32),
            csr: vec![0x30, 0x82],
            hostname: "web-1".into(),
            machine: Some(machine_facts()),
            has_tpm: true,
        },
    );
    golden.add(
        "EnrolTpm",
        &v1::EnrolTpm {
            ek_certificate: vec![0x30, 0x04],
            intermediates: vec![0x30, 0x05, 0x30, 0x06],
            key_name: vec![0x0b; 34],
            proof: vec![0x77; 32],
            failed: "it cannot be used".into(),
        },
    );
    golden.add(
        "EnrolReply",
        &v1::EnrolReply {
            chain: vec![vec![0x30, 0x01]],
            trust_anchors: vec![vec![0x30, 0x02], vec![0x30, 0x03]],
            appliances: vec!["10.0.0.1:7400".into()],
            guest_id: vec![0x99; 16],
            refused: "the join token is not valid".into(),
            pending_retry_s: 30,
            ephemeral: true,
            tpm_wanted: true,
            tpm_challenge: vec![0x00, 0x44],
        },
    );
}

/// The messages alone, as they also travel inside others.
fn alone(golden: &mut Golden) {
    let generation = vec![0x11; 16];
    let reason = String::from("maintenance");
    golden.add("Hello", &hello());
    golden.add("Welcome", &welcome());
    golden.add("Refused", &refused());
    golden.add("FileContext", &context());
    golden.add("Check", &check());
    golden.add("Need", &need());
    golden.add("Data", &data());
    golden.add("DataEnd", &data_end());
    golden.add("Manifest", &manifest());
    golden.add("FilterOffer", &filter_offer());
    golden.add("FetchFilter", &fetch_filter());
    golden.add("FilterPart", &filter_part());
    golden.add("FilterReport", &filter_report());
    golden.add("Credit", &v1::Credit { bytes: 65_536 });
    golden.add("CheckReply", &check_reply());
    golden.add("Cancel", &v1::Cancel {});
    golden.add("ContentChanged", &v1::ContentChanged { generation });
    golden.add("QuarantineFile", &quarantine());
    golden.add("DeleteFile", &delete());
    golden.add("RestoreItem", &restore());
    golden.add("DiscardItem", &discard());
    golden.add("ListQuarantine", &v1::ListQuarantine {});
    golden.add("QuarantineItem", &item());
    golden.add("OrderResult", &order_result());
    golden.add("LedgerReport", &ledger_report());
    golden.add("FastPaths", &fast_paths());
    golden.add("Alert", &alert());
    golden.add("Recall", &recall());
    golden.add("AllowlistOffer", &offers().offers[0]);
    golden.add("AllowlistOffers", &offers());
    golden.add("FetchAllowlist", &fetch());
    golden.add("AllowlistPart", &part());
    golden.add("Recheck", &recheck());
    golden.add("NotHeld", &not_held());
    golden.add("Rekey", &rekey());
    golden.add("Attached", &attached());
    golden.add("Ping", &v1::Ping { nonce: u64::MAX });
    golden.add("Pong", &v1::Pong { nonce: u64::MAX });
    golden.add("Goodbye", &v1::Goodbye { reason });
    golden.add("Renew", &renew());
    golden.add("Renewed", &renewed());
}

pub(crate) fn add(golden: &mut Golden) {
    alone(golden);
    enrolment(golden);
    golden.add("Order", &order(Action::Quarantine(quarantine())));
    let mut action = |name: &str, action| golden.add(&format!("Order.{name}"), &order(action));
    action("Quarantine", Action::Quarantine(quarantine()));
    action("Delete", Action::Delete(delete()));
    action("Restore", Action::Restore(restore()));
    action("List", Action::List(v1::ListQuarantine {}));
    action("Discard", Action::Discard(discard()));
    let envelope = |body| v1::Envelope {
        request_id: 12_345,
        body: Some(body),
    };
    golden.add("Envelope", &envelope(Body::Check(check())));
    for (name, body) in bodies() {
        golden.add(&format!("Envelope.{name}"), &envelope(body));
    }
}
