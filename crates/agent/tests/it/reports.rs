//! Content that is reported on by the appliance's filter, so that little or nothing of it travels.

use std::ops::ControlFlow;

use literal_filter::{Pack, Report};
use model::{Digest, Policy};
use pki::LIFETIME;
use proto::v1::{self, TurnKind, UnscannedReason, envelope::Body};

use crate::looks::pack;
use crate::puppet::{BAD, UPDATE};
use crate::rig::{Got, Rig};

const LEAST: u64 = 1000;
const WORD: &[u8] = b"a word that rules look for";

fn policy() -> Policy {
    Policy {
        open_budget: std::time::Duration::from_secs(120),
        on_unscanned: model::Disposition::Deny,
        scan_on_close: false,
        report_min_bytes: Some(LEAST),
        ..Policy::default()
    }
}

fn rig(policy: Policy) -> Rig {
    let configure = |config: &mut agent::AgentConfig| {
        config.limits.filter_fetch_spread_s = 0;
    };
    Rig::with(policy, configure, LIFETIME)
}

/// 300 KB with the word and the needle in it, across pieces of what is read.
fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; 300_000];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[seed]);
    hasher.finalize_xof().fill(&mut bytes);
    bytes[131_060..][..WORD.len()].copy_from_slice(WORD);
    bytes[262_140..][..8].copy_from_slice(b"Nd....le");
    bytes
}

/// What a pack finds in a content, all of it at once.
fn found(pack: &[u8], content: &[u8]) -> Vec<u8> {
    let pack = Pack::read(pack).unwrap();
    let mut report = Report::default();
    let _ = pack.filter().scan(content, &mut |id, at| {
        let _ = report.add(id, at as u64);
        ControlFlow::Continue(())
    });
    let first = pack.filter().len() as u32;
    let _ = pack
        .needles()
        .scan(content, 0, content.len(), &mut |id, at| {
            report.add(first + id, at as u64)
        });
    assert!(report.len() >= 2);
    report.to_bytes().unwrap()
}

/// Offers a pack and waits until content is reported on by it.
#[track_caller]
fn in_force(rig: &Rig, pack: &[u8]) {
    rig.shared().offer_filter(Some(pack));
    wait_for(rig, pack);
}

#[track_caller]
fn wait_for(rig: &Rig, pack: &[u8]) {
    let id = model::FilterId(Pack::id_of(pack)).to_string();
    rig.wait_for("the filter", |status| {
        let reports = &status["reports"];
        reports["filter"] == id.as_str() && reports["in_force"] == true
    });
}

#[track_caller]
fn reads(rig: &Rig, name: &str, content: &[u8]) {
    assert_eq!(rig.read(name), Got::Content(content.to_vec()));
}

#[test]
fn content_is_judged_by_its_report_and_ranges() {
    let rig = rig(policy());
    let (pack, content) = (pack(1, &[WORD]), content(1));
    rig.put("before", &[b'.'; 5000]);
    reads(&rig, "before", &[b'.'; 5000]);
    in_force(&rig, &pack);
    let range = |offset, length| v1::ByteRange { offset, length };
    let asks = vec![range(100, 10), range(65_000, 1000), range(299_990, 10)];
    rig.shared().book().looks.asks.clone_from(&asks);
    rig.put("file", &content);
    reads(&rig, "file", &content);
    reads(&rig, "file", &content);
    {
        let shared = rig.shared();
        let book = shared.book();
        assert_eq!(book.checks.len(), 2, "a verdict by report is remembered");
        assert!(book.checks[0].content.is_some() && book.checks[0].filter.is_empty());
        let (check, report) = &book.looks.reports[0];
        assert_eq!(check.report.as_ref(), Some(report), "it came along");
        assert_eq!(check.filter, Pack::id_of(&pack));
        assert_eq!(report.filter, Pack::id_of(&pack));
        assert_eq!(report.head, &content[..512]);
        assert_eq!(report.report, found(&pack, &content));
        let sent = |ask: &v1::ByteRange| {
            let from = ask.offset as usize;
            (ask.offset, content[from..][..ask.length as usize].to_vec())
        };
        let expected: Vec<_> = asks.iter().map(sent).collect();
        assert_eq!(book.looks.ranges, expected);
        assert!(book.uploads.is_empty());
    }
    // Below the least size nothing changes.
    rig.put("small", &[b'.'; LEAST as usize - 1]);
    reads(&rig, "small", &[b'.'; LEAST as usize - 1]);
    // From there on nothing rides along.
    rig.put("medium", &[b','; LEAST as usize]);
    reads(&rig, "medium", &[b','; LEAST as usize]);
    let shared = rig.shared();
    let book = shared.book();
    let [.., small, medium] = &book.checks[..] else {
        panic!("{} checks", book.checks.len());
    };
    assert!(small.content.is_some() && small.filter.is_empty());
    assert!(medium.content.is_none() && medium.filter == Pack::id_of(&pack));
    let status = rig.status();
    assert_eq!(status["reports"]["sent"], 2);
    assert_eq!(status["reports"]["range_bytes_sent"], 10 + 1000 + 10 + 10);
}

#[test]
fn a_filter_is_fetched_in_its_turn_and_nobody_waits_for_that() {
    let rig = rig(policy());
    let (pack, content) = (pack(1, &[WORD]), content(1));
    let shared = rig.shared();
    shared.book().busy = true;
    shared.offer_filter(Some(&pack));
    shared.wait("asked again under the same turn", |book| {
        let is_update = |ask: &&v1::AskTurn| ask.kind() == TurnKind::ContentUpdate;
        let asked: Vec<u64> = book
            .turns
            .iter()
            .filter(is_update)
            .map(|ask| ask.turn_id)
            .collect();
        asked.len() >= 3 && asked[0] == 0 && asked[1..].iter().all(|turn| *turn == UPDATE)
    });
    rig.put("file", &content);
    reads(&rig, "file", &content);
    {
        let book = shared.book();
        assert_eq!(book.uploads.len(), 1, "judged whole meanwhile");
        assert!(book.looks.fetches.is_empty());
    }
    shared.book().busy = false;
    wait_for(&rig, &pack);
    shared.wait("the turn given back", |book| {
        book.turns_over.contains(&UPDATE)
    });
}

#[test]
fn of_another_filter_only_what_changed_is_fetched() {
    let mut rig = rig(policy());
    let (old, new) = (pack(1, &[WORD]), pack(2, &[b"another word", WORD]));
    in_force(&rig, &old);
    let pieces = rig.shared().book().looks.fetches.len();
    assert!(pieces > 10, "{pieces} pieces");
    in_force(&rig, &new);
    {
        let shared = rig.shared();
        let book = shared.book();
        let of_new = &book.looks.fetches[pieces..];
        assert_eq!(of_new.len(), 1, "a small change is one piece");
        assert_eq!(of_new[0].base, Pack::id_of(&old));
    }
    let bytes = content(2);
    rig.put("file", &bytes);
    reads(&rig, "file", &bytes);
    assert_eq!(
        rig.shared().book().looks.reports[0].1.report,
        found(&new, &bytes)
    );
    // It is kept: another start fetches nothing.
    let kept = rig.config.filter_file();
    assert_eq!(std::fs::read(&kept).unwrap(), new);
    let mode = std::os::unix::fs::PermissionsExt::mode(&kept.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    rig.stop();
    rig.start();
    wait_for(&rig, &new);
    assert_eq!(rig.shared().book().looks.fetches.len(), pieces + 1);
    // But for one that was damaged meanwhile, which is fetched whole.
    rig.stop();
    std::fs::write(&kept, &new[..new.len() - 1]).unwrap();
    rig.start();
    wait_for(&rig, &new);
    let fetches = rig.shared().book().looks.fetches.clone();
    assert!(
        fetches[pieces + 1..]
            .iter()
            .all(|fetch| fetch.base.is_empty())
    );
    assert_eq!(rig.status()["reports"]["refused"], 1);
    assert_eq!(std::fs::read(&kept).unwrap(), new);
    // When the appliance has none any more, it goes.
    rig.shared().offer_filter(None);
    rig.wait_for("its end", |status| status["reports"]["filter"].is_null());
    assert!(testbed::wait_until(crate::puppet::PATIENCE, || !kept.exists()));
}

#[test]
fn what_is_not_what_was_offered_changes_nothing() {
    let rig = rig(policy());
    let (old, bad, good) = (pack(1, &[WORD]), pack(2, &[WORD]), pack(3, &[WORD]));
    in_force(&rig, &old);
    rig.shared().book().looks.tampers = true;
    rig.shared().offer_filter(Some(&bad));
    rig.wait_for("the refusal", |status| status["reports"]["refused"] == 2);
    let status = rig.status();
    let id = model::FilterId(Pack::id_of(&old)).to_string();
    assert_eq!(status["reports"]["filter"], id.as_str(), "still in hand");
    assert_eq!(status["reports"]["in_force"], false);
    let bytes = content(3);
    rig.put("file", &bytes);
    reads(&rig, "file", &bytes);
    assert!(rig.shared().book().looks.reports.is_empty());
    assert_eq!(rig.shared().book().uploads, [bytes]);
    rig.shared().offer_filter(Some(&bad));
    rig.shared().book().looks.tampers = false;
    in_force(&rig, &good);
    let shared = rig.shared();
    let book = shared.book();
    assert_eq!(book.looks.begun(&bad), 2, "as a change, and once whole");
    // Bytes that are well sent and no filter.
    drop(book);
    rig.shared().offer_filter(Some(b"no filter at all"));
    rig.wait_for("the refusal", |status| status["reports"]["refused"] == 4);
}

#[test]
fn content_that_changes_is_hashed_and_asked_about_anew() {
    let rig = rig(policy());
    let pack = pack(1, &[WORD]);
    in_force(&rig, &pack);
    let (first, second, third) = (content(1), content(2), content(3));
    let path = rig.put("file", &first);
    {
        let shared = rig.shared();
        let mut book = shared.book();
        book.looks.insists = true;
        book.looks.before_report = Some((path.clone(), second.clone()));
        book.looks.before_ranges = Some((path, third.clone()));
        let (offset, length) = (200_000, 10);
        book.looks.asks = vec![v1::ByteRange { offset, length }];
    }
    reads(&rig, "file", &third);
    let shared = rig.shared();
    let book = shared.book();
    let asked: Vec<_> = book.checks.iter().map(|it| it.blake3.clone()).collect();
    let all = [&first, &second, &third];
    assert_eq!(asked, all.map(|it| Digest::of(it).0.to_vec()));
    assert_eq!(book.looks.failed, [UnscannedReason::Changed; 2]);
    assert_eq!(
        book.looks.ranges,
        [(200_000, third[200_000..][..10].to_vec())]
    );
    let told: Vec<_> = book
        .looks
        .reports
        .iter()
        .map(|it| it.1.report.to_vec())
        .collect();
    assert_eq!(told, [found(&pack, &second), found(&pack, &third)]);
}

#[test]
fn a_report_comes_along_where_it_costs_no_time_and_is_likely_to_be_wanted() {
    let rig = rig(policy());
    let pack = pack(1, &[WORD]);
    in_force(&rig, &pack);
    let large = [content(1), vec![b'.'; 1 << 20]].concat();
    rig.put("large", &large);
    reads(&rig, "large", &large);
    let came = |n: usize| {
        let shared = rig.shared();
        let book = shared.book();
        let (check, report) = &book.looks.reports[n];
        assert_eq!(check.filter, Pack::id_of(&pack));
        assert_eq!(report.filter, Pack::id_of(&pack));
        check.report.is_some()
    };
    assert!(!came(0), "asked for: looking through it takes long");
    rig.put("unknown", &content(2));
    reads(&rig, "unknown", &content(2));
    assert!(came(1));
    // An appliance that knew all of late.
    rig.shared().book().knows = true;
    for seed in 0..100 {
        rig.put("known", &[&content(3)[..], &[seed]].concat());
        assert!(matches!(rig.read("known"), Got::Content(_)));
    }
    let count = rig.shared().book().looks.reports.len();
    rig.put("known", &content(4));
    reads(&rig, "known", &content(4));
    assert!(!came(count), "asked for: nobody would have wanted it");
}

#[test]
fn more_than_a_report_can_tell_is_sent_whole() {
    let rig = rig(policy());
    let numbers: Vec<_> = (0..400).map(|n| format!("number {n:04};")).collect();
    let words: Vec<_> = numbers.iter().map(String::as_bytes).collect();
    in_force(&rig, &pack(1, &words));
    let text = words.concat().repeat(60);
    rig.put("file", &text);
    reads(&rig, "file", &text);
    let shared = rig.shared();
    let book = shared.book();
    assert_eq!(book.looks.reports[0].1, v1::FilterReport::default());
    assert_eq!(book.uploads, [text]);
    assert_eq!(rig.status()["reports"]["declined"], 1);
}

#[test]
fn policy_decides_whether_there_are_reports() {
    let off = Policy {
        report_min_bytes: None,
        ..policy()
    };
    let rig = rig(off.clone());
    let pack = pack(1, &[WORD]);
    rig.shared().offer_filter(Some(&pack));
    rig.put("file", &content(1));
    reads(&rig, "file", &content(1));
    rig.put("again", &content(2));
    assert!(rig.shared().book().looks.fetches.is_empty());
    assert!(rig.shared().book().checks[0].filter.is_empty());
    rig.shared().say(&Body::Policy((&policy()).into()));
    wait_for(&rig, &pack);
    reads(&rig, "again", &content(2));
    assert_eq!(rig.shared().book().looks.reports.len(), 1);
    let kept = rig.config.filter_file();
    assert!(kept.exists());
    rig.shared().say(&Body::Policy((&off).into()));
    rig.wait_for("its end", |status| status["reports"]["filter"].is_null());
    assert!(testbed::wait_until(crate::puppet::PATIENCE, || !kept.exists()));
    rig.put("third", &content(3));
    reads(&rig, "third", &content(3));
    assert_eq!(rig.shared().book().uploads.len(), 2);
}

#[test]
fn nothing_is_removed_for_a_verdict_on_content_that_never_came_whole() {
    let rig = rig(policy());
    {
        let shared = rig.shared();
        let mut book = shared.book();
        book.removes = true;
        book.unproved = true;
    }
    let path = rig.put("bad", BAD);
    assert_eq!(rig.read("bad"), Got::Denied);
    rig.shared()
        .wait("the refusal", |book| !book.results.is_empty());
    let status = rig.shared().book().results[0].status();
    assert_eq!(status, v1::OrderStatus::Failed);
    assert!(path.exists());
    assert_eq!(rig.read("bad"), Got::Denied);
    rig.shared().book().unproved = false;
    assert_eq!(rig.read("bad"), Got::Denied);
    rig.shared()
        .wait("the removal", |book| book.results.len() == 3);
    assert!(!path.exists());
}
