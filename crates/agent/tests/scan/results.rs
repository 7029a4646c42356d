//! What is asked, what is printed, what is done.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::{Digest, Outcome, Policy, UnscannedReason};
use proto::v1::{OrderStatus, SessionRole, TurnKind};
use quarantine::{Limits, Listed, Vault};

use crate::appliance::{Greeting, Say, TURN, judge, malicious, reply};
use crate::scene::{Scene, json};

fn items(scene: &Scene) -> Vec<quarantine::ItemInfo> {
    let vault = Vault::open(&scene.config.quarantine_dir(), Limits::default()).unwrap();
    let intact = |listed| match listed {
        Listed::Item(info) => *info,
        Listed::Damaged { id, why } => panic!("{id}: {why}"),
    };
    vault.list().unwrap().into_iter().map(intact).collect()
}

#[test]
fn clean_files_of_all_sizes() {
    let scene = Scene::new(judge);
    let sizes = [1, 1000, 64 << 10, (64 << 10) + 1, 300_000, 3 << 20];
    for size in sizes {
        scene.write(format!("d/{size}"), &vec![size as u8; size]);
    }
    scene.write("empty", b"");
    let (ended, out) = scene.scan(&[]);
    assert_eq!(
        (ended.exit_code(), ended.halted.as_ref()),
        (0, None),
        "{out}"
    );
    // Nothing is asked about no bytes.
    assert_eq!(ended.totals.files, 7);
    assert_eq!(ended.totals.clean, 7);
    assert_eq!(ended.totals.bytes, sizes.iter().sum::<usize>() as u64);
    let mut asked = scene.asked();
    asked.sort();
    assert_eq!(asked.len(), sizes.len(), "{asked:?}");
    assert!(out.contains("Infected files: 0"), "{out}");
    let hellos = scene.appliance.seen.hellos.lock().unwrap();
    assert_eq!(hellos[0].role(), SessionRole::Scan);
    assert!(scene.journals().is_empty());
}

#[test]
fn a_scan_that_has_time_works_in_its_turn() {
    let scene = Scene::new(judge);
    scene.write("f", b"good");
    let (ended, out) = scene.scan(&["--within", "1h"]);
    assert_eq!(ended.exit_code(), 0, "{out}");
    let seen = &scene.appliance.seen;
    let turns = seen.turns.lock().unwrap().clone();
    let ids: Vec<u64> = turns.iter().map(|ask| ask.turn_id).collect();
    assert_eq!(ids, [0, TURN, TURN]);
    assert!(
        turns.iter().all(|ask| ask.kind() == TurnKind::Scan),
        "{turns:?}"
    );
    assert_eq!((turns[0].takes_s, turns[0].within_s), (225, 450));
    let given_back = || *seen.turns_over.lock().unwrap() == [TURN];
    let until = Instant::now() + Duration::from_secs(60);
    while !given_back() {
        assert!(Instant::now() < until, "the turn was not given back");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Somebody waits for it.
    scene.scan(&[]);
    assert_eq!(seen.turns.lock().unwrap().len(), 3);
}

#[test]
fn found_and_quarantined() {
    let scene = Scene::new(judge);
    let small = scene.write("a/small", b"an EVIL file");
    let large = scene.write("b", &[&[0; 200_000], b"EVIL".as_slice()].concat());
    scene.write("c", b"good");
    let (ended, out) = scene.scan(&[]);
    assert_eq!(ended.exit_code(), 1);
    assert_eq!((ended.totals.found, ended.totals.removed), (2, 2), "{out}");
    let line = format!(
        "{}: Test-Evil in in\\xffside FOUND - quarantine done, item ",
        small.display()
    );
    assert!(out.contains(&line), "{out}");
    assert!(!small.exists() && !large.exists());
    let mut paths: Vec<_> = items(&scene).into_iter().map(|item| item.path).collect();
    paths.sort();
    assert_eq!(paths, [small, large]);
    let item = &items(&scene)[0];
    assert_eq!(item.detections[0].name, "Test-Evil");
    let results = scene.appliance.results(2);
    assert_eq!(results.len(), 2);
    assert!(
        results
            .iter()
            .all(|r| r.status() == OrderStatus::Done && r.item_id.len() == 16)
    );
}

#[test]
fn reported_only() {
    let scene = Scene::new(judge);
    let file = scene.write("file", b"EVIL");
    let (ended, out) = scene.scan(&["--no-removal"]);
    assert_eq!(ended.exit_code(), 1);
    assert!(file.exists() && out.contains("FOUND"), "{out}");
    assert_eq!(scene.appliance.results(1)[0].status(), OrderStatus::Failed);
    assert!(!scene.config.quarantine_dir().exists());
}

#[test]
fn released_content_is_not_found() {
    let scene = Scene::new(|check, _| {
        let mut reply = malicious(check);
        reply.released = true;
        Say::Reply(reply)
    });
    let file = scene.write("file", b"EVIL");
    let (ended, out) = scene.scan(&[]);
    assert_eq!((ended.exit_code(), ended.totals.released), (0, 1));
    assert!(out.contains("RELEASED") && file.exists());
}

#[test]
fn an_order_about_another_file_is_refused() {
    let scene = Scene::new(|check, _| {
        let mut reply = malicious(check);
        let other = Digest::of(b"other");
        if let Some(proto::v1::order::Action::Quarantine(order)) =
            reply.order.as_mut().and_then(|order| order.action.as_mut())
        {
            if check.size == 4 {
                order.blake3 = other.0.to_vec();
            } else {
                order.path.extend(b"-other");
            }
        }
        Say::Reply(reply)
    });
    let files = [scene.write("a", b"EVIL"), scene.write("b", b"EVIL too")];
    scene.write("b-other", b"EVIL too");
    let (ended, _) = scene.scan(&[]);
    assert_eq!((ended.totals.removed, ended.totals.removals_failed), (0, 3));
    assert!(files.iter().all(|file| file.exists()));
    let failed = |r: &proto::v1::OrderResult| r.status() == OrderStatus::Failed;
    assert!(scene.appliance.results(3).iter().all(failed));
}

#[test]
fn json_lines() {
    let scene = Scene::new(|check, content| match check.size {
        1 => Say::Reply(reply(check, Outcome::unscanned(UnscannedReason::Encrypted))),
        2 => Say::Reply(reply(
            check,
            Outcome::Error {
                message: "broken".into(),
            },
        )),
        // No verdict at all is an error, never clean.
        3 => Say::Reply(proto::v1::CheckReply::default()),
        // So is a verdict on something else.
        5 => {
            let mut reply = reply(check, Outcome::Clean);
            reply.verdict.as_mut().unwrap().blake3 = vec![0; 32];
            Say::Reply(reply)
        }
        _ => judge(check, content),
    });
    scene.write(OsStr::from_bytes(b"not\xffutf8\\"), b"EVIL");
    scene.write("new\nline", b"1");
    scene.write("error", b"22");
    scene.write("nothing", b"333");
    scene.write("other", b"55555");
    scene.write("clean", b"good file");
    let (ended, out) = scene.scan(&["--json"]);
    let lines = json(&out);
    let (summary, lines) = lines.split_last().unwrap();
    let of = |kind: &str| {
        lines
            .iter()
            .filter(|l| l["type"] == kind)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines.len(), 5);
    let found = &of("found")[0];
    let escaped = found["path_escaped"].as_str().unwrap();
    assert!(escaped.ends_with(r"/not\xffutf8\\"), "{escaped}");
    assert!(found.get("path").is_none());
    assert_eq!(
        found["detections"][0]["inside"][0]["path_escaped"],
        r"in\xffside"
    );
    assert_eq!(found["removal"]["status"], "done");
    assert_eq!(found["blake3"], Digest::of(b"EVIL").to_string());
    let unscanned = &of("unscanned")[0];
    assert!(unscanned["path"].as_str().unwrap().ends_with("/new\nline"));
    assert_eq!(unscanned["reason"], "encrypted");
    assert_eq!(of("error").len(), 3);
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["complete"], true);
    for (key, value) in [
        ("files", 6),
        ("clean", 1),
        ("found", 1),
        ("unscanned", 1),
        ("errors", 3),
    ] {
        assert_eq!(summary[key], value, "{key}");
    }
    assert_eq!(ended.exit_code(), 1);
}

#[test]
fn one_line_for_each_file_whatever_its_name() {
    let scene = Scene::new(judge);
    scene.write("a\nb: OK\n\x1b[2J", b"EVIL");
    let (_, out) = scene.scan(&["--no-removal"]);
    let line = out.lines().next().unwrap();
    assert!(line.contains(r"a\nb: OK\n\u{1b}[2J: Test-Evil"), "{line}");
}

#[test]
fn exit_code_of_unscanned_files() {
    let policy = Policy {
        size_max_bytes: 1000,
        ..Policy::default()
    };
    let greeting = Greeting {
        policy,
        ..Greeting::default()
    };
    let scene = Scene::greeted(greeting, judge);
    scene.write("large", &[0; 1001]);
    scene.write("small", &[0; 1000]);
    let (ended, out) = scene.scan(&[]);
    assert_eq!((ended.exit_code(), ended.totals.unscanned), (2, 1));
    assert!(out.contains("large: too_large UNSCANNED"), "{out}");
    assert_eq!(scene.asked(), ["small"]);
}

#[test]
fn what_is_left_out() {
    let scene = Scene::new(judge);
    scene.write("keep/file", b"good");
    scene.write("keep/file.log", b"good");
    scene.write("tmp/file", b"good");
    scene.write("large", &[0; 5000]);
    symlink("/etc/passwd", scene.files().join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        scene.files().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let options = [
        "--exclude",
        "*.log",
        "--exclude",
        "**/tmp",
        "--max-size",
        "4K",
    ];
    let (ended, _) = scene.scan(&options);
    assert_eq!(scene.asked(), ["keep/file"]);
    assert_eq!((ended.exit_code(), ended.totals.skipped), (0, 5));
}

#[test]
fn the_quarantine_is_not_scanned() {
    let scene = Scene::new(judge);
    scene.write("file", b"EVIL");
    scene.scan(&[]);
    let state = scene.config.state_dir.to_str().unwrap();
    let (ended, out) = scene.scan_paths(&[state]);
    ended.unwrap();
    assert!(
        !scene
            .appliance
            .asked()
            .iter()
            .any(|path| path.contains("quarantine")),
        "{out}"
    );
}

#[test]
fn a_path_given_through_a_link_is_scanned_and_cleaned() {
    let scene = Scene::new(judge);
    let file = scene.write("real/file", b"EVIL");
    let link = scene.files().join("link");
    symlink(scene.files().join("real"), &link).unwrap();
    let (ended, _) = scene.scan_paths(&[link.to_str().unwrap()]);
    assert_eq!(ended.unwrap().totals.removed, 1);
    assert!(!file.exists());
}

#[test]
fn a_single_file_and_one_that_is_missing() {
    let scene = Scene::new(judge);
    let file = scene.write("file", b"good");
    let missing = scene.files().join("missing");
    let (ended, out) = scene.scan_paths(&[file.to_str().unwrap(), missing.to_str().unwrap()]);
    let ended = ended.unwrap();
    assert_eq!(
        (ended.exit_code(), ended.totals.clean, ended.totals.errors),
        (2, 1, 1)
    );
    assert!(
        out.contains("missing: cannot be read: No such file"),
        "{out}"
    );
}

#[test]
fn no_more_at_once_than_the_appliance_allows() {
    let greeting = Greeting {
        in_flight_max: 2,
        ..Greeting::default()
    };
    let scene = Scene::greeted(greeting, judge);
    for number in 0..200 {
        // Too large to ride along, so that checks stay open for a while.
        scene.write(number.to_string(), &[number as u8; 70_000]);
    }
    let (ended, _) = scene.scan(&[]);
    assert_eq!((ended.exit_code(), ended.totals.clean), (0, 200));
    let most = scene.appliance.seen.open_most.load(Ordering::SeqCst);
    assert!((1..=2).contains(&most), "{most}");
}

#[test]
fn files_are_not_touched() {
    let scene = Scene::new(judge);
    let file = scene.write("file", b"good");
    let old = std::time::SystemTime::UNIX_EPOCH;
    let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
    fs::File::open(&file).unwrap().set_times(times).unwrap();
    scene.scan(&[]);
    assert_eq!(fs::metadata(&file).unwrap().accessed().unwrap(), old);
}
