//! What the demo runs on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use testbed::{
    Agent, AgentOptions, FileSystem, LoopMount, Relay, Server, ServerOptions, binary, rules_dir,
    samples,
};

/// Real files to copy.
const FILES: usize = 200;
/// Where they come from.
const FROM: [&str; 3] = ["/usr/bin", "/usr/share/doc", "/usr/lib/python3"];
/// Larger ones are left out.
const SIZE_MAX_BYTES: u64 = 4 << 20;
/// Room for them, sparse.
const IMAGE_BYTES: u64 = 1 << 30;

/// A file that must be denied.
pub(crate) struct Bad {
    pub(crate) path: PathBuf,
    pub(crate) what: &'static str,
    pub(crate) content: Vec<u8>,
}

/// The daemons and their files. Fields go in this order: the agent before its file system.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) server: Server,
    pub(crate) relay: Relay,
    pub(crate) clean: Vec<PathBuf>,
    pub(crate) bad: Vec<Bad>,
    mount: LoopMount,
    _scratch: TempDir,
}

impl Stage {
    /// Prepares the files, then starts the appliance, then the agent.
    pub(crate) fn set() -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("lazaret-demo-").tempdir()?;
        let mount = LoopMount::new(FileSystem::Ext4, IMAGE_BYTES)?;
        // Before anything guards: a guarded folder would take the samples away at once.
        let clean = copy_real_files(mount.path())?;
        let bad = write_samples(mount.path())?;
        let rules = scratch.path().join("demo.yar");
        let planted = samples::planted("DEMO");
        std::fs::write(
            &rules,
            format!("rule Demo_planted {{ strings: $mark = \"{planted}\" condition: $mark }}\n"),
        )?;
        println!("Starting the controller and appliance (lazaret up)");
        let options = ServerOptions {
            rules: vec![rules_dir(), rules],
            extra: "[removal]\non_malicious = \"quarantine\"\n".into(),
            ..ServerOptions::default()
        };
        let mut server = Server::start(&scratch.path().join("server"), &options)?;
        let relay = Relay::start(server.link.parse()?)?;
        server.link = relay.addr().to_string();
        println!("Enrolling and starting the agent (lazaret-agent run)");
        let options = AgentOptions {
            guard: vec![mount.path().to_owned()],
            ..AgentOptions::default()
        };
        let agent = Agent::start(&scratch.path().join("agent"), &server, &options, None)?;
        Ok(Self {
            agent,
            server,
            relay,
            clean,
            bad,
            mount,
            _scratch: scratch,
        })
    }

    /// The guarded folder.
    pub(crate) fn guarded(&self) -> &Path {
        self.mount.path()
    }

    /// Bytes of all files that were opened.
    pub(crate) fn bytes(&self) -> u64 {
        let clean = self.clean.iter().filter_map(|file| file.metadata().ok());
        let bad = self.bad.iter().map(|bad| bad.content.len() as u64);
        clean.map(|file| file.len()).sum::<u64>() + bad.sum::<u64>()
    }

    /// What a `lazaret … --json` command says.
    pub(crate) fn server_json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.server.cli(args)?)?)
    }

    /// A command for people to try.
    pub(crate) fn hint(&self, program: &str, command: &str) -> String {
        let config = match program {
            "lazaret" => self.server.config(),
            _ => self.agent.config(),
        };
        let path = binary(program).unwrap_or_else(|_| program.into());
        format!("{} {command} --config {}", path.display(), config.display())
    }

    /// Ends agent and appliance in order; both must call that a success.
    pub(crate) fn end(mut self) -> Result<()> {
        self.agent.stop()?;
        self.server.stop()
    }
}

fn copy_real_files(to: &Path) -> Result<Vec<PathBuf>> {
    let mut clean = Vec::new();
    for (number, from) in FROM.iter().enumerate() {
        let folder = to.join(number.to_string());
        std::fs::create_dir(&folder)?;
        let mut files = Vec::new();
        find(Path::new(from), &mut files);
        files.sort();
        for file in files.iter().take(FILES / FROM.len()) {
            let copy = folder.join(format!("{:03}", clean.len()));
            std::fs::copy(file, &copy)?;
            clean.push(copy);
        }
    }
    ensure!(!clean.is_empty(), "no real files found in {FROM:?}");
    Ok(clean)
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            find(&entry.path(), files);
        } else if kind.is_file()
            && let Ok(metadata) = entry.metadata()
            && (1..=SIZE_MAX_BYTES).contains(&metadata.len())
        {
            files.push(entry.path());
        }
    }
}

fn write_samples(to: &Path) -> Result<Vec<Bad>> {
    let eicar = samples::eicar();
    let nested = samples::tar_gz("invoices.zip", &samples::zip("2026/eicar.com", &eicar))?;
    let samples = [
        ("eicar.com", "EICAR", eicar),
        (
            "invoices.tar.gz",
            "EICAR inside a zip inside a tar.gz",
            nested,
        ),
        (
            "report.txt",
            "a file that matches a YARA rule",
            samples::marked("DEMO"),
        ),
    ];
    samples
        .into_iter()
        .map(|(name, what, content)| {
            let path = to.join(name);
            std::fs::write(&path, &content).with_context(|| format!("{}", path.display()))?;
            Ok(Bad {
                path,
                what,
                content,
            })
        })
        .collect()
}
