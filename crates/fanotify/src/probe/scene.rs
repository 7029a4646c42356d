//! Where experiments happen: a folder on the file system in question, guarded by a group that
//! lets everything pass and notes what it was asked about.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::standing::{Breaks, NotPlaced, StandingVerdict};
use crate::{
    Answer, Event, EventBuffer, FileIdentity, Group, GroupOptions, Interrupter, MarkMask, ReadError,
};

/// Why an experiment does not bear out what it is for.
#[derive(Debug)]
pub(super) enum Failed {
    /// Something else happened.
    Otherwise(String),
    /// It could not be tried.
    Untried(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Untried(error.to_string())
    }
}

/// The experiment holds only if this does.
pub(super) fn ensure(holds: bool, otherwise: &str) -> Result<(), Failed> {
    if holds {
        return Ok(());
    }
    Err(Failed::Otherwise(otherwise.to_owned()))
}

/// What the kernel told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Open,
    CloseWrite,
}

/// How long anything may take that should happen at once, on a machine that is busy with booting.
const PATIENCE: Duration = Duration::from_secs(10);

type Log = Arc<Mutex<Vec<(Told, u64)>>>;

pub(super) struct Scene {
    folder: Folder,
    /// Made in it.
    files: AtomicU32,
    /// The close of one of them was not told.
    tells_no_closes: AtomicBool,
    group: Arc<Group>,
    log: Log,
    pub(super) breaks: Breaks,
    _reader: Reader,
}

/// Removed with all that is in it when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is empty or was not made.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ended when dropped.
struct Reader {
    interrupter: Interrupter,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.interrupter.interrupt();
        if let Some(thread) = self.thread.take() {
            // A panic there ends the group, which lets everybody go.
            let _ = thread.join();
        }
    }
}

impl Scene {
    pub(super) fn set(directory: &Path) -> Result<Self, Failed> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = directory.join(format!(".lazaret-probe-{pid}-{count}"));
        std::fs::create_dir(&folder)?;
        let folder = Folder(folder);
        let untried = |error: &dyn std::error::Error| Failed::Untried(error.to_string());
        let group = Group::new(GroupOptions {
            default_answer: Answer::Allow,
        })
        .map_err(|error| untried(&error))?;
        let group = Arc::new(group.showing_own_opens());
        group
            .mark_filesystem(&folder.0, MarkMask::ALL)
            .map_err(|error| untried(&error))?;
        let log = Log::default();
        let thread = {
            let (group, log) = (Arc::clone(&group), Arc::clone(&log));
            let thread = std::thread::Builder::new().name("probe-reader".into());
            thread.spawn(move || note_all(&group, &log))?
        };
        let reader = Reader {
            interrupter: group.interrupter(),
            thread: Some(thread),
        };
        Ok(Self {
            folder,
            files: AtomicU32::new(0),
            tells_no_closes: AtomicBool::new(false),
            group,
            log,
            breaks: Breaks::here()?,
            _reader: reader,
        })
    }

    /// A new file with this content that nobody has open.
    pub(super) fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf, Failed> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.0.join(format!("{name}-{number}"));
        std::fs::write(&path, content)?;
        // Its close is told some time later, and shall not be taken for another one's.
        let ino = inode(&path)?;
        // Waited for once: where closes are not told nothing is sound.
        let is_told = || self.lock().contains(&(Told::CloseWrite, ino));
        if self.tells_no_closes.load(Ordering::Relaxed) || !until(is_told) {
            self.tells_no_closes.store(true, Ordering::Relaxed);
            ensure(false, "the close of a new file was not told")?;
        }
        Ok(path)
    }

    /// Does something, and says what was told about the file meanwhile.
    pub(super) fn told<T>(
        &self,
        path: &Path,
        does: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<(T, Vec<Told>)> {
        let ino = inode(path)?;
        let before = self.lock().len();
        let done = does()?;
        let log = self.lock();
        let told = log.iter().skip(before).filter(|(_, of)| *of == ino);
        Ok((done, told.map(|(told, _)| *told).collect()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Told, u64)>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an open for reading is told as.
    pub(super) fn told_of_open(&self, path: &Path) -> io::Result<Vec<Told>> {
        Ok(self.told(path, || File::open(path))?.1)
    }

    /// Places a verdict on what the file is now.
    pub(super) fn place(&self, path: &Path) -> Result<StandingVerdict, Failed> {
        let file: OwnedFd = File::open(path)?.into();
        let judged = FileIdentity::of(file.as_fd())?;
        let placed = self
            .group
            .place(file.into(), self.breaks.owner(), |now| *now == judged);
        placed.map_err(|error| match error {
            NotPlaced::Lease(_) | NotPlaced::Mark(_) => Failed::Untried(error.to_string()),
            NotPlaced::Changed => Failed::Otherwise(error.to_string()),
        })
    }

    /// `act` has to wait for the verdict to go, and we have to be told of it.
    pub(super) fn waits_for(
        &self,
        verdict: StandingVerdict,
        act: impl FnOnce() -> io::Result<()> + Send,
    ) -> Result<(), Failed> {
        std::thread::scope(|scope| {
            let actor = scope.spawn(act);
            let told = until(|| {
                let mut told = false;
                let taken = self.breaks.take(|_| told = true);
                taken.is_err() || told || actor.is_finished()
            });
            let waited = !actor.is_finished();
            let broken = !verdict.is_intact();
            drop(verdict);
            let acted = actor.join();
            ensure(told && waited, "a writer was let in beside the lease")?;
            ensure(broken, "the lease's holder was not told of the writer")?;
            match acted {
                Ok(acted) => Ok(acted?),
                Err(_) => Err(Failed::Untried("the writer broke off".to_owned())),
            }
        })
    }
}

fn inode(path: &Path) -> io::Result<u64> {
    Ok(rustix::fs::stat(path)?.st_ino)
}

/// False: it never came.
fn until(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() >= PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// Notes, then lets pass; opens nothing.
fn note_all(group: &Group, log: &Log) {
    let mut buffer = EventBuffer::new(64);
    let note = |told: Told, identity: io::Result<FileIdentity>| {
        if let Ok(identity) = identity {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push((told, identity.ino));
        }
    };
    loop {
        match group.read(&mut buffer) {
            Ok(events) => events.for_each(|event| match event {
                Event::Permission(event) => {
                    note(Told::Open, event.identity());
                    // An error means that nobody waits any more.
                    let _ = event.answer(Answer::Allow);
                }
                Event::CloseWrite(event) => note(Told::CloseWrite, event.identity()),
                Event::Overflow => {}
            }),
            Err(ReadError::Unopenable(_) | ReadError::OutOfDescriptors(_)) => {}
            Err(ReadError::Interrupted | ReadError::Failed(_) | ReadError::Malformed(_)) => return,
        }
    }
}
