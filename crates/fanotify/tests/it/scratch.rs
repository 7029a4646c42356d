//! File systems made for one test, unmounted when dropped.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fanotify::lease::{LeaseRefused, ReadLease};
use tempfile::TempDir;

/// A child that has not begun its program by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file system of its own at a path of its own.
pub(crate) struct Scratch {
    directory: TempDir,
}

impl Scratch {
    pub(crate) fn ext4() -> Self {
        Self::image("ext4", "-q", 128)
    }

    pub(crate) fn xfs() -> Self {
        Self::image("xfs", "-q", 300)
    }

    pub(crate) fn btrfs() -> Self {
        Self::image("btrfs", "-q", 120)
    }

    pub(crate) fn tmpfs() -> Self {
        let scratch = Self::unmounted();
        run(
            "mount",
            ["-t", "tmpfs", "-o", "size=64m", "tmpfs"],
            &scratch.root(),
        );
        scratch
    }

    /// A directory for a mount that the test makes itself; unmounted all the same.
    pub(crate) fn unmounted() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the fanotify tests need root: they mount file systems and guard them"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        let scratch = Self { directory };
        std::fs::create_dir(scratch.root()).expect("a mount point");
        scratch
    }

    fn image(kind: &str, quiet: &str, size_mib: u64) -> Self {
        let scratch = Self::unmounted();
        let image = scratch.directory.path().join("image");
        let file = std::fs::File::create(&image).expect("an image file");
        file.set_len(size_mib << 20).expect("a sparse image");
        run(&format!("mkfs.{kind}"), [quiet], &image);
        let image = image.to_str().expect("a temporary path in UTF-8");
        run("mount", ["-t", kind, "-o", "loop", image], &scratch.root());
        scratch
    }

    /// The overlay of the directories `lower` and `upper` of `layers`, which it makes.
    pub(crate) fn overlay(layers: &Scratch) -> Self {
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir_all(layers.path(name)).expect("a layer");
        }
        let scratch = Self::unmounted();
        let root = layers.root();
        let root = root.display();
        let options = format!("lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work");
        run(
            "mount",
            ["-t", "overlay", "-o", &options, "overlay"],
            &scratch.root(),
        );
        scratch
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Writes a file, which waits for ever once the file system is marked and nobody reads.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("a file on the scratch file system");
        wait_for_writers(&path);
        path
    }
}

/// Other tests start programs meanwhile: until such a child runs its program it has all our
/// descriptors, that of the file just written too, and it is its close that counts as the writer's.
fn wait_for_writers(path: &Path) {
    let file = std::fs::File::open(path).expect("the file just written");
    let is_written = || matches!(ReadLease::try_take(&file), Err(LeaseRefused::WriterHeld));
    let given_up = Instant::now() + PATIENCE;
    while is_written() && Instant::now() < given_up {
        std::thread::yield_now();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Lazily: a failed test may have left an opener behind. Where nothing is mounted (the test
        // failed before), umount's complaint is of no interest.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg("--quiet")
            .arg(self.root())
            .output();
    }
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>, target: &Path) {
    let output = Command::new(program)
        .args(arguments.into_iter().map(OsStr::new))
        .arg(target)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} on {}: {}",
        target.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}
