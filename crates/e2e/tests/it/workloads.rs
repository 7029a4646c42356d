//! Ordinary work inside a guarded tree: no error, no hang, no unscanned open while the appliance
//! is up.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Setup, System, open};
use testbed::{ServerOptions, run, samples, wait_until};

fn system() -> Result<System> {
    System::start(Setup {
        server: ServerOptions {
            extra: "[removal]\non_malicious = \"deny\"\n[policy]\non_unscanned = \"deny\"\n".into(),
            ..ServerOptions::default()
        },
        ..Setup::default()
    })
}

/// Nothing was answered without a verdict, nothing denied, and the gate did see the work.
fn nothing_slipped(system: &System) -> Result<()> {
    let status = system.agent.status()?;
    ensure!(status["ledger"]["entries_total"] == 0, "{status}");
    ensure!(system.detections()?.is_empty());
    let denied = system.agent_metric("lazaret_agent_answers_total", "answer=\"deny\"");
    ensure!(denied.unwrap_or(0.0) == 0.0, "some opens were denied");
    // Metrics are written every now and then.
    let seen = wait_until(Duration::from_secs(60), || {
        let events = system.agent_metric("lazaret_agent_events_total", "");
        events.is_ok_and(|events| events > 0.0)
    });
    ensure!(seen, "the gate saw no event");
    // And it still guards.
    let eicar = system.write("after.com", &samples::eicar())?;
    ensure!(open(&eicar)?.denied, "EICAR got through after the work");
    Ok(())
}

fn git(dir: &Path, args: &[&str]) -> Result<String> {
    run(Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
        .args(["-c", "init.defaultBranch=main"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .current_dir(dir))
}

#[test]
fn git_clone_and_checkout() -> Result<()> {
    let system = system()?;
    let origin = system.scratch.path().join("origin");
    std::fs::create_dir(&origin)?;
    git(&origin, &["init", "-q"])?;
    for commit in 0..3 {
        for i in 0..150 {
            let text = format!("file {i} of commit {commit}\n").repeat(i + 1);
            std::fs::write(origin.join(format!("f{i}.txt")), text)?;
        }
        git(&origin, &["add", "."])?;
        git(&origin, &["commit", "-qm", &format!("c{commit}")])?;
    }
    let url = format!("file://{}", origin.display());
    git(system.mount.path(), &["clone", "-q", &url, "clone"])?;
    let clone = system.path("clone");
    git(&clone, &["checkout", "-q", "HEAD~2"])?;
    git(&clone, &["checkout", "-q", "main"])?;
    git(&clone, &["fsck", "--full"])?;
    git(&clone, &["gc", "-q"])?;
    ensure!(git(&clone, &["status", "--porcelain"])?.is_empty());
    nothing_slipped(&system)
}

#[test]
fn cargo_build_and_run() -> Result<()> {
    let system = system()?;
    let dir = system.path("hello");
    std::fs::create_dir_all(dir.join("src"))?;
    // A workspace of its own: whatever lies above is not its.
    let manifest =
        "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    std::fs::write(dir.join("Cargo.toml"), manifest)?;
    let source = "mod part;\nfn main() { println!(\"{}\", part::answer()); }\n";
    std::fs::write(dir.join("src/main.rs"), source)?;
    std::fs::write(dir.join("src/part.rs"), "pub fn answer() -> u32 { 42 }\n")?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["run", "-q", "--offline"])
        .current_dir(&dir)
        .env("CARGO_TARGET_DIR", dir.join("target"));
    ensure!(run(&mut cargo)? == "42\n");
    nothing_slipped(&system)
}

#[test]
fn dpkg_unpacks_and_removes() -> Result<()> {
    let system = system()?;
    let source = system.scratch.path().join("package");
    let files = source.join("usr/share/lazaret-test");
    std::fs::create_dir_all(source.join("DEBIAN"))?;
    std::fs::create_dir_all(&files)?;
    let control = "Package: lazaret-test\nVersion: 1\nArchitecture: all\n\
                   Maintainer: t <t@example.org>\nDescription: test\n";
    std::fs::write(source.join("DEBIAN/control"), control)?;
    for i in 0..300 {
        std::fs::write(
            files.join(format!("f{i}")),
            format!("content {i}\n").repeat(i),
        )?;
    }
    let deb = system.path("lazaret-test.deb");
    run(Command::new("dpkg-deb").args(["-b"]).arg(&source).arg(&deb))?;
    let root = system.path("root");
    for dir in ["info", "updates", "triggers"] {
        std::fs::create_dir_all(root.join("var/lib/dpkg").join(dir))?;
    }
    std::fs::write(root.join("var/lib/dpkg/status"), "")?;
    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display())).args(args);
        run(&mut command)
    };
    let deb = deb.to_string_lossy().into_owned();
    dpkg(&["--force-script-chrootless", "-i", &deb])?;
    ensure!(root.join("usr/share/lazaret-test/f299").exists());
    dpkg(&["--force-script-chrootless", "-P", "lazaret-test"])?;
    ensure!(!root.join("usr/share/lazaret-test").exists());
    nothing_slipped(&system)
}

#[test]
fn eight_parallel_tars() -> Result<()> {
    let system = system()?;
    let archive = system.scratch.path().join("tree.tar");
    run(Command::new("tar").arg("-cf").arg(&archive).args([
        "-C",
        "/usr/share",
        "doc",
        "zoneinfo",
    ]))?;
    let mut children = Vec::new();
    for i in 0..8 {
        let into = system.path(&format!("t{i}"));
        std::fs::create_dir(&into)?;
        let script = "tar -xf \"$1\" -C \"$2\" && tar -cf - -C \"$2\" . | wc -c";
        let mut command = Command::new("sh");
        command.args(["-ec", script, "sh"]).arg(&archive).arg(&into);
        children.push(command.stdout(std::process::Stdio::null()).spawn()?);
    }
    for child in &mut children {
        ensure!(child.wait()?.success());
    }
    run(Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(system.path("t0"))
        .arg(system.path("t7")))?;
    nothing_slipped(&system)
}

/// Writers through shared maps, renames over open files, hard links and truncations, with readers
/// beside them: each reader gets whole generations of the content.
const CHURN: &str = r#"
import mmap, os, sys, threading, random
root, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
names = [os.path.join(root, f"c{i}") for i in range(20)]
for n in names:
    open(n, "wb").write(b"A" * 8192)
errors = []
def guard(f):
    def run():
        try:
            for _ in range(150): f(random.choice(names))
        except FileNotFoundError: pass
        except Exception as e: errors.append(repr(e))
    return run
def mapped(n):
    with open(n, "r+b") as f:
        m = mmap.mmap(f.fileno(), 8192)
    m[:] = bytes([random.randrange(65, 91)]) * 8192
    m.close()
def renamed(n):
    t = n + ".new" + str(threading.get_ident())
    open(t, "wb").write(bytes([random.randrange(65, 91)]) * 8192)
    os.rename(t, n)
def linked(n):
    t = n + ".l" + str(threading.get_ident())
    os.link(n, t); open(t, "rb").read(); os.unlink(t)
def read(n):
    if len(open(n, "rb").read()) != 8192: errors.append("short read")
threads = [threading.Thread(target=guard(f)) for f in (mapped, renamed, linked, read, read)]
[t.start() for t in threads]; [t.join() for t in threads]
print(errors); sys.exit(1 if errors else 0)
"#;

#[test]
fn mmap_writers_and_renames() -> Result<()> {
    // A file with a writer has no lasting verdict; it is scanned at each open all the same.
    let system = system()?;
    let script = system.scratch.path().join("churn.py");
    std::fs::write(&script, CHURN)?;
    let work = system.path("churn");
    std::fs::create_dir(&work)?;
    for seed in 1..4 {
        let mut python = Command::new("python3");
        run(python.arg(&script).arg(&work).arg(seed.to_string()))?;
    }
    nothing_slipped(&system)
}
