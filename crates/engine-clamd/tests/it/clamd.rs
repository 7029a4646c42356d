//! A private clamd: its own configuration, database, folder and socket. Ended when dropped.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A database line that matches nothing: clamd does not start without any.
pub(crate) const NOTHING: &str = "00000000000000000000000000000000:1:Nothing\n";
/// clam.exe of the package clamav-testfiles, by which all its 44 files are found.
pub(crate) const CLAM_EXE: &str = "aa15bcf478d165efd2065190eb473bcb:544:Clam-Test-File\n";

pub(crate) struct Clamd {
    folder: tempfile::TempDir,
    process: Child,
}

impl Clamd {
    /// With this `.hdb` database and these lines of configuration.
    pub(crate) fn start(database: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Workers are nobody, and clamd's socket lies in here.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("opened");
        std::fs::create_dir(folder.path().join("db")).expect("a folder");
        std::fs::write(folder.path().join("db/test.hdb"), database).expect("written");
        configure(&folder, more);
        let process = run(&folder);
        let clamd = Self { folder, process };
        clamd.wait();
        clamd
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("clamd.sock")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("db")
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket());
    }

    /// With these lines of configuration instead of the former ones.
    pub(crate) fn start_again_with(&mut self, more: &str) {
        configure(&self.folder, more);
        self.start_again();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = run(&self.folder);
        self.wait();
    }

    /// Until it answers; a minute is only the end of patience.
    fn wait(&self) {
        for _ in 0..600 {
            if self.answers() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("clamd does not start");
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else {
            return false;
        };
        let mut answer = String::new();
        let asked = stream.write_all(b"zPING\0");
        asked
            .and_then(|()| stream.read_to_string(&mut answer))
            .is_ok()
            && answer == "PONG\0"
    }
}

fn configure(folder: &tempfile::TempDir, more: &str) {
    let path = folder.path().display();
    let config = format!(
        "Foreground yes\nLocalSocket {path}/clamd.sock\nLocalSocketMode 666\n\
         DatabaseDirectory {path}/db\nTemporaryDirectory {path}\n{more}\n"
    );
    std::fs::write(folder.path().join("clamd.conf"), config).expect("written");
}

fn run(folder: &tempfile::TempDir) -> Child {
    Command::new("/usr/sbin/clamd")
        .arg("--config-file")
        .arg(folder.path().join("clamd.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("clamd runs: it is in Debian's package clamav-daemon")
}

impl Drop for Clamd {
    fn drop(&mut self) {
        self.stop();
    }
}
