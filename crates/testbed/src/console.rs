//! What a machine writes to its first serial port.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Bytes of the console in a message.
const TAIL_BYTES: usize = 3000;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A file that a hypervisor appends to.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
}

impl Console {
    /// In this file, which need not be there yet.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was said so far.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until something is found in what was said.
    ///
    /// # Errors
    /// That was not said in time; `otherwise`, with the end of what was.
    pub fn wait<T>(
        &self,
        patience: Duration,
        otherwise: &str,
        found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.wait_while(patience, otherwise, || Ok(true), found)
    }

    /// The same, of a machine that may end.
    pub(crate) fn wait_while<T>(
        &self,
        patience: Duration,
        otherwise: &str,
        mut is_running: impl FnMut() -> Result<bool>,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            let goes_on = is_running()? && Instant::now() <= deadline;
            let text = self.text();
            if let Some(found) = found(&text) {
                return Ok(found);
            }
            if !goes_on {
                let tail = text.floor_char_boundary(text.len().saturating_sub(TAIL_BYTES));
                bail!("{otherwise}: {}", text.get(tail..).unwrap_or_default());
            }
            std::thread::sleep(LOOK);
        }
    }
}
