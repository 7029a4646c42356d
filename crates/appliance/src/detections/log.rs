//! The file: written by one thread, so that nobody who serves a guest waits for the disk.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use daemon::log::RateLimit;

use super::DetectionLimits;
use super::record::Line;

/// Lines that may wait for the disk; more are lost, counted and complained about.
const WAITING_MAX: usize = 4096;

static FAILED: RateLimit = RateLimit::new(6);

/// The log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot use the log of detections", path.display())]
pub struct LogError {
    /// The file.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

/// Hands lines to the thread that writes.
#[derive(Debug)]
pub(super) struct LogWriter {
    to_thread: Option<SyncSender<Box<Line>>>,
    thread: Option<JoinHandle<()>>,
    lost: Arc<AtomicU64>,
}

/// Shows every line of the log before this and of this one to `each`. Lines that are no lines of
/// ours, such as one that a crash cut, are passed over.
pub(super) fn read_back(path: &Path, each: &mut dyn FnMut(Line)) -> Result<(), LogError> {
    for path in [rotated(path, 1), path.to_owned()] {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(LogError { path, source }),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(|source| LogError {
                path: path.clone(),
                source,
            })?;
            if let Ok(line) = serde_json::from_slice(&line) {
                each(line);
            }
        }
    }
    Ok(())
}

fn rotated(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

impl LogWriter {
    pub(super) fn start(path: PathBuf, limits: DetectionLimits) -> Result<Self, LogError> {
        let failed = |source| LogError {
            path: path.clone(),
            source,
        };
        let (file, bytes) = open(&path).map_err(failed)?;
        let lost = Arc::new(AtomicU64::new(0));
        let (to_thread, lines) = sync_channel(WAITING_MAX);
        let writer = Writer {
            path: path.clone(),
            file,
            bytes,
            limits,
            lost: lost.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("detections".into())
            .spawn(move || writer.run(&lines))
            .map_err(failed)?;
        Ok(Self {
            to_thread: Some(to_thread),
            thread: Some(thread),
            lost,
        })
    }

    /// Never waits.
    pub(super) fn append(&self, line: Line) {
        let Some(to_thread) = &self.to_thread else {
            return;
        };
        match to_thread.try_send(Box::new(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                if let Some(suppressed) = FAILED.allow(Instant::now()) {
                    tracing::error!(suppressed, "a detection was not logged: the disk is slow");
                }
            }
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for LogWriter {
    /// Whatever was appended is on disk when this returns.
    fn drop(&mut self) {
        drop(self.to_thread.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that logs detections ended badly");
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    bytes: u64,
    limits: DetectionLimits,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Box<Line>>) {
        while let Ok(first) = waiting.recv() {
            let mut batch = Vec::new();
            let mut lines = 0;
            for line in std::iter::once(first).chain(waiting.try_iter()) {
                if serde_json::to_writer(&mut batch, &line).is_ok() {
                    batch.push(b'\n');
                    lines += 1;
                }
            }
            if let Err(error) = self.write(&batch) {
                self.lost.fetch_add(lines, Ordering::Relaxed);
                if let Some(suppressed) = FAILED.allow(Instant::now()) {
                    tracing::error!(path = %self.path.display(), %error, suppressed,
                        "detections were not logged");
                }
            }
        }
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        if self.bytes >= self.limits.log_bytes_max
            && let Err(error) = self.rotate()
        {
            // Better a log that is too long than none, up to a point.
            if self.bytes >= self.limits.log_bytes_max.saturating_mul(2) {
                return Err(error);
            }
            if let Some(suppressed) = FAILED.allow(Instant::now()) {
                tracing::error!(path = %self.path.display(), %error, suppressed,
                    "the log of detections was not rotated");
            }
        }
        self.file.write_all(batch)?;
        self.bytes += batch.len() as u64;
        self.file.sync_data()
    }

    /// Makes the next file before anything is moved: where that fails, nothing has changed. Where
    /// a move fails, the next try goes on from there.
    fn rotate(&mut self) -> io::Result<()> {
        let mut next = self.path.as_os_str().to_owned();
        next.push(".new");
        let (file, bytes) = open(Path::new(&next))?;
        for number in (1..self.limits.logs_kept).rev() {
            match fs::rename(rotated(&self.path, number), rotated(&self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::rename(&self.path, rotated(&self.path, 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&next, &self.path)?;
        (self.file, self.bytes) = (file, bytes);
        Ok(())
    }
}

/// Opens for appending. A last line that a crash cut is ended, so that the next one is whole.
fn open(path: &Path) -> io::Result<(File, u64)> {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let mut file = File::options()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let bytes = file.metadata()?.len();
    let mut last = [b'\n'];
    if bytes > 0 {
        file.read_exact_at(&mut last, bytes - 1)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    Ok((file, bytes))
}
