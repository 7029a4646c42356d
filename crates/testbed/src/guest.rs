//! A guest to boot: Debian's kernel with an initial RAM disk of ours. Needs the packages
//! busybox-static, binutils and, for the kernel, apt's sources.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::GzEncoder};

use crate::{Server, binary, run};

/// The package that names Debian's present kernel for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// Modules that a guest needs for its network, its channel to the host, and to see what QEMU shows it,
/// in the order of loading.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/char/hw_random/virtio-rng.ko",
    "drivers/char/virtio_console.ko",
    "drivers/firmware/qemu_fw_cfg.ko",
];

/// Begins the script of a guest with our agent: it guards /data, and has joined and has a link when
/// it says `LZ-READY`.
const AGENT_INIT: &str = r#"
mkdir -p /data; mount -t tmpfs -o size=64m data /data
until lazaret-agent enrol --controller $(cat /etc/controller) --token $(cat /etc/token) \
    --config /etc/agent.toml >/tmp/enrol.log 2>&1; do
  echo "LZ-ENROL $(cat /tmp/enrol.log)"; sleep 1
done
lazaret-agent run --config /etc/agent.toml >/tmp/agent.log 2>&1 &
until lazaret-agent status --json --config /etc/agent.toml 2>/dev/null | grep -q '"link": *"up"'; do
  sleep 1
done
echo "LZ-READY"
"#;

/// The agent in a guest, which follows the lists of the placer from its enrolment on.
#[derive(Debug, Clone, Copy)]
pub struct GuestAgent<'a> {
    /// Where it joins.
    pub server: &'a Server,
    /// How it gets its network, in shell.
    pub network: &'a str,
    /// How often it measures, in seconds; 0: never.
    pub measure_s: u64,
}

/// A kernel and what it starts with.
#[derive(Debug)]
pub struct GuestImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

/// The tree of an initial RAM disk while it is put together.
#[derive(Debug)]
pub struct GuestTree {
    root: PathBuf,
    kernel: PathBuf,
}

impl GuestTree {
    /// Begins one in `dir`, with busybox, the modules below /lib/modules and `init`, a script for
    /// busybox's sh that finds all of busybox's commands in /bin.
    ///
    /// # Errors
    /// A package is missing, or the kernel cannot be fetched.
    pub fn new(dir: &Path, init: &str) -> Result<Self> {
        let root = dir.join("tree");
        let (kernel, modules) = kernel()?;
        for folder in [
            "bin",
            "dev",
            "etc",
            "lib/modules",
            "proc",
            "sys",
            "tmp",
            "var",
            "run",
        ] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static")?;
        let mut names = Vec::new();
        for (i, module) in MODULES.iter().enumerate() {
            let file = modules.join(module);
            // Some kernels have it built in.
            if file.is_file() {
                let name = format!("lib/modules/{i}.ko");
                std::fs::copy(&file, root.join(&name))?;
                names.push(format!("/{name}"));
            }
        }
        let prologue = format!(
            "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n\
             mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
             for module in {}; do insmod $module; done\nip link set lo up\n",
            names.join(" ")
        );
        let tree = Self { root, kernel };
        tree.write("init", prologue + init, 0o755)?;
        Ok(tree)
    }

    /// Begins one with our agent, which guards /data and has a link when the console says `LZ-READY`;
    /// `init` runs after that.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); the agent is not built, or there is no token to be had.
    pub fn with_agent(dir: &Path, agent: &GuestAgent<'_>, init: &str) -> Result<Self> {
        let init = format!("{}\n{AGENT_INIT}{init}", agent.network);
        let tree = Self::new(dir, &init)?;
        tree.copy_program(&binary("lazaret-agent")?, "bin/lazaret-agent")?;
        let config = format!(
            "state_dir = \"/var/agent\"\nruntime_dir = \"/run/agent\"\n\n\
             [appliance]\nmeasure_s = {}\n\n[guard]\ninclude = [\"/data\"]\n",
            agent.measure_s
        );
        tree.write("etc/agent.toml", config, 0o644)?;
        tree.write("etc/controller", &agent.server.enrol, 0o644)?;
        tree.write("etc/token", agent.server.token()?, 0o600)?;
        Ok(tree)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Copies a folder with all that is in it.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn copy_folder(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.root.join(to);
        std::fs::create_dir_all(to.parent().context("no folder")?)?;
        run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
    }

    /// Copies a program, stripped, with the libraries that it is linked with.
    ///
    /// # Errors
    /// It cannot be read or copied.
    pub fn copy_program(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.root.join(to);
        run(Command::new("strip").arg("-o").arg(&to).arg(from))?;
        let listed = run(Command::new("ldd").arg(from))?;
        let paths = listed
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        for library in paths {
            let to = self.root.join(library.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().context("no folder")?)?;
            std::fs::copy(library, to)?;
        }
        Ok(())
    }

    /// Packs it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn pack(self) -> Result<GuestImage> {
        let initrd = self.root.with_file_name("initrd.gz");
        let archive = Command::new("sh")
            .args(["-c", "find . | busybox cpio -o -H newc 2>/dev/null"])
            .current_dir(&self.root)
            .output()?;
        ensure!(archive.status.success(), "cpio failed");
        let mut gzip = GzEncoder::new(File::create(&initrd)?, Compression::fast());
        gzip.write_all(&archive.stdout)?;
        gzip.finish()?;
        Ok(GuestImage {
            kernel: self.kernel,
            initrd,
        })
    }
}

/// The kernel and the folder of its modules, from Debian's package, kept in the cache.
fn kernel() -> Result<(PathBuf, PathBuf)> {
    let depends = run(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .context("no kernel package is known: run apt-get update")?;
    let version = package.trim_start_matches("linux-image-");
    let cache = cache_dir()?.join("guest-kernel");
    let home = cache.join(package);
    if !home.is_dir() {
        std::fs::create_dir_all(&cache)?;
        let fresh = tempfile::tempdir_in(&cache)?;
        let script = "apt-get download -q \"$1\" && \
                      dpkg-deb --fsys-tarfile ./*.deb | tar -x ./boot ./lib/modules && rm ./*.deb";
        run(Command::new("sh")
            .args(["-ec", script, "sh", package])
            .current_dir(fresh.path()))?;
        std::fs::rename(fresh.keep(), &home)?;
    }
    let kernel = home.join(format!("boot/vmlinuz-{version}"));
    ensure!(kernel.is_file(), "{} is missing", kernel.display());
    Ok((kernel, home.join(format!("lib/modules/{version}/kernel"))))
}

/// Where `./x` keeps what takes long to make.
fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("LAZARET_CACHE") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("neither LAZARET_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/lazaret"))
}
