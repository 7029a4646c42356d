//! Files that are reported on by the filter that the agent keeps.

use literal_filter::{Filter, Literal, Needles, Pack, Report};
use model::{Coverage, Digest, FilterId, Generation, Outcome, Policy, UnscannedReason, Verdict};
use proto::v1;

use crate::appliance::{Greeting, Say, judge, reply};
use crate::scene::{Scene, json};

const LEAST: u64 = 1000;

fn pack(word: &[u8]) -> Vec<u8> {
    let literal = Literal {
        bytes: word.to_vec(),
        nocase: true,
    };
    let filter = Filter::build(&[literal]).unwrap();
    Pack::write(&filter, &Needles::default())
}

/// Offers that pack, and asks for one thing at a time: the offer is known before the second question.
fn greeting(pack: &[u8], report_min_bytes: Option<u64>) -> Greeting {
    Greeting {
        policy: Policy {
            report_min_bytes,
            ..Policy::default()
        },
        in_flight_max: 1,
        filter: Some(v1::FilterOffer {
            filter: Pack::id_of(pack).to_vec(),
            size: pack.len() as u64,
        }),
        ..Greeting::default()
    }
}

fn by_report(check: &v1::Check, content: Option<&[u8]>) -> Say {
    if check.filter.is_empty() || content.is_some() {
        judge(check, content)
    } else {
        Say::NeedReport
    }
}

/// `a` is asked about first.
fn files(scene: &Scene) -> Vec<u8> {
    let mut content = vec![b'.'; 300_000];
    content[131_070..131_077].copy_from_slice(b"LITERAL");
    scene.write("a", b"first");
    scene.write("b", &content);
    scene.write("c", &[b','; LEAST as usize]);
    scene.write("d", &[b','; LEAST as usize - 1]);
    content
}

#[test]
fn files_are_judged_by_reports_and_ranges() {
    let pack = pack(b"literal");
    let (offset, length) = (131_060, 30);
    let greeting = Greeting {
        range: Some(v1::ByteRange { offset, length }),
        ..greeting(&pack, Some(LEAST))
    };
    let scene = Scene::greeted(greeting, by_report);
    std::fs::write(scene.config.filter_file(), &pack).unwrap();
    let content = files(&scene);
    let (ended, out) = scene.scan(&["--json"]);
    assert_eq!((ended.totals.clean, ended.totals.reported), (4, 2), "{out}");
    assert_eq!(json(&out).last().unwrap()["reported"], 2, "{out}");
    let reports = scene.appliance.seen.reports.lock().unwrap();
    let told = Report::from_bytes(&reports[0].report, 1, 300_000).unwrap();
    assert_eq!(told.iter().next(), Some((0, &[131_070][..], false)));
    assert_eq!(reports[0].filter, Pack::id_of(&pack));
    assert_eq!(reports[0].head, &content[..512]);
    assert!(reports.len() == 2 && reports[1].report.is_empty());
    let ranges = scene.appliance.seen.ranges.lock().unwrap();
    assert_eq!(*ranges, [(offset, content[131_060..131_090].to_vec())]);
}

#[test]
fn another_filter_or_none_or_policy_makes_them_travel_whole() {
    let (kept, offered) = (pack(b"literal"), pack(b"another"));
    for (offered, on_disk, least) in [
        (&offered, Some(&kept[..]), Some(LEAST)),
        (&kept, None, Some(LEAST)),
        (&kept, Some(&kept[..kept.len() - 1]), Some(LEAST)),
        (&kept, Some(&kept[..]), None),
    ] {
        let scene = Scene::greeted(greeting(offered, least), by_report);
        let file = scene.config.filter_file();
        if let Some(bytes) = on_disk {
            std::fs::write(&file, bytes).unwrap();
        }
        files(&scene);
        let (ended, out) = scene.scan(&[]);
        assert_eq!((ended.totals.clean, ended.totals.reported), (4, 0), "{out}");
        assert!(scene.appliance.seen.reports.lock().unwrap().is_empty());
        let left = std::fs::read(&file).ok();
        assert_eq!(left.as_deref(), on_disk, "the agent's to change, not ours");
    }
}

#[test]
fn what_is_judged_in_part_says_so() {
    let scene = Scene::new(|check, _| {
        let verdict = Verdict {
            outcome: Outcome::unscanned(UnscannedReason::EngineLimit),
            coverage: Coverage {
                bytes_judged: 3,
                filter: (check.size == 5).then_some(FilterId([0xab; 16])),
                ..Coverage::none(check.size)
            },
            generation: Generation([1; 16]),
            digest: Digest::from_slice(&check.blake3),
            sha256: None,
        };
        let mut reply = reply(check, Outcome::Clean);
        reply.verdict = Some((&verdict).into());
        Say::Reply(reply)
    });
    scene.write("a", b"first");
    scene.write("b", b"second");
    scene.write("c", b"all");
    let (_, out) = scene.scan(&["--json"]);
    let lines = json(&out);
    let line = |name: &str| {
        let ends = |it: &&serde_json::Value| it["path"].as_str().is_some_and(|p| p.ends_with(name));
        lines.iter().find(ends).unwrap_or_else(|| panic!("{out}"))
    };
    let expected = serde_json::json!({
        "bytes_judged": 3, "bytes_total": 5, "filter": "ab".repeat(16),
    });
    assert_eq!(line("/a")["coverage"], expected);
    let expected = serde_json::json!({ "bytes_judged": 3, "bytes_total": 6 });
    assert_eq!(line("/b")["coverage"], expected);
    assert!(line("/c")["coverage"].is_null());
}
