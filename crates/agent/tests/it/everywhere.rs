//! What marks alone do not see. On the real kernel, as everything here.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use model::{Digest, Disposition, Policy};
use proto::v1::{self, AccessClass};

use crate::puppet::{BAD, PATIENCE};
use crate::rig::{Got, Rig};

fn policy() -> Policy {
    Policy {
        open_budget: Duration::from_secs(120),
        exec_budget: Duration::from_secs(120),
        on_unscanned: Disposition::Deny,
        scan_on_close: false,
        ..Policy::default()
    }
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of its own content, kept running from the guarded file system.
fn program(rig: &Rig, name: &str) -> (Running, Digest) {
    let mut bytes = std::fs::read("/bin/sleep").unwrap();
    bytes.extend_from_slice(BAD);
    bytes.extend_from_slice(name.as_bytes());
    let path = rig.put(name, &bytes);
    rig.shell(&format!("chmod +x {name}"));
    let child = Command::new(path).arg("600").stdin(Stdio::null()).spawn();
    (Running(child.unwrap()), Digest::of(&bytes))
}

/// Trap 15: a process that runs, and a file that is open, from before the marks; without a name,
/// as malware likes it.
#[test]
fn trap_15_what_was_open_before_the_start_is_judged() {
    let mut rig = Rig::new(policy());
    rig.stop();
    let (_running, program) = program(&rig, "program");
    let open = rig.put("open", b"only open");
    let holder = format!("exec 3< '{}'; exec sleep 600", open.display());
    let holder = Command::new("sh")
        .args(["-c", &holder])
        .stdin(Stdio::null())
        .spawn();
    let _holder = Running(holder.unwrap());
    let is_open = || {
        let links = std::fs::read_dir(format!("/proc/{}/fd", _holder.0.id())).unwrap();
        let mut links = links.flatten();
        links.any(|it| std::fs::read_link(it.path()).is_ok_and(|to| to == open))
    };
    assert!(testbed::wait_until(PATIENCE, is_open));
    std::fs::remove_file(&open).unwrap();
    std::fs::remove_file(rig.path("program")).unwrap();
    let shared = rig.shared();
    {
        let mut book = shared.book();
        book.busy = true;
        book.turns.clear();
    }
    rig.start();
    let asked = |digest: &Digest| {
        let book = shared.book();
        book.checks.iter().any(|check| check.blake3 == digest.0)
    };
    let open = Digest::of(b"only open");
    // Other guests of the host come first.
    shared.wait("asked again for its turn", |book| book.turns.len() >= 3);
    assert!(!asked(&program) && !asked(&open));
    shared.book().busy = false;
    let judged = || asked(&program) && asked(&open);
    assert!(testbed::wait_until(PATIENCE, judged), "not judged");
    shared.wait("the alert", |book| {
        book.alerts
            .iter()
            .any(|alert| alert.kind == "malicious_before_start")
    });
}

/// Trap 13.
#[test]
fn trap_13_a_program_run_from_memory_is_reported_and_judged() {
    let rig = Rig::new(policy());
    // A script's own way: no file of any file system is executed.
    let script = "import os, sys\n\
        f = os.memfd_create('hidden')\n\
        os.write(f, open('/bin/sleep', 'rb').read() + b'this-is-bad in memory')\n\
        os.execve(f, ['sleep', '5'], {})\n";
    let child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::null())
        .spawn();
    let _running = Running(child.unwrap());
    let shared = rig.shared();
    shared.wait("the alert", |book| {
        let reported = |alert: &proto::v1::Alert| {
            alert.kind == "memfd_exec" && alert.path.starts_with(b"/memfd:hidden")
        };
        book.alerts.iter().any(reported)
    });
    shared.wait("the verdict", |book| {
        book.alerts
            .iter()
            .any(|alert| alert.kind == "malicious_before_start")
    });
}

/// Trap 11: a container mounts what our own table of mounts never shows.
#[test]
fn trap_11_what_is_mounted_in_another_namespace_alone_is_guarded() {
    let rig = Rig::new(policy());
    rig.shell("mkdir below");
    let below = rig.path("below");
    let script = format!(
        "mount -t tmpfs stranger '{0}'; printf this-is-bad > '{0}/f'
         for n in $(seq 600); do cat '{0}/f' > /dev/null 2>&1 || exit 0; sleep 0.1; done; exit 1",
        below.display()
    );
    let namespace = ["--mount", "--propagation", "private", "sh", "-c", &script];
    let denied = Command::new("unshare").args(namespace).status().unwrap();
    assert!(denied.success(), "it is not guarded");
    assert_eq!(
        std::fs::read_dir(below).unwrap().count(),
        0,
        "not mounted here"
    );
}

/// One file, whichever mount, namespace or overlay it is reached through.
#[test]
fn trap_12_bind_mounts_and_overlays_show_the_same_file() {
    let rig = Rig::new(policy());
    rig.put("f", b"harmless");
    rig.put("bad", BAD);
    rig.shell("mkdir lower upper work merged bound; cp f lower");
    rig.put("lower/bad", BAD);
    rig.shell(
        "mount --bind . bound
         mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged",
    );
    let harmless = Got::Content(b"harmless".to_vec());
    assert_eq!(rig.read("f"), harmless);
    let checks = |rig: &Rig| rig.shared().book().checks.len();
    let before = checks(&rig);
    for name in ["bound/f", "bound/lower/f", "lower/f", "merged/f"] {
        assert_eq!(rig.read(name), harmless, "{name}");
    }
    assert!(checks(&rig) <= before + 1, "one content, two inodes");
    // Through the overlay a layer's file shows a path of the layer's own mount, which only
    // `guard.include = ["/"]` holds: see the operators' page.
    for name in ["bound/bad", "lower/bad"] {
        assert_eq!(rig.read(name), Got::Denied, "{name}");
    }
    // A verdict that stands holds the mount that its file was opened through.
    rig.shell("umount merged; umount --lazy bound");
}

/// Trap 14.
#[test]
fn trap_14_what_an_interpreter_runs_is_an_execution() {
    let rig = Rig::new(policy());
    let program = [&std::fs::read("/bin/true").unwrap()[..], b"own"].concat();
    let files: [(&str, &[u8], AccessClass); 6] = [
        ("plain", b"true # a shell's", AccessClass::Exec),
        ("sourced", b"true # sourced", AccessClass::Exec),
        ("tool.py", b"pass # by its name", AccessClass::Exec),
        ("marked", b"#!/usr/bin/python3\npass", AccessClass::Exec),
        ("data", b"only read, by python", AccessClass::Open),
        ("read", b"only read, by cat", AccessClass::Open),
    ];
    for (name, content, _) in &files {
        rig.put(name, content);
    }
    rig.put("program", &program);
    rig.shell(
        "sh plain; . ./sourced; python3 tool.py; python3 marked
         python3 -c 'open(\"data\").read()'; cat read >/dev/null
         $(readlink -f /lib64/ld-linux-x86-64.so.2) ./program",
    );
    let shared = rig.shared();
    let book = shared.book();
    let class = |content: &[u8]| {
        let digest = Digest::of(content);
        let of = book.checks.iter().find(|check| check.blake3 == digest.0);
        of.map(v1::Check::class)
    };
    for (name, content, expected) in files {
        assert_eq!(class(content), Some(expected), "{name}");
    }
    assert_eq!(class(&program), Some(AccessClass::Exec));
}
