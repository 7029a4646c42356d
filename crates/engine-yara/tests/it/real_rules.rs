//! Whole rule sets over real files: the engine says what YARA-X says when it is asked directly, of
//! the whole file and of what an agent reports of it.
//! The sets are data beside the project (`../shared/rules`), so where they are not, this says so.

use std::path::{Path, PathBuf};

use engine::host::Job;
use yara_x::{Compiler, Scanner, SourceCode};

use crate::partial::{Guest, HEAD_BYTES, Led, lead, pack, report};
use crate::{job, named, names, start};

/// Real files to compare: programs, libraries, scripts, documents.
const FILES_MAX: usize = 400;
const FILE_BYTES_MAX: u64 = 300_000;

fn rule_set(name: &str) -> Option<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = project.join("../shared/rules").join(name).join("yara");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: there is no {}", folder.display());
    None
}

fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let folders = [
        "/usr/bin",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/share/clamav-testfiles",
    ];
    for folder in folders.into_iter().chain(["/usr/share/perl5", "/etc"]) {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let mut paths: Vec<_> = paths
            .filter(|path| {
                let kind = std::fs::symlink_metadata(path);
                kind.is_ok_and(|kind| kind.is_file() && kind.len() <= FILE_BYTES_MAX)
            })
            .collect();
        paths.sort();
        found.extend(paths.into_iter().take(FILES_MAX / 5));
    }
    found
}

fn rule_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("rules") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            rule_files(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// Every rule set file in its own namespace, straight into YARA-X.
fn compile(folder: &Path) -> yara_x::Rules {
    let mut files = Vec::new();
    rule_files(folder, &mut files);
    files.retain(|file| file.extension().is_some_and(|e| e == "yar" || e == "yara"));
    files.sort();
    let mut compiler = Compiler::new();
    for name in ["filename", "filepath", "extension", "filetype", "owner"] {
        compiler.define_global(name, "").expect("defined");
    }
    for file in files {
        let source = std::fs::read(&file).expect("read");
        compiler.new_namespace(&file.to_string_lossy());
        compiler
            .add_source(SourceCode::from(source.as_slice()))
            .expect("compiles");
    }
    compiler.build()
}

async fn compare(set: &str, least: u64) {
    let Some(folder) = rule_set(set) else {
        return;
    };
    let engine = start(&folder).await;
    assert!(engine.info().rules >= least);
    let pack = pack(&engine);
    let (mut judged, mut asked) = (0, 0);
    let rules = compile(&folder);
    let mut direct = Scanner::new(&rules);
    let files = files();
    assert!(files.len() > 100);
    for file in &files {
        let bytes = std::fs::read(file).expect("read");
        let path = file.to_string_lossy();
        let (folder, name) = path.rsplit_once('/').expect("an absolute path");
        let extension = name
            .rfind('.')
            .map_or("", |dot| &name[dot..])
            .to_lowercase();
        direct.set_global("filename", name).expect("set");
        direct.set_global("filepath", folder).expect("set");
        direct.set_global("extension", extension).expect("set");
        direct.set_global("owner", "root").expect("set");
        direct.set_global("filetype", "").expect("set");
        let matching = direct.scan(&bytes).expect("scanned");
        let mut expected: Vec<_> = matching.matching_rules().map(|r| r.identifier()).collect();
        expected.sort_unstable();
        expected.dedup();
        let job = Job {
            unpack: None,
            context: named(path.as_bytes(), 0),
            ..job(&bytes)
        };
        let result = engine.scan(job).await;
        let mut found = names(&result);
        found.sort_unstable();
        assert_eq!(found, expected, "{path}");
        let Some(report) = report(&pack, &bytes) else {
            continue;
        };
        let guest = Guest {
            bytes: &bytes,
            report,
            context: named(path.as_bytes(), 0),
            unpack: None,
        };
        match lead(&engine, &guest, HEAD_BYTES).await {
            Led::Judged(by_part, _, more) => {
                assert_eq!(by_part, result, "{path}");
                judged += 1;
                asked += more;
            }
            Led::Whole(_) => {}
            Led::Failed(result) => panic!("{path}: {result:?}"),
        }
    }
    println!(
        "{set}: {judged} of {} files judged in part, {asked} bytes asked for",
        files.len()
    );
    // The rest asks for too much, which tests of the plan count.
    assert!(judged > files.len() / 2);
    let stats = engine.stats();
    assert_eq!(stats.scanned_total, files.len() as u64);
    assert_eq!((stats.crashed_total, stats.killed_total), (0, 0));
}

#[tokio::test]
async fn signature_base() {
    compare("signature-base", 5800).await;
}

#[tokio::test]
async fn reversinglabs() {
    compare("reversinglabs", 1200).await;
}
