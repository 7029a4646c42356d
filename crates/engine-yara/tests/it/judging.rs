//! What matches, and what does not.

use engine::host::{Engine, Job};
use model::UnscannedReason;

use crate::samples::{eicar, gtube, planted};
use crate::{SHORT, folder, job, named, names, own_rules, scan, spec, start};

#[tokio::test]
async fn the_eicar_file_and_only_that() {
    let engine = start(&own_rules()).await;
    for tail in [&b""[..], b"\n", b"\r\n", b" \t\r\n\x1a", &[b' '; 60]] {
        let file = [&eicar(), tail].concat();
        assert_eq!(names(&scan(&engine, &file).await), ["EICAR_Test_File"]);
    }
    let text = [b"The test file is ", &eicar()[..]].concat();
    let long = [&eicar()[..], &[b' '; 61]].concat();
    let more = [&eicar()[..], b"\nmore"].concat();
    for file in [&text[..], &long, &more, &eicar()[..67], b""] {
        assert!(names(&scan(&engine, file).await).is_empty());
    }
}

#[tokio::test]
async fn the_other_test_strings() {
    let engine = start(&own_rules()).await;
    let mail = [b"Subject: x\r\n\r\n", &gtube()[..], b"\r\n"].concat();
    assert_eq!(names(&scan(&engine, &mail).await), ["GTUBE_Test_Mail"]);
    assert_eq!(names(&scan(&engine, &gtube()).await), ["GTUBE_Test_Mail"]);
    let mention = [b"see ", &gtube()[..]].concat();
    assert!(names(&scan(&engine, &mention).await).is_empty());
    let mut file = vec![b'x'; 100_000];
    file.extend(planted());
    file.push(b'x');
    assert_eq!(names(&scan(&engine, &file).await), ["Lazaret_Test_File"]);
}

#[tokio::test]
async fn the_rules_do_not_find_themselves() {
    let engine = start(&own_rules()).await;
    for entry in std::fs::read_dir(own_rules()).expect("rules") {
        let path = entry.expect("entry").path();
        let bytes = std::fs::read(&path).expect("read");
        assert!(
            names(&scan(&engine, &bytes).await).is_empty(),
            "{}",
            path.display()
        );
    }
}

#[tokio::test]
async fn names_and_owners_reach_the_rules() {
    let rules = folder(
        r#"rule name { condition: filename == "Evil.EXE" }
           rule path { condition: filepath == "/var/log" }
           rule ext { condition: extension == ".exe" }
           rule root { condition: owner == "root" }
           rule user { condition: owner == "1000" }
           rule type { condition: filetype == "EXE" }"#,
    );
    let engine = start(rules.path()).await;
    assert!(engine.info().context_sensitive);
    let mut job = Job {
        context: named(b"/var/log/Evil.EXE", 0),
        ..job(b"MZ")
    };
    let all = engine.scan(job.clone()).await;
    assert_eq!(names(&all), ["name", "path", "ext", "root", "type"]);
    // Nothing stays behind for the next file.
    job.context = named(b"/tmp/\xff\xfe.txt", 1000);
    assert_eq!(names(&engine.scan(job.clone()).await), ["user", "type"]);
    job.context = None;
    assert_eq!(names(&engine.scan(job).await), ["type"]);
}

#[tokio::test]
async fn private_rules_are_silent_and_names_are_told_once() {
    let rules = folder(
        r#"private rule hidden { condition: filesize == 1 }
           rule seen { condition: hidden }"#,
    );
    let again = "rule seen { condition: filesize < 5 }";
    std::fs::write(rules.path().join("other.yara"), again).expect("written");
    std::fs::write(rules.path().join("notes.txt"), "no rules").expect("written");
    let engine = start(rules.path()).await;
    assert_eq!(engine.info().rules, 3);
    assert_eq!(names(&scan(&engine, b"x").await), ["seen"]);
    assert_eq!(names(&scan(&engine, b"xx").await), ["seen"]);
    assert!(names(&scan(&engine, b"xxxxx").await).is_empty());
}

#[tokio::test]
async fn many_detections_are_counted() {
    let source: String = (0..100)
        .map(|n| format!("rule r{n} {{ condition: filesize == 1 }}\n"))
        .collect();
    let engine = start(folder(&source).path()).await;
    let result = scan(&engine, b"x").await;
    assert_eq!((result.detections.len(), result.omitted), (64, 36));
}

#[tokio::test]
async fn a_rule_that_takes_too_long_ends_with_a_timeout() {
    let rules = folder(
        r#"rule slow { condition:
             filesize == 1 and for all i in (0..100000000000) : (uint8(0) == 0x78 or i == 5) }"#,
    );
    let mut spec = spec(rules.path());
    spec.job_timeout = SHORT;
    let engine = Engine::start(spec).await.expect("starts");
    let result = scan(&engine, b"x").await;
    let (reason, detail) = result.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::EngineTimeout, "{detail}");
    assert!(names(&scan(&engine, b"yy").await).is_empty());
}

#[tokio::test]
async fn matches_beyond_the_limit_are_unscanned_and_not_clean() {
    let rules = folder(
        r#"rule tail { strings: $a = "EVIL" condition: $a in (filesize-100..filesize) }
           private rule part { strings: $b = "PART" private condition: $b at filesize-4 }
           rule whole { condition: part }"#,
    );
    let engine = start(rules.path()).await;
    let few = b"EVIL".repeat(999_999);
    assert_eq!(names(&scan(&engine, &few).await), ["tail"]);
    assert!(names(&scan(&engine, &[&few[..], &[b'x'; 200]].concat()).await).is_empty());
    for (text, detail) in [
        (b"EVIL", "rule tail: $a matches 1000000 times or more"),
        (b"PART", "rule part: $b matches 1000000 times or more"),
    ] {
        let result = scan(&engine, &text.repeat(1_000_100)).await;
        assert!(result.detections.is_empty(), "{result:?}");
        let expected = Some((UnscannedReason::EngineLimit, detail.to_owned()));
        assert_eq!(result.incomplete, expected);
    }
}
