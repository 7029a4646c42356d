//! Members of containers, and why they could not all be seen.

use engine::host::{Engine, Job};
use model::UnscannedReason;
use proto::v1;

use crate::samples::{eicar, planted, tar_gz, zip};
use crate::{folder, job, named, names, own_rules, scan, start, unpack_limits};

#[tokio::test]
async fn a_detection_inside_carries_its_path() {
    let engine = start(&own_rules()).await;
    let inner = zip("eicar.com", &eicar(), 0);
    let file = tar_gz(&[("a.txt", b"harmless"), ("inner.zip", &inner)]);
    let job = Job {
        context: named(b"/home/x/mail.tar.gz", 1000),
        ..job(&file)
    };
    let result = engine.scan(job).await;
    assert_eq!(names(&result), ["EICAR_Test_File"]);
    let path = &result.detections[0].path_inside;
    assert_eq!(*path, [&b"mail.tar"[..], b"inner.zip", b"eicar.com"]);
    // The tar, two files in it, and the file in the zip.
    assert_eq!(result.members_judged, 4);
    assert!(result.member_bytes_judged > inner.len() as u64);
}

#[tokio::test]
async fn nothing_is_unpacked_unless_wanted() {
    let engine = start(&own_rules()).await;
    let file = zip("eicar.com", &eicar(), 0);
    let wanted = v1::UnpackLimits {
        depth_max: 0,
        ..unpack_limits()
    };
    for unpack in [None, Some(wanted)] {
        let result = engine
            .scan(Job {
                unpack,
                ..job(&file)
            })
            .await;
        assert!(names(&result).is_empty());
        assert_eq!(result.members_judged, 0);
    }
}

async fn assert_incomplete(
    engine: &Engine,
    file: &[u8],
    change: impl Fn(&mut v1::UnpackLimits),
    reason: UnscannedReason,
) {
    let mut limits = unpack_limits();
    change(&mut limits);
    let unpack = Some(limits);
    let result = engine
        .scan(Job {
            unpack,
            ..job(file)
        })
        .await;
    let (found, detail) = result.incomplete.expect("incomplete");
    assert_eq!(found, reason, "{detail}");
    assert!(!detail.is_empty());
}

#[tokio::test]
async fn each_limit_has_its_reason() {
    let engine = start(&own_rules()).await;
    let one = zip("a", b"aaaaaaaaaa", 0);
    let two = zip("b", &one, 0);
    let zeros = tar_gz(&[("zeros", &vec![0; 4 << 20]), ("more", b"more")]);
    let check = |file: Vec<u8>, change: fn(&mut v1::UnpackLimits), reason| {
        let engine = engine.clone();
        async move { assert_incomplete(&engine, &file, change, reason).await }
    };
    check(
        two.clone(),
        |l| l.depth_max = 1,
        UnscannedReason::UnpackDepth,
    )
    .await;
    check(
        two.clone(),
        |l| l.entries_max = 1,
        UnscannedReason::UnpackEntries,
    )
    .await;
    check(
        one,
        |l| l.entry_bytes_max = 9,
        UnscannedReason::UnpackEntryBytes,
    )
    .await;
    check(
        two,
        |l| l.total_bytes_max = 20,
        UnscannedReason::UnpackTotalBytes,
    )
    .await;
    check(
        zeros.clone(),
        |l| l.ratio_max = 10,
        UnscannedReason::UnpackRatio,
    )
    .await;
    let damaged = zeros[..zeros.len() / 2].to_vec();
    check(damaged, |_| (), UnscannedReason::UnpackMalformed).await;
    let locked = zip("secret", b"whatever it was", 1);
    check(locked, |_| (), UnscannedReason::Encrypted).await;
}

#[tokio::test]
async fn what_was_found_before_a_limit_counts() {
    let engine = start(&own_rules()).await;
    let file = [planted(), zip("a", b"a", 1)].concat();
    let result = scan(&engine, &file).await;
    assert_eq!(result.detections[0].name, "Lazaret_Test_File");
    let member = zip("eicar.com", &eicar(), 0);
    let damaged = tar_gz(&[("a.zip", &member), ("zeros", &vec![7; 1 << 20])]);
    let result = scan(&engine, &damaged[..damaged.len() - 20]).await;
    assert_eq!(result.detections[0].name, "EICAR_Test_File");
    assert_eq!(
        result.incomplete.map(|(reason, _)| reason),
        Some(UnscannedReason::UnpackMalformed)
    );
}

#[tokio::test]
async fn members_have_names_of_their_own() {
    let rules = folder(r#"rule inside { condition: filename == "x.exe" and extension == ".exe" }"#);
    let engine = start(rules.path()).await;
    let job = Job {
        context: named(b"/tmp/outer.zip", 0),
        ..job(&zip("dir/x.exe", b"x", 0))
    };
    let result = engine.scan(job).await;
    assert_eq!(names(&result), ["inside"]);
    assert_eq!(result.detections[0].path_inside, [b"dir/x.exe"]);
}

/// The files of Debian's package clamav-testfiles whose container we unpack, all holding the same
/// program; the rest of the 44 are packers and formats that only ClamAV knows.
#[tokio::test]
async fn real_containers_are_opened_inside_the_sandbox() {
    let folder = std::path::Path::new("/usr/share/clamav-testfiles");
    let entries = std::fs::read_dir(folder).expect("Debian's package clamav-testfiles");
    let rules = self::folder(
        r#"import "hash"
           rule clam { condition:
             filesize == 544 and hash.md5(0, filesize) == "aa15bcf478d165efd2065190eb473bcb" }"#,
    );
    let engine = start(rules.path()).await;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("entry").path();
        let result = scan(&engine, &std::fs::read(&path).expect("read")).await;
        assert_eq!(result.error, None, "{}", path.display());
        if !result.detections.is_empty() {
            found.push(
                path.file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    for name in FOUND_INSIDE {
        assert!(found.iter().any(|found| found == name), "{name}");
    }
    assert_eq!(engine.stats().crashed_total, 0);
}

const FOUND_INSIDE: [&str; 19] = [
    "clam.7z",
    "clam.bin-be.cpio",
    "clam.bin-le.cpio",
    "clam.bz2.zip",
    "clam.cab",
    "clam.d64.zip",
    "clam.exe",
    "clam.exe.bz2",
    "clam.exe.mbox.base64",
    "clam.exe.mbox.uu",
    "clam.impl.zip",
    "clam.mail",
    "clam.newc.cpio",
    "clam.odc.cpio",
    "clam.ole.doc",
    "clam.pdf",
    "clam.ppt",
    "clam.tar.gz",
    "clam.zip",
];
