//! Real libvirt hosts, each in namespaces of its own. Needs root and the packages
//! libvirt-daemon-system, libvirt-clients, qemu-system-x86 and util-linux.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Process, Spawn, run, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// How a libvirt host listens beside its unix socket.
#[derive(Debug, Clone)]
pub enum LibvirtListen {
    /// Nowhere.
    UnixOnly,
    /// On TCP port 16509 in its network namespace, to whoever asks: for migrations between hosts.
    OpenTcp,
    /// On TLS on this port of 127.0.0.1, with SASL (SCRAM-SHA-256) for one user.
    TlsWithPassword {
        /// The port.
        port: u16,
        /// PEM files: the CA, the server's certificate, its key.
        files: [PathBuf; 3],
        /// Name and password.
        login: [String; 2],
    },
}

/// A host: libvirtd in its own mount, process and host-name namespaces, with its own state. All
/// that runs in it (QEMU too) ends with the guard.
#[derive(Debug)]
pub struct LibvirtHost {
    process: Option<Process>,
    dir: PathBuf,
    name: String,
}

impl LibvirtHost {
    /// Starts one; `dir` must not exist yet. `index` (1 to 9) makes its uuid and, with `netns`
    /// (a network namespace's name), its place in the network of hosts.
    ///
    /// # Errors
    /// Without root or the packages, or where libvirtd is not ready in a minute.
    pub fn start(
        dir: &Path,
        index: u8,
        netns: Option<&str>,
        listen: &LibvirtListen,
    ) -> Result<Self> {
        for folder in ["run", "varlib", "log", "cache", "etc", "sasl"] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        let name = format!("host{index}.test");
        configure(dir, index, listen)?;
        if let LibvirtListen::TlsWithPassword { login, .. } = listen {
            make_login(dir, &name, login)?;
        }
        let script = dir.join("start.sh");
        std::fs::write(&script, start_script(dir, &name, listen))?;
        let isolated = [
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ];
        let log = dir.join("libvirtd.log");
        let spawn = match netns {
            Some(netns) => Spawn::new(&name, "ip", &log).args(["netns", "exec", netns, "unshare"]),
            None => Spawn::new(&name, "unshare", &log),
        };
        let process = spawn.args(isolated).arg("bash").arg(&script).start()?;
        let host = Self {
            process: Some(process),
            dir: dir.to_owned(),
            name,
        };
        let is_ready = wait_until(PATIENCE, || host.virsh("qemu:///system", &["uri"]).is_ok());
        ensure!(is_ready, "libvirtd is not ready\n{}", host.log_tail());
        Ok(host)
    }

    /// Its unix socket, which is reached from any namespace.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/libvirt-sock")
    }

    /// Where it makes the sockets of its guests' channels, in a folder for each guest.
    #[must_use]
    pub fn channels(&self) -> PathBuf {
        self.dir.join("varlib/qemu/channel/target")
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The end of libvirtd's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let process = self.process.as_ref().map(Process::log_tail);
        process.unwrap_or_default()
    }

    /// A virsh on one of its drivers (`qemu:///system`, `test:///default`).
    #[must_use]
    pub fn virsh_command(&self, driver: &str) -> Command {
        let (scheme, path) = driver.split_once(":///").unwrap_or((driver, ""));
        let uri = format!("{scheme}+unix:///{path}?socket={}", self.socket().display());
        let mut command = Command::new("virsh");
        command.args(["-q", "-c", &uri]);
        command
    }

    /// Runs a command of virsh and gives its standard output.
    ///
    /// # Errors
    /// Where it fails.
    pub fn virsh(&self, driver: &str, args: &[&str]) -> Result<String> {
        run(self.virsh_command(driver).args(args)).with_context(|| self.name.clone())
    }
}

impl Drop for LibvirtHost {
    fn drop(&mut self) {
        // unshare ignores SIGTERM; killed, it takes the whole namespace along.
        if let Some(Err(error)) = self.process.take().map(Process::kill) {
            eprintln!("{}: {error}", self.name);
        }
    }
}

fn configure(dir: &Path, index: u8, listen: &LibvirtListen) -> Result<()> {
    let mut text = format!(
        "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
         host_uuid = \"0000000{index}-1111-2222-3333-444444444444\"\n\
         log_outputs = \"2:stderr\"\n"
    );
    match listen {
        LibvirtListen::UnixOnly => text.push_str("listen_tls = 0\n"),
        LibvirtListen::OpenTcp => {
            text.push_str("listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\n");
        }
        LibvirtListen::TlsWithPassword { port, files, .. } => {
            let [ca, cert, key] = files;
            write!(
                text,
                "listen_tls = 1\nlisten_addr = \"127.0.0.1\"\ntls_port = \"{port}\"\n\
                 auth_tls = \"sasl\"\ntls_no_sanity_certificate = 1\n\
                 tls_no_verify_certificate = 1\n\
                 ca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n"
            )?;
        }
    }
    std::fs::write(dir.join("etc/libvirtd.conf"), text)?;
    let qemu = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
                cgroup_controllers = [ ]\nnamespaces = [ ]\nstdio_handler = \"file\"\n\
                remember_owner = 0\n";
    std::fs::write(dir.join("etc/qemu.conf"), qemu)?;
    Ok(())
}

fn make_login(dir: &Path, realm: &str, login: &[String; 2]) -> Result<()> {
    let database = dir.join("sasl/passwd.db");
    let text = format!(
        "mech_list: scram-sha-256\nsasldb_path: {}\n",
        database.display()
    );
    std::fs::write(dir.join("sasl/libvirt.conf"), text)?;
    let [user, password] = login;
    let script = "printf %s \"$1\" | saslpasswd2 -p -c -a libvirt -f \"$2\" -u \"$3\" \"$4\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh", password])
        .arg(&database)
        .args([realm, user]);
    run(&mut command).map(drop)
}

/// Runs as the first process of its namespace, which must stay and reap orphans.
fn start_script(dir: &Path, name: &str, listen: &LibvirtListen) -> String {
    let dir = dir.display();
    let flags = match listen {
        LibvirtListen::UnixOnly => "",
        _ => "--listen",
    };
    format!(
        "set -e\nhostname {name}\nmount --make-rprivate /\n\
         mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt\n\
         for pair in run:/run/libvirt varlib:/var/lib/libvirt cache:/var/cache/libvirt \
           log:/var/log/libvirt etc:/etc/libvirt; do\n\
           mount --bind {dir}/${{pair%%:*}} ${{pair#*:}}\ndone\n\
         if [ -d /etc/sasl2 ]; then mount --bind {dir}/sasl /etc/sasl2; fi\n\
         cp /etc/hosts {dir}/hosts\n\
         printf '10.77.0.1 host1.test\\n10.77.0.2 host2.test\\n' >> {dir}/hosts\n\
         mount --bind {dir}/hosts /etc/hosts\n\
         /usr/sbin/libvirtd {flags} --pid-file /run/libvirt/libvirtd.pid &\n\
         wait\n"
    )
}
