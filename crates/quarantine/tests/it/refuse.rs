//! What is refused, and that nothing changed by it.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use model::{Digest, ItemId};
use quarantine::{
    DeleteError, DiscardError, Limits, OriginalError, Refusal, RestoreError, Steps, TakeError,
    Vault,
};
use rustix::fs::{CWD, FileType, Mode};

use crate::scene::{Scene, items, limits};

fn take(vault: &Vault, path: &Path, digest: Digest) -> TakeError {
    let taken = vault.take(path, digest, &[], SystemTime::now());
    let error = taken.expect_err("taken");
    assert!(items(vault).is_empty());
    error
}

#[test]
fn other_content() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let error = take(&vault, &scene.file(), Digest::of(b"other"));
    assert_eq!(error.refusal(), Refusal::Changed);
    let error = vault.delete(&scene.file(), Digest::of(b"other"));
    assert_eq!(error.unwrap_err().refusal(), Refusal::Changed);
    assert_eq!(fs::read(scene.file()).unwrap(), scene.content);
    scene.expect_nothing_under_way();
}

#[test]
fn missing() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    for path in ["none", "none/none"] {
        let error = take(&vault, &scene.home().join(path), scene.digest());
        assert_eq!(error.refusal(), Refusal::Missing, "{error}");
    }
}

#[test]
fn whatever_is_not_a_regular_file() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let at = |name: &str| scene.home().join(name);
    symlink(scene.file(), at("link")).unwrap();
    symlink(scene.home(), at("dirlink")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let device = FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, at("device"), device, Mode::RUSR, null).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for name in [
        "link",
        "dirlink/file",
        "dir",
        "fifo",
        "device",
        "socket",
        "file/x",
    ] {
        let error = take(&vault, &at(name), scene.digest());
        assert_eq!(error.refusal(), Refusal::Conflict, "{name}: {error}");
        let error = vault.delete(&at(name), scene.digest()).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Conflict, "{name}: {error}");
    }
    assert_eq!(scene.names().len(), 7);
}

#[test]
fn the_vault_itself() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let taken = scene.take(&vault).unwrap();
    let item = scene.vault_dir().join("items").join(taken.id.to_string());
    let digest = Digest::of(&fs::read(&item).unwrap());
    let refused = vault.take(&item, digest, &[], SystemTime::now());
    assert!(matches!(refused, Err(TakeError::InsideVault(_))));
    let refused = vault.delete(&item, digest);
    assert!(matches!(refused, Err(DeleteError::InsideVault(_))));
    let refused = vault.restore(taken.id, Some(&scene.vault_dir().join("items/x")));
    assert!(matches!(refused, Err(RestoreError::InsideVault(_))));
    assert!(item.exists());
}

#[test]
fn a_target_that_exists() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let taken = scene.take(&vault).unwrap();
    for occupy in ["file", "link", "dir"] {
        match occupy {
            "file" => fs::write(scene.file(), b"new").unwrap(),
            "link" => symlink("/nowhere", scene.file()).unwrap(),
            _ => fs::create_dir(scene.file()).unwrap(),
        }
        let error = vault.restore(taken.id, None).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Conflict);
        if occupy == "dir" {
            fs::remove_dir(scene.file()).unwrap();
        } else {
            fs::remove_file(scene.file()).unwrap();
        }
    }
    scene.expect_nothing_under_way();
    vault.restore(taken.id, None).unwrap();
}

#[test]
fn unknown_items() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let id = ItemId([7; 16]);
    let error = vault.restore(id, None).unwrap_err();
    assert_eq!(error.refusal(), Refusal::Missing);
    let refused = vault.discard(id);
    assert!(matches!(refused, Err(DiscardError::NoSuchItem(_))));
}

#[test]
fn a_full_vault() {
    let scene = Scene::new(&[1; 1000]);
    let open = |limits| Vault::open(&scene.vault_dir(), limits).unwrap();
    let limit_of = |error: TakeError| match error {
        TakeError::Full { limit, .. } => limit,
        error => panic!("{error}"),
    };
    let vault = open(Limits {
        bytes_max: 999,
        ..limits()
    });
    assert_eq!(
        limit_of(take(&vault, &scene.file(), scene.digest())),
        "bytes_max"
    );
    let vault = open(Limits {
        items_max: 1,
        ..limits()
    });
    scene.take(&vault).unwrap();
    fs::write(scene.file(), &scene.content).unwrap();
    assert_eq!(limit_of(scene.take(&vault).unwrap_err()), "items_max");
    assert_eq!(items(&vault).len(), 1);
    assert_eq!(fs::read(scene.file()).unwrap(), scene.content);
    scene.expect_nothing_under_way();
}

#[test]
fn a_vault_in_use() {
    let scene = Scene::new(b"content");
    let vault = Vault::open(
        &scene.vault_dir(),
        Limits {
            lock_wait_max: Duration::ZERO,
            ..limits()
        },
    )
    .unwrap();
    let lock = fs::File::open(scene.vault_dir().join("lock")).unwrap();
    lock.lock().unwrap();
    let error = take(&vault, &scene.file(), scene.digest());
    assert!(matches!(error, TakeError::Lock(_)));
    // Closed alone, it would stay locked while a child of another test's has not run its program.
    lock.unlock().unwrap();
    scene.take(&vault).unwrap();
}

#[test]
fn a_vault_of_somebody_else() {
    let scene = Scene::new(b"content");
    fs::create_dir(scene.vault_dir()).unwrap();
    std::os::unix::fs::chown(scene.vault_dir(), Some(1234), None).unwrap();
    assert!(Vault::open(&scene.vault_dir(), limits()).is_err());
}

/// Runs something just before the named step.
struct Before<F>(&'static str, Mutex<Option<F>>);

impl<F: FnOnce() + Send> Steps for Before<F> {
    fn next(&self, step: &'static str) -> io::Result<()> {
        if step == self.0
            && let Some(run) = self.1.lock().unwrap().take()
        {
            run();
        }
        Ok(())
    }
}

fn vault_before(scene: &Scene, step: &'static str, run: impl FnOnce() + Send + 'static) -> Vault {
    scene.vault_with(Before(step, Mutex::new(Some(run))))
}

#[test]
fn a_file_written_while_it_is_copied() {
    for step in [
        "write a segment",
        "sync the item",
        "rename the original aside",
        "compare the original",
    ] {
        let scene = Scene::new(b"content");
        let file = fs::File::options().write(true).open(scene.file()).unwrap();
        let vault = vault_before(&scene, step, move || {
            std::os::unix::fs::FileExt::write_at(&file, b"C", 0).unwrap();
        });
        let error = scene.take(&vault).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Changed, "{step}: {error}");
        assert_eq!(fs::read(scene.file()).unwrap(), b"Content", "{step}");
        assert!(items(&vault).is_empty());
        scene.expect_nothing_under_way();
    }
}

#[test]
fn a_file_saved_under_the_name_meanwhile() {
    for step in [
        "write a segment",
        "sync the item",
        "rename the original aside",
    ] {
        let scene = Scene::new(b"content");
        let (file, new) = (scene.file(), scene.home().join("new"));
        let vault = vault_before(&scene, step, move || {
            fs::write(&new, b"saved meanwhile").unwrap();
            fs::rename(&new, &file).unwrap();
        });
        let error = scene.take(&vault).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Changed, "{step}: {error}");
        assert_eq!(
            fs::read(scene.file()).unwrap(),
            b"saved meanwhile",
            "{step}"
        );
        scene.expect_nothing_under_way();
    }
}

#[test]
fn a_name_taken_while_the_original_is_aside() {
    let scene = Scene::new(b"content");
    let file = scene.file();
    let vault = vault_before(&scene, "compare the original", {
        let file = file.clone();
        move || fs::write(&file, b"saved meanwhile").unwrap()
    });
    let taken = scene.take(&vault).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"saved meanwhile");
    assert_eq!(items(&vault)[0].id, taken.id);
    scene.expect_nothing_under_way();
}

#[test]
fn a_file_that_becomes_shorter() {
    let scene = Scene::new(&[5; 200_000]);
    let file = fs::File::options().write(true).open(scene.file()).unwrap();
    let vault = vault_before(&scene, "write a segment", move || file.set_len(10).unwrap());
    let error = scene.take(&vault).unwrap_err();
    let changed = TakeError::Original(OriginalError::ChangedMeanwhile(scene.file()));
    assert_eq!(error.to_string(), changed.to_string());
    scene.expect_nothing_under_way();
}

#[test]
fn a_file_whose_mode_changed_meanwhile() {
    for step in ["write a segment", "rename the original aside"] {
        let scene = Scene::new(b"content");
        let file = scene.file();
        let vault = vault_before(&scene, step, move || {
            let setuid = fs::Permissions::from_mode(0o4755);
            fs::set_permissions(&file, setuid).unwrap();
        });
        let error = scene.take(&vault).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Changed, "{step}: {error}");
        assert!(scene.file().exists() && items(&vault).is_empty());
    }
}
