//! The packages in a fresh Debian: installed, upgraded while the agent runs, removed, purged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::{Server, ServerOptions, Spawn, debian_root, run, samples, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// What dpkg itself writes when it does anything.
const BOOKKEEPING: [&str; 4] = [
    "/var/lib/dpkg",
    "/var/log",
    "/var/cache",
    "/etc/ld.so.cache",
];

/// A Debian of its own: a layer over one that debootstrap made, and that is kept.
struct Root {
    dir: TempDir,
    mounted: Vec<PathBuf>,
}

impl Root {
    fn new() -> Result<Self> {
        let base = debian_root(&[])?;
        let dir = tempfile::Builder::new().prefix("lazaret-root-").tempdir()?;
        let layer = |name: &str| -> Result<PathBuf> {
            let path = dir.path().join(name);
            std::fs::create_dir(&path)?;
            Ok(path)
        };
        let (scratch, merged) = (layer("scratch")?, layer("merged")?);
        let mut root = Self {
            dir,
            mounted: Vec::new(),
        };
        // An upper layer must not lie on an overlay itself.
        root.mount(&["-t", "tmpfs", "-o", "size=2g", "tmpfs"], &scratch)?;
        let (upper, work) = (scratch.join("upper"), scratch.join("work"));
        std::fs::create_dir(&upper)?;
        std::fs::create_dir(&work)?;
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            base.display(),
            upper.display(),
            work.display()
        );
        root.mount(&["-t", "overlay", "-o", &layers, "overlay"], &merged)?;
        root.mount(&["-t", "proc", "proc"], &merged.join("proc"))?;
        root.mount(&["-t", "devtmpfs", "dev"], &merged.join("dev"))?;
        Ok(root)
    }

    fn mount(&mut self, what: &[&str], at: &Path) -> Result<()> {
        run(Command::new("mount").args(what).arg(at))?;
        self.mounted.push(at.to_owned());
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    /// Runs a shell script in it.
    fn shell(&self, script: &str) -> Result<String> {
        let mut chroot = Command::new("chroot");
        chroot
            .arg(self.path())
            .args(["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"])
            .args(["sh", "-euc", script]);
        run(&mut chroot)
    }

    fn dpkg(&self, action: &str, packages: &[PathBuf]) -> Result<()> {
        let mut names = Vec::new();
        for package in packages {
            let name = package.file_name().context("no name")?;
            std::fs::copy(package, self.path().join("tmp").join(name))?;
            names.push(format!("/tmp/{}", name.to_string_lossy()));
        }
        let names = names.join(" ");
        self.shell(&format!(
            "dpkg {action} --force-confold {names}; rm -f {names}"
        ))?;
        Ok(())
    }

    /// Every path in it but dpkg's own books.
    fn listing(&self) -> Result<BTreeSet<String>> {
        let all = self.shell("find / -xdev -not -path '/tmp/*'")?;
        let is_kept = |path: &&str| !BOOKKEEPING.iter().any(|books| path.starts_with(books));
        Ok(all.lines().filter(is_kept).map(str::to_owned).collect())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for at in self.mounted.iter().rev() {
            if let Err(error) = run(Command::new("umount").arg(at)) {
                eprintln!("{error}");
            }
        }
    }
}

/// Installs, upgrades and purges both packages in a fresh root.
pub(crate) fn test(packages: &[PathBuf], later: &[PathBuf]) -> Result<()> {
    let root = Root::new()?;
    let before = root.listing()?;
    root.dpkg("-i", packages)?;
    installed(&root)?;
    upgraded_while_running(&root, later)?;
    root.shell("dpkg --remove lazaret-agent lazaret-appliance")?;
    ensure!(
        root.path().join("etc/lazaret/agent.toml").is_file(),
        "a removal takes the configuration"
    );
    // What daemons leave behind in a life.
    root.shell(
        "mkdir -p /var/lib/lazaret-agent/quarantine /var/lib/lazaret /run/lazaret-agent
         touch /var/lib/lazaret-agent/ledger /var/lib/lazaret/ca.pem",
    )?;
    root.shell("dpkg --purge lazaret-agent lazaret-appliance")?;
    let after = root.listing()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "a purge leaves {left:?}");
    let lost: Vec<_> = before.difference(&after).collect();
    ensure!(lost.is_empty(), "a purge takes {lost:?}");
    println!("packages: installed, upgraded while guarding, removed, purged without a trace");
    Ok(())
}

fn installed(root: &Root) -> Result<()> {
    root.shell(
        "lazaret-agent --version; lazaret --version
         lazaret-agent check-config
         lazaret check-config --config /etc/lazaret/lazaret.toml
         test -s /usr/share/man/man8/lazaret-agent.8.gz
         test -s /usr/share/man/man8/lazaret.8.gz
         test -s /lib/systemd/system/lazaret-agent.service
         test \"$(stat -c %a /etc/lazaret/agent.toml)\" = 640",
    )?;
    let verified = run(Command::new("systemd-analyze")
        .arg(format!("--root={}", root.path().display()))
        .args(["verify", "lazaret-agent.service", "lazaret.service"]));
    verified.context("systemd does not like the units")?;
    Ok(())
}

/// The agent of the first package guards; the second one's takes over from it.
fn upgraded_while_running(root: &Root, later: &[PathBuf]) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let server = Server::start(&scratch.path().join("server"), &ServerOptions::default())?;
    let at = root.path().join("srv/guarded");
    std::fs::create_dir(&at)?;
    // In the root the guarded folder is a file system of its own.
    run(Command::new("mount")
        .args(["-t", "tmpfs", "guarded"])
        .arg(&at))?;
    let done = guarded(root, &server, &at, &scratch.path().join("agent.log"), later);
    run(Command::new("umount").arg(&at))?;
    std::fs::remove_dir(&at)?;
    done
}

fn guarded(root: &Root, server: &Server, at: &Path, log: &Path, later: &[PathBuf]) -> Result<()> {
    let configuration = format!(
        "[appliance]\naddresses = [\"{}\"]\n[guard]\ninclude = [\"/srv/guarded\"]\n",
        server.link
    );
    std::fs::write(root.path().join("etc/lazaret/agent.toml"), configuration)?;
    root.shell(&format!(
        "lazaret-agent enrol --controller {} --token {}",
        server.enrol,
        server.token()?
    ))?;
    let bad = at.join("bad.com");
    std::fs::write(&bad, samples::eicar())?;
    let agent = Spawn::new("agent", "chroot", log)
        .arg(root.path())
        .args(["/usr/bin/lazaret-agent", "run"])
        .start()?;
    let status = || -> Option<serde_json::Value> {
        let said = root.shell("lazaret-agent status --json").ok()?;
        serde_json::from_str(&said).ok()
    };
    let takeovers = || {
        let status = status().filter(|status| status["link"] == "up")?;
        status["supervisor"]["takeovers"].as_u64()
    };
    let guards = wait_until(PATIENCE, || takeovers() == Some(0));
    ensure!(guards, "it does not guard: {}", agent.log_tail());
    ensure!(std::fs::read(&bad).is_err(), "EICAR is not denied");
    root.dpkg("-i", later)?;
    let taken_over = wait_until(PATIENCE, || takeovers() == Some(1));
    ensure!(taken_over, "still the old one: {}", agent.log_tail());
    ensure!(std::fs::read(&bad).is_err(), "EICAR is not denied any more");
    ensure!(agent.stop()?.success(), "it does not end well");
    std::fs::remove_file(&bad)?;
    Ok(())
}
