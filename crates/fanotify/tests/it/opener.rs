//! Child processes that open files.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// After this long something hangs. Not a measure of speed.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// Looks again and again until `done`; panics when it takes so long that it hangs.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < HANG, "hung: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn read(&self, content: &str) {
        assert!(
            self.success && self.stdout == content,
            "expected {content:?}: {self:?}"
        );
    }

    pub(crate) fn was_denied(&self) {
        let denied = !self.success && self.stderr.contains("Operation not permitted");
        assert!(denied, "expected EPERM: {self:?}");
    }
}

/// A running child, killed when dropped. An opener that waits for an answer can be killed.
pub(crate) struct Opener(Child);

impl Opener {
    /// Runs a shell script in `/`, which is never marked.
    pub(crate) fn sh(script: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", script])
            .current_dir("/")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("a shell"))
    }

    pub(crate) fn cat(path: &Path) -> Self {
        Self::sh(&format!("exec cat '{}'", path.display()))
    }

    /// A child that has opened `path` for reading and writing and holds it until told to end.
    pub(crate) fn writer(path: &Path) -> Self {
        let mut writer = Self::sh(&format!(
            "exec 3<>'{}'; echo open; read line; exit 0",
            path.display()
        ));
        writer.says("open");
        writer
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("PIDs are small")
    }

    /// Waits until it says this line.
    pub(crate) fn says(&mut self, expected: &str) {
        let stdout = self.0.stdout.as_mut().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the child's word");
        assert_eq!(line.trim_end(), expected);
    }

    /// Whether it is still running, so waiting for what it asked.
    pub(crate) fn is_waiting(&mut self) -> bool {
        self.0.try_wait().expect("a child of ours").is_none()
    }

    /// Gives it a line to read, and waits until it ends.
    pub(crate) fn finish(mut self) -> Ended {
        let mut stdin = self.0.stdin.take().expect("piped");
        // It may not read, and may have ended.
        let _ = stdin.write_all(b"\n");
        drop(stdin);
        until("a child process", || !self.is_waiting());
        let mut ended = Ended {
            success: self.0.wait().expect("a child of ours").success(),
            stdout: String::new(),
            stderr: String::new(),
        };
        let (stdout, stderr) = (self.0.stdout.as_mut(), self.0.stderr.as_mut());
        stdout
            .expect("piped")
            .read_to_string(&mut ended.stdout)
            .expect("UTF-8");
        stderr
            .expect("piped")
            .read_to_string(&mut ended.stderr)
            .expect("UTF-8");
        ended
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
