//! A file system without space.

use std::fs;
use std::path::{Path, PathBuf};

use quarantine::{Limits, TakeError, Vault};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::scene::{Scene, everything, items, limits};

/// A tmpfs of 1 MiB, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Some(c"size=1m,mode=700");
        rustix::mount::mount("lazaret", dir.path(), "tmpfs", MountFlags::empty(), options)
            .expect("mounting a tmpfs needs root");
        Self(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("vault")
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn expect_untouched(
    scene: &Scene,
    vault_dir: &Path,
    vault: &Vault,
    free_bytes: u64,
    disk: &SmallDisk,
) {
    assert_eq!(fs::read(scene.file()).unwrap(), scene.content);
    assert_eq!(scene.names(), ["file"]);
    assert!(items(vault).is_empty());
    for dir in ["incoming", "intents", "items"] {
        assert_eq!(fs::read_dir(vault_dir.join(dir)).unwrap().count(), 0);
    }
    assert_eq!(disk.free_bytes(), free_bytes);
}

#[test]
fn refused_before_it_begins() {
    let disk = SmallDisk::new();
    let open = |limits| Vault::open(&disk.path(), limits).unwrap();
    for (len, free_bytes_min) in [(2 << 20, 0), (1000, 1 << 20)] {
        let scene = Scene::new(&vec![3; len]);
        let vault = open(Limits {
            free_bytes_min,
            ..limits()
        });
        let free_bytes = disk.free_bytes();
        let error = scene.take(&vault).unwrap_err();
        assert!(matches!(error, TakeError::NoSpace { .. }), "{error}");
        expect_untouched(&scene, &disk.path(), &vault, free_bytes, &disk);
    }
}

#[test]
fn runs_out_while_it_is_written() {
    let disk = SmallDisk::new();
    let vault = Vault::open(&disk.path(), limits()).unwrap();
    // As large as seems to fit; the header and the intent are too much.
    let room = usize::try_from(disk.free_bytes()).unwrap();
    let scene = Scene::ornate(&vec![3; room - 16 * 17 - 56]);
    let before = everything(&scene.file());
    let free_bytes = disk.free_bytes();
    let error = scene.take(&vault).unwrap_err();
    let TakeError::Io(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.source.kind(), std::io::ErrorKind::StorageFull);
    expect_untouched(&scene, &disk.path(), &vault, free_bytes, &disk);
    assert_eq!(everything(&scene.file()), before);
}

#[test]
fn runs_out_while_it_is_restored() {
    let disk = SmallDisk::new();
    let scene = Scene::new(&vec![3; 2 << 20]);
    let vault = scene.vault();
    let taken = scene.take(&vault).unwrap();
    let target = disk.0.path().join("file");
    vault.restore(taken.id, Some(&target)).unwrap_err();
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 0);
    scene.expect_nothing_under_way();
    vault.restore(taken.id, None).unwrap();
    assert_eq!(fs::read(scene.file()).unwrap(), scene.content);
}
