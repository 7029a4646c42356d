//! With a real clamd.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use engine::host::{Engine, StartError};
use model::UnscannedReason;

use crate::clamd::{CLAM_EXE, Clamd, NOTHING};
use crate::{assert_clean, scan, spec, start, start_error};

const ALERTS: &str = "AlertExceedsMax yes";

fn test_files() -> Vec<PathBuf> {
    let folder = "/usr/share/clamav-testfiles";
    let entries = std::fs::read_dir(folder).expect("Debian's package clamav-testfiles");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn all_test_files_are_found_by_one_hash_and_clean_without_it() {
    let files = test_files();
    assert_eq!(files.len(), 44);
    for (database, is_malicious) in [(CLAM_EXE, true), (NOTHING, false)] {
        // One of the files is nested more deeply than the default limit of 17.
        let clamd = Clamd::start(database, "AlertExceedsMax yes\nMaxRecursion 100");
        let engine = start(&clamd.socket()).await;
        assert!(engine.info().version.starts_with("ClamAV "));
        for file in &files {
            let bytes = std::fs::read(file).expect("read");
            let result = scan(&engine, &bytes).await;
            if is_malicious {
                assert_eq!((&result.incomplete, &result.error), (&None, &None));
                let names: Vec<_> = result.detections.iter().map(|d| d.name.as_str()).collect();
                assert_eq!(names, ["Clam-Test-File.UNOFFICIAL"], "{}", file.display());
                assert_eq!(result.detections[0].engine, "clamd");
            } else {
                assert_clean(&result);
            }
        }
        assert_eq!(engine.stats().scanned_total, 44);
    }
}

#[tokio::test]
async fn content_of_every_size_reaches_clamd() {
    let clamd = Clamd::start(NOTHING, ALERTS);
    let engine = start(&clamd.socket()).await;
    for size in [0, 1, 65_536, 65_537, 3 << 20] {
        assert_clean(&scan(&engine, &vec![b'x'; size]).await);
    }
}

#[tokio::test]
async fn limits_are_unscanned() {
    let clamd = Clamd::start(NOTHING, "AlertExceedsMax yes\nMaxFileSize 1M");
    let engine = start(&clamd.socket()).await;
    let result = scan(&engine, &vec![b'x'; 2 << 20]).await;
    let (reason, detail) = result.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::EngineLimit);
    assert_eq!(detail, "clamd's limit MaxFileSize");
    assert!(result.detections.is_empty());
    assert_clean(&scan(&engine, b"small").await);
}

#[tokio::test]
async fn encrypted_members_are_unscanned() {
    let clamd = Clamd::start(NOTHING, "AlertExceedsMax yes\nAlertEncryptedArchive yes");
    let engine = start(&clamd.socket()).await;
    let result = scan(&engine, &encrypted_zip()).await;
    let (reason, detail) = result.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::Encrypted, "{detail}");
}

/// One stored member that calls itself encrypted.
fn encrypted_zip() -> Vec<u8> {
    let fields = b"\x0a\0\x01\0\0\0\0\0\0\0\x12\x34\x56\x78\x10\0\0\0\x10\0\0\0\x01\0\0\0";
    let local = [b"PK\x03\x04", &fields[..], b"a", &[7; 16][..]].concat();
    let central = [b"PK\x01\x02\x0a\0", &fields[..], &[0; 14][..], b"a"].concat();
    let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
    end.extend(u32::try_from(central.len()).expect("small").to_le_bytes());
    end.extend(u32::try_from(local.len()).expect("small").to_le_bytes());
    end.extend([0; 2]);
    [local, central, end].concat()
}

#[tokio::test]
async fn a_clamd_that_is_silent_about_limits_is_refused() {
    let clamd = Clamd::start(NOTHING, "");
    let error = start_error(&clamd.socket()).await;
    assert!(matches!(error, StartError::Failed { .. }));
    assert!(error.to_string().contains("AlertExceedsMax yes"), "{error}");
}

#[tokio::test]
async fn a_restarted_clamd_is_found_again() {
    let mut clamd = Clamd::start(CLAM_EXE, ALERTS);
    let engine = start(&clamd.socket()).await;
    let virus = std::fs::read("/usr/share/clamav-testfiles/clam.exe").expect("read");
    assert_eq!(scan(&engine, &virus).await.detections.len(), 1);
    clamd.stop();
    for _ in 0..3 {
        let result = scan(&engine, &virus).await;
        let (reason, _) = result.incomplete.expect("incomplete");
        assert_eq!(reason, UnscannedReason::EngineUnavailable);
    }
    clamd.start_again();
    for _ in 0..3 {
        assert_eq!(scan(&engine, &virus).await.detections.len(), 1);
    }
}

#[tokio::test]
async fn a_clamd_that_is_silent_about_limits_since_its_restart_is_refused() {
    let mut clamd = Clamd::start(NOTHING, ALERTS);
    let engine = start(&clamd.socket()).await;
    assert_clean(&scan(&engine, b"something").await);
    clamd.stop();
    clamd.start_again_with("");
    for _ in 0..3 {
        let result = scan(&engine, b"something").await;
        let (reason, detail) = result.incomplete.expect("incomplete");
        assert_eq!(reason, UnscannedReason::EngineUnavailable);
        assert!(detail.contains("AlertExceedsMax yes"), "{detail}");
    }
    clamd.stop();
    clamd.start_again_with(ALERTS);
    assert_clean(&scan(&engine, b"something").await);
}

#[tokio::test]
async fn a_clamd_that_is_silent_about_encryption_is_warned_of() {
    for (more, count) in [("", 1), ("AlertEncrypted yes", 0)] {
        let clamd = Clamd::start(NOTHING, &format!("{ALERTS}\n{more}"));
        let warnings = start(&clamd.socket()).await.info().warnings.clone();
        let about = |warning: &&String| warning.contains("'AlertEncrypted yes'");
        assert_eq!(warnings.iter().filter(about).count(), count, "{warnings:?}");
    }
}

#[tokio::test]
async fn a_database_without_a_version_is_a_new_generation() {
    let clamd = Clamd::start(NOTHING, ALERTS);
    let mut args: Vec<OsString> = vec!["--poll-s".into(), "1".into()];
    args.push("--database".into());
    args.push(clamd.database().into());
    let engine = Engine::start(spec(&clamd.socket(), &args)).await;
    let engine = engine.expect("starts");
    let before = engine.info();
    std::fs::write(clamd.database().join("more.hdb"), CLAM_EXE).expect("written");
    for _ in 0..600 {
        if engine.info().generation != before.generation {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(engine.info().generation, before.generation);
    assert_eq!(engine.info().version, before.version);
}

#[tokio::test]
async fn a_session_that_clamd_has_closed_costs_no_file() {
    let clamd = Clamd::start(
        NOTHING,
        "AlertExceedsMax yes\nIdleTimeout 2\nCommandReadTimeout 2",
    );
    let engine = start(&clamd.socket()).await;
    for _ in 0..2 {
        assert_clean(&scan(&engine, b"something").await);
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    assert_clean(&scan(&engine, b"something").await);
}

#[tokio::test]
async fn database_files_are_part_of_the_generation_where_asked_for() {
    let clamd = Clamd::start(NOTHING, ALERTS);
    let database = ["--database".into(), clamd.database().into()];
    let generation = async |more| {
        let engine = Engine::start(spec(&clamd.socket(), more)).await;
        engine.expect("starts").info().generation.clone()
    };
    let plain = generation(&[]).await;
    let first = generation(&database).await;
    assert_ne!(plain, first);
    assert_eq!(first, generation(&database).await);
    std::fs::write(clamd.database().join("more.hdb"), CLAM_EXE).expect("written");
    assert_ne!(first, generation(&database).await);
    assert_eq!(plain, generation(&[]).await);
}

#[tokio::test]
async fn no_clamd_is_a_clear_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = start_error(&folder.path().join("none.sock")).await;
    let text = error.to_string();
    assert!(
        text.contains("none.sock: cannot connect: No such file"),
        "{text}"
    );
}
