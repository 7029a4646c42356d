//! Verdicts that stand in the kernel: opens of their files raise no event, and nobody gets bytes
//! that were not judged.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use agent::AgentConfig;
use model::{Disposition, Policy};
use pki::LIFETIME;
use proto::v1::{self, envelope::Body};

use crate::puppet::BAD;
use crate::rig::{Got, Rig};

/// Denies whatever nobody judged, and leaves time for it.
fn strict() -> Policy {
    Policy {
        open_budget: Duration::from_secs(120),
        exec_budget: Duration::from_secs(120),
        on_unscanned: Disposition::Deny,
        scan_on_close: false,
        ..Policy::default()
    }
}

fn content(bytes: &[u8]) -> Got {
    Got::Content(bytes.to_vec())
}

/// Events that one read of this file raises.
#[track_caller]
fn events(rig: &Rig, name: &str, got: &Got) -> u64 {
    let events = || rig.status()["opens"].as_u64().unwrap();
    let before = events();
    assert_eq!(rig.read(name), *got);
    events() - before
}

#[track_caller]
fn stand(rig: &Rig, count: u64) {
    rig.wait_for("verdicts in the kernel", |status| {
        status["standing"]["entries"] == count
    });
}

/// The number of those in the kernel, by its own word. Other tests' agents have theirs on other
/// file systems.
fn marks(rig: &Rig) -> usize {
    let device = std::fs::metadata(rig.mount.path()).unwrap().dev();
    // As the kernel has it: twenty bits of minor number.
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let here = format!(" sdev:{:x} ", major << 20 | minor);
    let fdinfo = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let texts = fdinfo
        .flatten()
        .filter_map(|it| std::fs::read_to_string(it.path()).ok());
    let ours = texts.filter(|text| text.contains("fanotify flags:"));
    let of_it = |text: String| {
        let marks = text
            .lines()
            .filter(|line| line.starts_with("fanotify ino:"));
        marks.filter(|line| line.contains(&here)).count()
    };
    ours.map(of_it).sum()
}

#[test]
fn opens_of_judged_files_raise_no_event() {
    let rig = Rig::new(strict());
    rig.put("f", b"harmless");
    rig.put("script", b"#!/bin/sh\necho ran\n");
    assert_eq!(events(&rig, "f", &content(b"harmless")), 1);
    stand(&rig, 1);
    for _ in 0..3 {
        assert_eq!(events(&rig, "f", &content(b"harmless")), 0);
    }
    rig.shell("chmod +x script; ./script");
    stand(&rig, 2);
    let before = rig.status()["opens"].clone();
    rig.shell("test \"$(./script)\" = ran; test \"$(sh script)\" = ran");
    assert_eq!(rig.status()["opens"], before, "execution, in both ways");
}

#[test]
fn a_writer_takes_it_down_and_its_bytes_are_judged() {
    let rig = Rig::new(strict());
    rig.put("f", b"harmless");
    assert_eq!(events(&rig, "f", &content(b"harmless")), 1);
    stand(&rig, 1);
    rig.shell("printf this-is-bad > f");
    assert_eq!(rig.read("f"), Got::Denied);
    // Counted once the writer goes on.
    rig.wait_for("the count", |status| status["standing"]["broken"] == 1);
}

/// No call tells of a store through a shared mapping, and no time stamp need move.
#[test]
fn a_shared_mapping_takes_it_down_too() {
    let rig = Rig::new(strict());
    rig.put("f", b"harmless....");
    assert_eq!(events(&rig, "f", &content(b"harmless....")), 1);
    stand(&rig, 1);
    let path = rig.path("f");
    let script = format!(
        "import mmap, os, sys\nf = os.open('{0}', os.O_RDWR)\nm = mmap.mmap(f, 11)\nos.close(f)\n\
         m[:] = b'this-is-bad'\nassert os.system('cat {0} 2> /dev/null') != 0",
        path.display()
    );
    std::fs::write(rig.config.state_dir.join("writer.py"), script).unwrap();
    let writer = rig.config.state_dir.join("writer.py");
    rig.shell(&format!("python3 '{}'", writer.display()));
    assert_eq!(rig.read("f"), Got::Denied);
}

#[test]
fn new_rules_and_recalls_take_back_what_they_touch() {
    let rig = Rig::new(strict());
    for name in ["a", "b"] {
        rig.put(name, name.as_bytes());
        assert_eq!(events(&rig, name, &content(name.as_bytes())), 1);
    }
    stand(&rig, 2);
    assert_eq!(marks(&rig), 2);
    rig.shared().say(&Body::ContentChanged(v1::ContentChanged {
        generation: vec![6; 16],
    }));
    stand(&rig, 0);
    assert!(testbed::wait_until(crate::puppet::PATIENCE, || marks(&rig) == 0));
    assert_eq!(events(&rig, "a", &content(b"a")), 1);
}

#[test]
fn where_rules_read_names_each_name_is_asked_about() {
    let rig = Rig::new(Policy {
        context_sensitive: true,
        ..strict()
    });
    rig.put("a", b"harmless");
    rig.shell("ln a b");
    for name in ["a", "a", "b", "b"] {
        assert_eq!(events(&rig, name, &content(b"harmless")), 1, "{name}");
    }
    let checks = rig.shared().book().checks.len();
    assert_eq!(checks, 2, "one for each name");
}

#[test]
fn there_are_only_so_many() {
    let configure = |config: &mut AgentConfig| config.limits.standing_max = 2;
    let rig = Rig::with(strict(), configure, LIFETIME);
    for n in 0..5 {
        let name = n.to_string();
        rig.put(&name, name.as_bytes());
        rig.read(&name);
    }
    stand(&rig, 2);
    assert_eq!(events(&rig, "0", &content(b"0")), 0);
    assert_eq!(events(&rig, "4", &content(b"4")), 1);
    assert_eq!(rig.shared().book().checks.len(), 5, "the others are cached");
}

#[test]
fn a_deleted_file_gives_its_space_back() {
    let configure = |config: &mut AgentConfig| config.limits.standing_deleted_max_s = 1;
    let rig = Rig::with(strict(), configure, LIFETIME);
    rig.put("f", b"harmless");
    rig.put("g", b"harmless");
    rig.read("f");
    rig.read("g");
    stand(&rig, 2);
    rig.shell("rm f");
    stand(&rig, 1);
}

/// Only what is named as staying is held open.
#[test]
fn other_file_systems_can_be_unmounted() {
    let rig = Rig::new(strict());
    rig.shell("mkdir below; mount -t tmpfs below below; printf harmless > below/f");
    let judged = |rig: &Rig| rig.read("below/f") == content(b"harmless");
    assert!(judged(&rig));
    assert!(judged(&rig));
    let gone = testbed::wait_until(crate::puppet::PATIENCE, || {
        let mut umount = std::process::Command::new("umount");
        let done = umount.arg(rig.path("below")).output().unwrap();
        done.status.success()
    });
    assert!(gone, "it is held");
}

#[test]
fn busy_files_are_never_read_unjudged() {
    let rig = Rig::new(strict());
    rig.put("good", b"harmless");
    rig.put("bad", BAD);
    // Written, mapped, renamed over and read at once: whoever reads gets either nothing or good
    // bytes, for policy denies what nobody judged.
    rig.shell(
        "cat > writer.sh <<'E'
         for n in $(seq 150); do
           cat good > f; printf this-is-bad > f; cp good new; mv new f; ln -f f g
         done
         E
         for reader in 1 2 3; do
           (for n in $(seq 150); do cat f g 2>/dev/null; done; true) > out$reader &
         done
         sh writer.sh; wait
         ! grep -q bad out1 out2 out3",
    );
    rig.wait_for("quiet", |status| status["in_flight"] == 0);
}

#[test]
fn the_appliance_learns_where_verdicts_stand() {
    let rig = Rig::new(strict());
    rig.shared().wait("what was found", |book| {
        let last = book.fast_paths.last();
        last.is_some_and(|found| found.filesystems == 1 && found.standing == 1)
    });
}
