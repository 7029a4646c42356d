//! The peer: real clamd and clamonacc with a small database of one's own.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{Pin, Process, Spawn, free_port_on, wait_until};

/// The user that Debian's packages make; clamonacc lets its processes through.
const USER: &str = "clamav";

/// Where clamd listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClamdListen {
    /// On a loopback port of its own.
    Tcp,
    /// On a unix socket.
    Unix,
}

/// A running clamd.
#[derive(Debug)]
pub struct Clamd {
    process: Process,
    config: PathBuf,
    tcp: Option<SocketAddr>,
    socket: PathBuf,
}

impl Clamd {
    /// Starts one with these database files (name with extension, content) under `dir`, which is
    /// made, and waits until it answers.
    ///
    /// # Errors
    /// clamd is not installed, refuses the database, or does not answer in 30 s.
    pub fn start(
        dir: &Path,
        database: &[(&str, &str)],
        listen: ClamdListen,
        pin: Pin,
    ) -> Result<Self> {
        let db = dir.join("db");
        std::fs::create_dir_all(&db)?;
        for (name, content) in database {
            std::fs::write(db.join(name), content)?;
        }
        open_to_clamav(dir)?;
        let socket = dir.join("clamd.sock");
        let tcp = match listen {
            ClamdListen::Tcp => Some(free_port()?),
            ClamdListen::Unix => None,
        };
        let config = dir.join("clamd.conf");
        std::fs::write(&config, configuration(&db, dir, tcp, &socket))?;
        let process = Spawn::new("clamd", "clamd", dir.join("clamd.log"))
            .args(["--foreground", "--config-file"])
            .arg(&config)
            .pin(pin)
            .start()?;
        let mut clamd = Self {
            process,
            config,
            tcp,
            socket,
        };
        clamd.wait_ready()?;
        Ok(clamd)
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its port, where it listens on TCP.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Its unix socket, where it listens on one.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn wait_ready(&mut self) -> Result<()> {
        let mut ended = false;
        let ready = wait_until(Duration::from_secs(60), || {
            ended = !self.process.is_running().unwrap_or(false);
            ended || self.ping().is_ok()
        });
        ensure!(
            ready && !ended,
            "clamd does not answer\n{}",
            self.process.log_tail()
        );
        Ok(())
    }

    fn ping(&self) -> Result<()> {
        let mut reply = String::new();
        match self.tcp {
            Some(addr) => {
                let mut stream = TcpStream::connect(addr)?;
                stream.write_all(b"zPING\0")?;
                stream.read_to_string(&mut reply)?;
            }
            None => {
                let mut stream = UnixStream::connect(&self.socket)?;
                stream.write_all(b"zPING\0")?;
                stream.read_to_string(&mut reply)?;
            }
        }
        ensure!(reply == "PONG\0", "said {reply:?}");
        Ok(())
    }
}

fn configuration(db: &Path, temp: &Path, tcp: Option<SocketAddr>, socket: &Path) -> String {
    let (db, temp) = (db.display(), temp.display());
    let mut text = format!(
        "Foreground yes\nUser {USER}\nDatabaseDirectory {db}\nTemporaryDirectory {temp}\n\
         SelfCheck 0\nAlertExceedsMax yes\nMaxThreads 4\n"
    );
    let listen = match tcp {
        Some(addr) => writeln!(text, "TCPSocket {}\nTCPAddr {}", addr.port(), addr.ip()),
        None => writeln!(text, "LocalSocket {}", socket.display()),
    };
    listen.expect("writing to a String cannot fail");
    text
}

/// A port that was free a moment ago; clamd cannot be given port 0.
fn free_port() -> Result<SocketAddr> {
    Ok(([127, 0, 0, 1], free_port_on("127.0.0.1")?).into())
}

/// Lets clamd, which is not root, reach its folder.
fn open_to_clamav(dir: &Path) -> Result<()> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == USER).then_some(())?;
        let mut id = || fields.next()?.parse::<u32>().ok();
        // The password's field is not a number.
        id();
        Some((id()?, id()?))
    });
    let (uid, gid) = ids.with_context(|| format!("no user {USER}: is clamav-daemon installed?"))?;
    chown(dir, Some(uid), Some(gid))?;
    for parent in dir
        .ancestors()
        .take_while(|path| *path != Path::new("/tmp"))
    {
        let mode = std::fs::metadata(parent)?.permissions().mode();
        std::fs::set_permissions(parent, PermissionsExt::from_mode(mode | 0o011))?;
    }
    Ok(())
}

/// clamonacc, guarding one folder through a clamd on TCP.
#[derive(Debug)]
pub struct Clamonacc {
    process: Process,
}

impl Clamonacc {
    /// Starts one that really blocks: folder by folder, with prevention, streaming. `clamd_at`
    /// is where it reaches clamd, such as a relay. Returns when `probe`, a file in `guarded` that
    /// clamd calls malicious, is denied.
    ///
    /// # Errors
    /// It is not installed, ends, or does not deny `probe` in 30 s.
    pub fn start(
        dir: &Path,
        clamd_at: SocketAddr,
        guarded: &Path,
        probe: &Path,
        pin: Pin,
    ) -> Result<Self> {
        let config = dir.join("clamonacc.conf");
        let (port, ip, path) = (clamd_at.port(), clamd_at.ip(), guarded.display());
        std::fs::write(
            &config,
            format!(
                "TCPSocket {port}\nTCPAddr {ip}\nOnAccessIncludePath {path}\n\
                 OnAccessPrevention yes\nOnAccessExcludeUname {USER}\n"
            ),
        )?;
        let process = Spawn::new("clamonacc", "clamonacc", dir.join("clamonacc.log"))
            .args(["--foreground", "--stream", "--config-file"])
            .arg(&config)
            .pin(pin)
            .start()?;
        let mut clamonacc = Self { process };
        let mut ended = false;
        let ready = wait_until(Duration::from_secs(60), || {
            ended = !clamonacc.process.is_running().unwrap_or(false);
            ended || std::fs::File::open(probe).is_err()
        });
        if ended || !ready {
            bail!(
                "clamonacc does not deny {}\n{}",
                probe.display(),
                clamonacc.process.log_tail()
            );
        }
        Ok(clamonacc)
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// True while it runs; it is known to abort under load.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        self.process.is_running()
    }
}
