//! Golden runs over thousands of real files: what Lazaret says is what the engine says when it is
//! given the whole file directly, file by file, name by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{corpus, scratch};
use testbed::{Agent, AgentOptions, Clamd, ClamdListen, Pin, Server, ServerOptions, samples};

/// Real files in a golden run, at least.
const FILES_MIN: usize = 3_000;
const FOLDERS: [&str; 4] = ["/usr/share", "/usr/lib", "/usr/bin", "/etc"];

/// Detected names by file; a file without any is not in it.
type Found = BTreeMap<PathBuf, BTreeSet<String>>;

/// Copies of real files in a folder of their own, and a few planted ones.
fn make_corpus(dir: &Path) -> Result<Vec<PathBuf>> {
    let corpus_dir = dir.join("corpus");
    std::fs::create_dir(&corpus_dir)?;
    let mut copies = Vec::new();
    for (i, file) in corpus(&FOLDERS, FILES_MIN + 300, 512 << 10)?
        .iter()
        .enumerate()
    {
        let name = file.file_name().context("a file without a name")?;
        let folder = corpus_dir.join(format!("{:03}", i / 100));
        std::fs::create_dir_all(&folder)?;
        let copy = folder.join(format!("{i:05}-{}", name.to_string_lossy()));
        std::fs::copy(file, &copy)?;
        copies.push(copy);
    }
    let zip = samples::zip("eicar.com", &samples::eicar());
    let planted: [(&str, Vec<u8>); 4] = [
        ("eicar.com", samples::eicar()),
        ("eicar.zip", zip.clone()),
        ("eicar.tar.gz", samples::tar_gz("eicar.zip", &zip)?),
        ("empty", Vec::new()),
    ];
    for (name, content) in planted {
        let path = corpus_dir.join(name);
        std::fs::write(&path, content)?;
        copies.push(path);
    }
    ensure!(copies.len() >= FILES_MIN, "only {} files", copies.len());
    Ok(copies)
}

/// What an on-demand scan through agent and appliance finds in the files themselves (not in their
/// members), and which files it could not judge.
fn by_lazaret(dir: &Path, options: &ServerOptions) -> Result<(Found, BTreeMap<PathBuf, String>)> {
    let server = Server::start(&dir.join("server"), options)?;
    // Its gate never runs.
    let guard_nothing_here = AgentOptions {
        guard: vec![dir.to_owned()],
        ..AgentOptions::default()
    };
    let agent = Agent::enrol(&dir.join("agent"), &server, &guard_nothing_here, None)?;
    let mut scan = Command::new(testbed::binary("lazaret-agent")?);
    scan.args([
        "scan",
        "--json",
        "--no-removal",
        "--progress",
        "never",
        "--config",
    ])
    .arg(agent.config())
    .arg(dir.join("corpus"));
    let out = scan.output()?;
    let code = out.status.code();
    let text = String::from_utf8(out.stdout)?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(
        matches!(code, Some(1 | 2)),
        "scan ended with {code:?}: {said}"
    );
    let (mut found, mut unjudged) = (Found::new(), BTreeMap::new());
    let mut complete = false;
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        if value["type"] == "summary" {
            complete = value["complete"] == true;
            continue;
        }
        let path = PathBuf::from(value["path"].as_str().context("no path")?);
        if let Some(reason) = value["reason"].as_str() {
            unjudged.insert(path, reason.to_owned());
            continue;
        }
        let detections = value["detections"].as_array().context(line.to_owned())?;
        for detection in detections {
            let name = detection["name"].as_str().context("no name")?.to_owned();
            if detection["inside"].is_null() {
                found.entry(path.clone()).or_default().insert(name);
            }
        }
    }
    ensure!(complete, "the scan is not complete");
    Ok((found, unjudged))
}

/// The first differences, for people.
fn compare(direct: &Found, ours: &Found) -> Result<()> {
    let mut differences = String::new();
    let all: BTreeSet<&PathBuf> = direct.keys().chain(ours.keys()).collect();
    for path in all {
        let (direct, ours) = (direct.get(path), ours.get(path));
        if direct != ours {
            writeln!(differences, "{}: {direct:?}, ours {ours:?}", path.display())?;
        }
    }
    ensure!(differences.is_empty(), "verdicts differ:\n{differences}");
    Ok(())
}

/// Rules that match many ordinary files, so that equality means something.
const COMMON: &str = r##"
rule Common_Perl { strings: $a = "#!/usr/bin/perl" condition: $a at 0 }
rule Common_Licence { strings: $a = "GNU General Public License" nocase condition: $a }
rule Common_Elf { condition: uint32(0) == 0x464c457f and filesize < 100KB }
rule Common_Name { condition: extension == ".py" }
rule Common_Long { strings: $a = /[a-z]{24,}/ condition: #a > 3 }
"##;

fn shared_rules(set: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let path = root.join("shared/rules").join(set).join("yara");
    ensure!(path.is_dir(), "{} is missing", path.display());
    Ok(path)
}

#[test]
fn yara_x_says_the_same_of_each_file() -> Result<()> {
    let dir = scratch("golden")?;
    let files = make_corpus(dir.path())?;
    let common = dir.path().join("common.yar");
    std::fs::write(&common, COMMON)?;
    let rules = vec![
        common,
        testbed::rules_dir(),
        shared_rules("signature-base")?,
        shared_rules("reversinglabs")?,
    ];
    let direct = by_yara_x(&rules, &files)?;
    ensure!(
        direct.len() > 100,
        "the rules match only {} files",
        direct.len()
    );
    let options = ServerOptions {
        rules,
        extra: "[removal]\non_malicious = \"deny\"\n".into(),
        ..ServerOptions::default()
    };
    let (ours, unjudged) = by_lazaret(dir.path(), &options)?;
    println!(
        "{} files, {} found, {} unjudged",
        files.len(),
        direct.len(),
        unjudged.len()
    );
    compare(&direct, &ours)?;
    // Only containers that cannot be opened to the end are left; none for want of an engine.
    let wrong = |reason: &&String| !reason.starts_with("unpack_") && *reason != "encrypted";
    let wrong: Vec<_> = unjudged.values().filter(wrong).collect();
    ensure!(wrong.is_empty(), "unscanned: {unjudged:?}");
    Ok(())
}

/// Whole files straight through YARA-X, with the variables that engine-yara documents.
fn by_yara_x(rules: &[PathBuf], files: &[PathBuf]) -> Result<Found> {
    let mut find = Command::new("find");
    find.args(rules)
        .args(["-name", "*.yar", "-o", "-name", "*.yara"]);
    let mut compiler = yara_x::Compiler::new();
    for name in ["filename", "filepath", "extension", "owner", "filetype"] {
        compiler.define_global(name, "")?;
    }
    for source in testbed::run(&mut find)?.lines() {
        let text = std::fs::read(source)?;
        compiler.new_namespace(source);
        compiler
            .add_source(text.as_slice())
            .with_context(|| source.to_owned())?;
    }
    let rules = compiler.build();
    let mut scanner = yara_x::Scanner::new(&rules);
    let mut found = Found::new();
    for file in files {
        let content = std::fs::read(file)?;
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let folder = file.parent().unwrap_or(file).to_string_lossy().into_owned();
        let extension = name
            .rfind('.')
            .map_or(String::new(), |dot| name[dot..].to_ascii_lowercase());
        scanner.set_global("filename", name.as_str())?;
        scanner.set_global("filepath", folder.as_str())?;
        scanner.set_global("extension", extension.as_str())?;
        scanner.set_global("owner", "root")?;
        scanner.set_global("filetype", file_type(&content))?;
        let results = scanner.scan(&content)?;
        let names: BTreeSet<String> = results
            .matching_rules()
            .map(|rule| rule.identifier().to_owned())
            .collect();
        if !names.is_empty() {
            found.insert(file.clone(), names);
        }
    }
    Ok(found)
}

/// The types that the rule sets in use ask for, by magic.
fn file_type(content: &[u8]) -> &'static str {
    let types: [(&[u8], &str); 9] = [
        (b"MZ", "EXE"),
        (b"\x7fELF", "ELF"),
        (b"%PDF-", "PDF"),
        (b"GIF8", "GIF"),
        (b"\xff\xd8\xff", "JPG"),
        (b"\x89PNG", "PNG"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1f\x8b", "GZIP"),
        (b"BZh", "BZIP2"),
    ];
    let found = types.iter().find(|(magic, _)| content.starts_with(magic));
    found.map_or("", |(_, name)| name)
}

#[test]
fn clamscan_says_the_same_of_each_file() -> Result<()> {
    let dir = scratch("golden")?;
    let files = make_corpus(dir.path())?;
    // One body signature that much text matches, and digests of real files.
    let body = "Common.Licence:0:*:47656e6572616c205075626c6963204c6963656e7365\n";
    let mut hashes = String::new();
    for file in files.iter().step_by(40) {
        let line = testbed::run(Command::new("sigtool").arg("--md5").arg(file))?;
        let (digest_and_size, _name) = line.trim().rsplit_once(':').context("sigtool")?;
        if !digest_and_size.ends_with(":0") {
            writeln!(hashes, "{digest_and_size}:Known.File")?;
        }
    }
    let database = [("a.ndb", body), ("b.hdb", &hashes)];
    let clamd = Clamd::start(dir.path(), &database, ClamdListen::Unix, Pin::Free)?;
    let direct = by_clamscan(&dir.path().join("db"), &dir.path().join("corpus"))?;
    ensure!(
        direct.len() > 80,
        "the signatures match only {} files",
        direct.len()
    );
    let options = ServerOptions {
        rules: Vec::new(),
        clamd: Some(clamd.socket().to_owned()),
        extra: "[removal]\non_malicious = \"deny\"\n".into(),
        ..ServerOptions::default()
    };
    let (ours, unjudged) = by_lazaret(dir.path(), &options)?;
    println!("{} files, {} found", files.len(), direct.len());
    compare(&direct, &ours)?;
    ensure!(unjudged.is_empty(), "unscanned: {unjudged:?}");
    Ok(())
}

fn by_clamscan(database: &Path, corpus: &Path) -> Result<Found> {
    let out = Command::new("clamscan")
        .args([
            "-r",
            "--no-summary",
            "--infected",
            "--alert-exceeds-max=yes",
        ])
        .arg(format!("--database={}", database.display()))
        .arg(corpus)
        .output()?;
    let code = out.status.code();
    ensure!(code == Some(1), "clamscan: {code:?}");
    let mut found = Found::new();
    for line in String::from_utf8(out.stdout)?.lines() {
        let found_line = line.strip_suffix(" FOUND").context(line.to_owned())?;
        let (path, name) = found_line.rsplit_once(": ").context(line.to_owned())?;
        let names = found.entry(PathBuf::from(path)).or_default();
        names.insert(name.to_owned());
    }
    Ok(found)
}
