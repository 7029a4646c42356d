//! A hunt for races: writers, mapped stores, renames, links and readers on the same few files, by
//! seed, against the whole agent with verdicts in the kernel.
//!
//! The oracle: a reader that had a file open while nobody could write to it never gets bytes that
//! are malicious, nor bytes whose digest no appliance called clean. Policy denies what nobody judged.
//!
//! `LAZARET_RACES_OPS` asks for so many operations instead of a few (`./x test races`).

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanotify::probe::SharedMapping;
use model::{Digest, Disposition, Policy};

use crate::puppet::BAD;
use crate::rig::Rig;

/// Seed, operations and folder of a process that plays the guest.
const ACTOR: &str = "LAZARET_RACES_ACTOR";
/// Operations of all writers of the short form.
const SHORT_OPS: u64 = 2000;
/// … of one seed, with an agent of its own: where writers came to a file its verdict stands no more
/// for long, so that few verdicts stand after these.
const SEED_OPS: u64 = 4000;
const SEEDS_MIN: u64 = 2;
const NAMES: u64 = 5;
const WRITERS: u64 = 2;
const READERS: u64 = 3;
/// `O_PATH`.
const PATH_ONLY: i32 = 0o10_000_000;

#[test]
fn no_reader_gets_bytes_that_nobody_judged() {
    if let Ok(actor) = std::env::var(ACTOR) {
        return act(&actor);
    }
    let ops = std::env::var("LAZARET_RACES_OPS").map_or(SHORT_OPS, |ops| ops.parse().unwrap());
    let seeds = (ops / SEED_OPS).max(SEEDS_MIN);
    for seed in 1..=seeds {
        hunt(seed, ops / seeds);
    }
}

fn hunt(seed: u64, ops: u64) {
    let rig = Rig::new(Policy {
        open_budget: Duration::from_secs(60),
        exec_budget: Duration::from_secs(60),
        on_unscanned: Disposition::Deny,
        scan_on_close: seed.is_multiple_of(2),
        ..Policy::default()
    });
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "races::no_reader_gets_bytes_that_nobody_judged",
            "--nocapture",
        ])
        .env(
            ACTOR,
            format!("{seed} {ops} {}", rig.mount.path().display()),
        )
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "seed {seed}: {said}");
    let judged: HashSet<Vec<u8>> = {
        let shared = rig.shared();
        let book = shared.book();
        book.checks
            .iter()
            .map(|check| check.blake3.to_vec())
            .collect()
    };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let read: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("read "))
        .collect();
    let known: HashSet<String> = judged.iter().map(|it| hex(it)).collect();
    for digest in &read {
        assert!(
            known.contains(*digest),
            "seed {seed}: {digest} was read and never judged"
        );
    }
    let status = rig.status();
    eprintln!(
        "seed {seed}: {ops} operations, {} different contents read undisturbed, {} questions, \
         {} verdicts placed, {} taken down by writers",
        read.len(),
        judged.len(),
        status["standing"]["placed"],
        status["standing"]["broken"],
    );
    assert!(
        !read.is_empty(),
        "seed {seed}: nothing was read undisturbed"
    );
    assert!(status["standing"]["placed"].as_u64() > Some(0), "{status}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who writes to which inode: changes with each writer that comes or goes, odd while one is there.
#[derive(Default)]
struct Writing {
    inodes: Mutex<HashMap<u64, Arc<Inode>>>,
}

#[derive(Default)]
struct Inode {
    changes: AtomicU64,
    writers: AtomicU64,
    /// A mapping must not be cut off under whoever stores into it.
    pen: Mutex<()>,
}

impl Writing {
    fn of(&self, ino: u64) -> Arc<Inode> {
        Arc::clone(self.inodes.lock().unwrap().entry(ino).or_default())
    }
}

/// Announces a writer of an inode, until it is dropped.
struct Announced(Arc<Inode>);

impl Announced {
    fn on(inode: Arc<Inode>) -> Self {
        inode.writers.fetch_add(1, Ordering::SeqCst);
        inode.changes.fetch_add(1, Ordering::SeqCst);
        Self(inode)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        self.0.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A small generator; the same seed does the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

struct Stage {
    dir: PathBuf,
    writing: Writing,
    made: AtomicU64,
    done: AtomicU64,
    ops: u64,
    read: Mutex<HashSet<Digest>>,
}

/// The guest's part: a process of threads.
fn act(actor: &str) {
    let mut words = actor.splitn(3, ' ');
    let seed: u64 = words.next().unwrap().parse().unwrap();
    let ops = words.next().unwrap().parse().unwrap();
    let stage = Stage {
        dir: words.next().unwrap().into(),
        writing: Writing::default(),
        made: AtomicU64::new(0),
        done: AtomicU64::new(0),
        ops,
        read: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for thread in 0..WRITERS + READERS {
            let stage = &stage;
            let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (thread + 1));
            scope.spawn(move || stage.play(thread < WRITERS, dice));
        }
    });
    let mut out = std::io::stdout().lock();
    for digest in stage.read.lock().unwrap().iter() {
        writeln!(out, "read {digest}").unwrap();
    }
}

impl Stage {
    fn play(&self, writes: bool, mut dice: Dice) {
        // Only what changes files counts: readers go on for as long.
        let counted = u64::from(writes);
        while self.done.fetch_add(counted, Ordering::Relaxed) < self.ops {
            let name = self.name(&mut dice);
            if !writes {
                self.read(&name);
                continue;
            }
            // What another thread renamed away meanwhile is of no interest.
            let _ = match dice.roll(6) {
                0 | 1 => self.replace(&name, &mut dice),
                2 => self.rewrite(&name, &mut dice),
                3 => self.store(&name, &mut dice),
                4 => std::fs::rename(&name, self.name(&mut dice)),
                _ => {
                    let link = self.name(&mut dice);
                    let _ = std::fs::remove_file(&link);
                    std::fs::hard_link(&name, link)
                }
            };
        }
    }

    fn name(&self, dice: &mut Dice) -> PathBuf {
        self.dir.join(format!("f{}", dice.roll(NAMES)))
    }

    /// Never the same twice. Malicious with `t` in front, and one stored byte changes which.
    fn content(&self, dice: &mut Dice) -> Vec<u8> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut content = BAD.to_vec();
        content[0] = Self::front(dice);
        content.extend_from_slice(format!(" {number}").as_bytes());
        content
    }

    fn front(dice: &mut Dice) -> u8 {
        if dice.roll(2) == 0 { BAD[0] } else { b'X' }
    }

    /// The file of this name and who writes to it, before it is opened.
    fn find(&self, name: &Path) -> std::io::Result<(File, Arc<Inode>)> {
        let found = OpenOptions::new()
            .read(true)
            .custom_flags(PATH_ONLY)
            .open(name)?;
        let inode = self.writing.of(found.metadata()?.ino());
        Ok((found, inode))
    }

    fn replace(&self, name: &Path, dice: &mut Dice) -> std::io::Result<()> {
        let content = self.content(dice);
        let new = self
            .dir
            .join(format!("n{}", self.made.fetch_add(1, Ordering::Relaxed)));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
        let announced = Announced::on(self.writing.of(file.metadata()?.ino()));
        file.write_all(&content)?;
        drop(file);
        drop(announced);
        std::fs::rename(new, name)
    }

    fn rewrite(&self, name: &Path, dice: &mut Dice) -> std::io::Result<()> {
        let content = self.content(dice);
        let (found, inode) = self.find(name)?;
        let _pen = inode.pen.lock().unwrap();
        let _announced = Announced::on(Arc::clone(&inode));
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(link(&found))?;
        file.write_all(&content)
    }

    fn store(&self, name: &Path, dice: &mut Dice) -> std::io::Result<()> {
        let front = Self::front(dice);
        let (found, inode) = self.find(name)?;
        let _pen = inode.pen.lock().unwrap();
        let _announced = Announced::on(Arc::clone(&inode));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(link(&found))?;
        if file.metadata()?.len() >= BAD.len() as u64 {
            let mut mapping = SharedMapping::of(&file)?;
            drop(file);
            mapping.store(front);
        }
        Ok(())
    }

    fn read(&self, name: &Path) {
        let Ok((found, inode)) = self.find(name) else {
            return;
        };
        let before = inode.changes.load(Ordering::SeqCst);
        let undisturbed = |inode: &Inode| {
            inode.writers.load(Ordering::SeqCst) == 0
                && inode.changes.load(Ordering::SeqCst) == before
        };
        if !undisturbed(&inode) {
            return;
        }
        let Ok(mut file) = File::open(link(&found)) else {
            return;
        };
        let mut content = Vec::new();
        if file.read_to_end(&mut content).is_err() || !undisturbed(&inode) || content.is_empty() {
            return;
        }
        let bad = content.starts_with(BAD);
        assert!(!bad, "read: {}", String::from_utf8_lossy(&content));
        self.read.lock().unwrap().insert(Digest::of(&content));
    }
}

/// The very file, whatever its name is now.
fn link(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
