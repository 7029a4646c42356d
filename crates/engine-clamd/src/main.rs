//! The clamd engine: a program that the appliance starts, see `engine::worker`. Its workers hand
//! each file to a running clamd as a descriptor and translate the answer.
//!
//! clamd is ClamAV's own daemon, configured by its administrator; this program needs
//!
//! - `LocalSocket`, which the user `nobody` may connect to (`LocalSocketMode 666`, as in Debian);
//! - `AlertExceedsMax yes`, or else clamd calls what lies beyond its limits clean. Checked for each
//!   session, since a restarted clamd may be another one, and refused otherwise;
//! - `AlertEncrypted yes`, or else it calls encrypted archives clean. Checked at the start; a warning.

mod answer;
mod database;
mod limits_test;
mod session;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use engine::worker::Template;
use engine::{Sandbox, SyscallRule};
use proto::v1;

use database::Database;
use session::SessionError;
use worker::ClamdWorker;

/// The name in detections.
const ENGINE: &str = "clamd";
/// How long clamd may take over a VERSION, and over the self-test.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Has clamd scan files, for a Lazaret appliance.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// clamd's LocalSocket.
    #[arg(long)]
    socket: PathBuf,
    /// Files, and folders of files, that clamd judges by: its databases, its configuration. A
    /// change of them is a new generation. clamd tells the version of ClamAV's official databases
    /// only.
    #[arg(long)]
    database: Vec<PathBuf>,
    /// After a change of those files clamd has loaded them within this time, in seconds: its
    /// `SelfCheck` (600) and a margin. Verdicts given before are a generation of their own.
    #[arg(long, default_value_t = 900)]
    settle_s: u64,
    /// How often clamd is asked whether its database has changed, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    poll_s: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    engine::worker::run(|| Clamd::connect(args).map_err(|error| vec![error]))
}

/// The template: where clamd is, and what it was when this started.
struct Clamd {
    socket: PathBuf,
    poll: Duration,
    version: String,
    database: Database,
    generation: [u8; 16],
    warnings: Vec<String>,
}

impl Clamd {
    fn connect(args: Args) -> Result<Self, String> {
        let named = |error: SessionError| format!("clamd at {}: {error}", args.socket.display());
        let version = session::version(&args.socket, VERSION_TIMEOUT).map_err(named)?;
        let mut session = limits_test::open(&args.socket, VERSION_TIMEOUT).map_err(named)?;
        let warnings = limits_test::encrypted(&mut session, VERSION_TIMEOUT).map_err(named)?;
        let settle = Duration::from_secs(args.settle_s);
        let database = Database::read(args.database, settle)?;
        Ok(Self {
            generation: generation(&version, &database),
            poll: Duration::from_secs(args.poll_s),
            socket: args.socket,
            version,
            database,
            warnings: warnings.into_iter().collect(),
        })
    }
}

/// Same ClamAV, same database version, same files (where asked for): same generation.
fn generation(version: &str, database: &Database) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("lazaret engine-clamd generation 2");
    for text in [version, env!("CARGO_PKG_VERSION")] {
        hasher.update(text.as_bytes()).update(&[0]);
    }
    database.add_to(&mut hasher);
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

impl Template for Clamd {
    type Worker = ClamdWorker;

    fn ready(&self) -> v1::EngineReady {
        v1::EngineReady {
            name: ENGINE.to_owned(),
            version: self.version.clone(),
            generation: self.generation.to_vec(),
            // clamd does not say how many it has.
            rules: 0,
            context_sensitive: false,
            warnings: self.warnings.clone(),
            // ClamAV reads whole files: it has no plan.
            filter_bytes: 0,
        }
    }

    fn worker(&self) -> Result<ClamdWorker, String> {
        ClamdWorker::new(self.socket.clone())
            .map_err(|error| format!("clamd at {}: {error}", self.socket.display()))
    }

    /// Beyond the least: to connect again when clamd was restarted (or has closed an idle
    /// session), and to put inline content into a memory file that clamd can be given.
    fn sandbox(&self) -> Sandbox {
        let unix = u64::from(libc::AF_UNIX.unsigned_abs());
        let family = vec![(0, u64::from(u32::MAX), unix)];
        Sandbox {
            syscalls: vec![
                SyscallRule::only(libc::SYS_socket, family),
                SyscallRule::any(libc::SYS_connect),
                SyscallRule::any(libc::SYS_ppoll),
                SyscallRule::any(libc::SYS_memfd_create),
                SyscallRule::any(libc::SYS_pwrite64),
            ],
            // The folder, since a restarted clamd makes a new socket in it.
            unix_sockets: self
                .socket
                .parent()
                .map(Path::to_owned)
                .into_iter()
                .collect(),
            file_bytes_max: engine::host::INLINE_MAX_BYTES as u64,
            reserved_bytes: 64 << 20,
        }
    }

    fn check_interval(&self) -> Option<Duration> {
        Some(self.poll)
    }

    /// A clamd that does not answer is no change: its workers say so for each file.
    fn changed(&mut self) -> bool {
        self.database.has_changed()
            || session::version(&self.socket, VERSION_TIMEOUT).is_ok_and(|now| now != self.version)
    }
}
