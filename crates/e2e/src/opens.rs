//! An opener that never rests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::wait_until;

use crate::open;

const PATIENCE: Duration = Duration::from_secs(90);

/// Opens fresh files from other processes until told to stop.
#[derive(Debug)]
pub struct Opens {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Opens {
    /// Begins.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (told, count, folder) = (stop.clone(), done.clone(), folder.to_owned());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                let path = folder.join(format!("file-{number}"));
                std::fs::write(&path, format!("content {number}\n"))?;
                let opened = open(&path)?;
                ensure!(opened.allowed, "open {number} failed: {}", opened.said);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            stop,
            done,
            thread: Some(thread),
        }
    }

    /// Waits until so many more files were opened.
    ///
    /// # Errors
    /// They are not.
    pub fn some_more(&self, more: u64) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + more;
        let reached = wait_until(PATIENCE, || self.done.load(Ordering::Relaxed) >= goal);
        ensure!(
            reached,
            "opens have stopped at {}",
            self.done.load(Ordering::Relaxed)
        );
        Ok(())
    }

    /// Ends; how many were opened.
    ///
    /// # Errors
    /// An open failed.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished twice")?;
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the opener panicked"))??;
        Ok(self.done.load(Ordering::Relaxed))
    }
}
