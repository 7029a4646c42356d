//! Lists that come, go, are rolled back, and digests that are recalled.

use std::fs;
use std::path::PathBuf;

use allowlist::{Change, Error, List, Shelf, SigningKey, Sources};

use crate::{digest, key, list};

struct Scene {
    folder: tempfile::TempDir,
    key: SigningKey,
    recalls_max: usize,
}

impl Scene {
    fn new() -> Self {
        let (folder, key) = key();
        Self {
            folder,
            key,
            recalls_max: 10,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, list: &List) {
        list.write(&self.path(name), Some(&self.key)).unwrap();
    }

    fn shelf(&self) -> Shelf {
        self.shelf_that(true)
    }

    fn shelf_that(&self, keeps: bool) -> Shelf {
        Shelf::open(Sources {
            files: vec![self.path("a"), self.path("b")],
            trusted: vec![self.key.public()],
            bytes_max: 4096,
            state: self.folder.path().to_owned(),
            keeps,
            recalls_max: self.recalls_max,
        })
        .unwrap()
    }
}

fn other(serial: u64, listed: &[u32], revoked: &[u32]) -> List {
    let digests = |of: &[u32]| of.iter().copied().map(digest).collect();
    List::new("other", serial, 7, digests(listed), digests(revoked)).unwrap()
}

/// The serials in force, and what each change was.
#[track_caller]
fn reloads(shelf: &Shelf, serials: &[u64], changes: &[&str]) {
    let said = shelf.reload();
    let names = said.iter().map(|it| match &it.change {
        Change::Taken(_) => "taken",
        Change::Gone => "gone",
        Change::Refused(_) => "refused",
    });
    assert_eq!(names.collect::<Vec<_>>(), changes, "{said:?}");
    let in_force = shelf.in_force();
    let found: Vec<u64> = in_force.iter().map(|it| it.serial).collect();
    assert_eq!(found, serials);
}

#[test]
fn a_list_comes_is_replaced_and_goes() {
    let scene = Scene::new();
    let shelf = scene.shelf();
    reloads(&shelf, &[], &[]);
    assert!(shelf.is_empty());
    scene.put("a", &list(1, &[1, 2], &[]));
    reloads(&shelf, &[1], &["taken"]);
    reloads(&shelf, &[1], &[]);
    assert!(shelf.lists(&digest(1)) && !shelf.lists(&digest(3)));
    scene.put("a", &list(2, &[2, 3], &[1]));
    scene.put("b", &other(7, &[1, 4], &[3]));
    reloads(&shelf, &[2, 7], &["taken", "taken"]);
    let listed: Vec<u32> = (1..6).filter(|n| shelf.lists(&digest(*n))).collect();
    assert_eq!(
        listed,
        [2, 4],
        "a revocation of one list wins over the other"
    );
    fs::remove_file(scene.path("a")).unwrap();
    reloads(&shelf, &[7], &["gone"]);
    assert!(!shelf.lists(&digest(2)) && shelf.lists(&digest(1)));
}

#[test]
fn what_is_refused_leaves_the_old_one_in_force() {
    let scene = Scene::new();
    let shelf = scene.shelf();
    scene.put("a", &list(5, &[1], &[]));
    reloads(&shelf, &[5], &["taken"]);
    let stays = || {
        reloads(&shelf, &[5], &["refused"]);
        reloads(&shelf, &[5], &[]);
        assert!(shelf.lists(&digest(1)) && !shelf.lists(&digest(2)));
    };
    scene.put("a", &list(4, &[2], &[]));
    stays();
    scene.put("a", &list(5, &[2], &[]));
    stays();
    scene.put("a", &other(6, &[2], &[]));
    stays();
    list(6, &[2], &[]).write(&scene.path("a"), None).unwrap();
    stays();
    let foreign = SigningKey::create(&scene.path("foreign")).unwrap();
    list(6, &[2], &[])
        .write(&scene.path("a"), Some(&foreign))
        .unwrap();
    stays();
    let good = list(6, &[2], &[]).to_bytes(Some(&scene.key)).unwrap();
    fs::write(scene.path("a"), &good[..good.len() - 1]).unwrap();
    stays();
    let many: Vec<u32> = (0..200).collect();
    scene.put("a", &list(6, &many, &[]));
    stays();
    fs::remove_file(scene.path("a")).unwrap();
    fs::create_dir(scene.path("a")).unwrap();
    stays();
    fs::remove_dir(scene.path("a")).unwrap();
    fs::write(scene.path("a"), good).unwrap();
    reloads(&shelf, &[6], &["taken"]);
}

#[test]
fn roll_back_is_refused_after_a_restart_too() {
    let scene = Scene::new();
    scene.put("a", &list(5, &[1], &[]));
    reloads(&scene.shelf(), &[5], &["taken"]);
    reloads(&scene.shelf(), &[5], &["taken"]);
    for older in [list(4, &[2], &[]), list(5, &[2], &[])] {
        scene.put("a", &older);
        let shelf = scene.shelf();
        let refused = shelf.reload().pop().unwrap().change;
        assert!(matches!(
            refused,
            Change::Refused(Error::RollBack { in_force: 5, .. })
        ));
        assert!(shelf.is_empty());
    }
    scene.put("a", &list(6, &[2], &[]));
    reloads(&scene.shelf(), &[6], &["taken"]);
}

#[test]
fn a_list_that_was_sent_is_verified_before_it_is_written() {
    let scene = Scene::new();
    scene.put("a", &list(5, &[1], &[]));
    let shelf = scene.shelf();
    reloads(&shelf, &[5], &["taken"]);
    let on_disk = fs::read(scene.path("a")).unwrap();
    let newer = list(6, &[2], &[]).to_bytes(Some(&scene.key)).unwrap();
    let older = list(4, &[2], &[]).to_bytes(Some(&scene.key)).unwrap();
    let unsigned = list(6, &[2], &[]).to_bytes(None).unwrap();
    for bad in [older, unsigned, newer[..200].to_vec(), Vec::new()] {
        assert!(shelf.install(&scene.path("a"), bad).is_err());
        assert_eq!(fs::read(scene.path("a")).unwrap(), on_disk);
        assert!(shelf.lists(&digest(1)));
    }
    assert!(shelf.install(&scene.path("c"), newer.clone()).is_err());
    let taken = shelf.install(&scene.path("a"), newer.clone()).unwrap();
    assert_eq!((taken.serial, taken.size), (6, newer.len()));
    assert!(shelf.lists(&digest(2)) && !shelf.lists(&digest(1)));
    reloads(&shelf, &[6], &[]);
    reloads(&scene.shelf(), &[6], &["taken"]);
    let piece = |offset, max| shelf.piece(&taken.fingerprint, offset, max).unwrap();
    assert_eq!(piece(0, 100), newer[..100]);
    assert_eq!(piece(100, usize::MAX), newer[100..]);
    assert!(piece(u64::MAX, 9).is_empty());
    assert_eq!(shelf.piece(&[0; 32], 0, 9), None);
}

#[test]
fn recalled_beats_listed_and_is_kept() {
    let scene = Scene::new();
    scene.put("a", &list(5, &[1, 2], &[]));
    let shelf = scene.shelf();
    reloads(&shelf, &[5], &["taken"]);
    let (one, two) = (digest(1), digest(2));
    assert_eq!(shelf.recall(&[one, one]), [one]);
    assert_eq!(shelf.recall(&[one]), [[0; 32]; 0]);
    assert!(!shelf.lists(&one) && shelf.names(&one) && shelf.lists(&two));
    shelf.save_recalls().unwrap();
    let again = scene.shelf();
    assert_eq!(again.recalled(), [one]);
    assert_eq!(again.recall(&[two]), [two]);
    again.save_recalls().unwrap();
    // A crash in the middle of the next one.
    let path = scene.path("allowlist.recalled");
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 8 + 64);
    bytes.extend_from_slice(&[9; 20]);
    fs::write(&path, &bytes).unwrap();
    let again = scene.shelf();
    assert_eq!(again.recalled_len(), (2, false));
    assert_eq!(again.recall(&[digest(3)]).len(), 1);
    again.save_recalls().unwrap();
    assert_eq!(scene.shelf().recalled_len(), (3, false));
    for cut in 0..8 {
        fs::write(&path, &bytes[..cut]).unwrap();
        let cut = scene.shelf();
        assert_eq!(cut.recalled_len(), (0, false));
        assert_eq!(cut.recall(&[one]), [one]);
        cut.save_recalls().unwrap();
        assert_eq!(scene.shelf().recalled(), [one]);
    }
    fs::write(&path, "something else").unwrap();
    let sources = Sources {
        files: vec![],
        trusted: vec![],
        bytes_max: 1,
        state: scene.folder.path().to_owned(),
        keeps: true,
        recalls_max: 1,
    };
    assert!(matches!(Shelf::open(sources), Err(Error::Damaged { .. })));
}

#[test]
fn a_second_process_reads_and_does_not_write() {
    let scene = Scene::new();
    scene.put("a", &list(5, &[1], &[]));
    let first = scene.shelf();
    reloads(&first, &[5], &["taken"]);
    assert_eq!(first.recall(&[digest(1)]).len(), 1);
    first.save_recalls().unwrap();
    let files = || {
        let names = ["allowlist.serials", "allowlist.recalled"];
        names.map(|name| fs::read(scene.path(name)).unwrap())
    };
    let before = files();
    scene.put("a", &list(6, &[1, 2], &[]));
    let second = scene.shelf_that(false);
    reloads(&second, &[6], &["taken"]);
    assert!(!second.lists(&digest(1)) && second.lists(&digest(2)));
    assert_eq!(second.recall(&[digest(2)]).len(), 1);
    second.save_recalls().unwrap();
    assert!(!second.lists(&digest(2)));
    assert_eq!(files(), before);
}

#[test]
fn too_many_recalls_end_all_listing() {
    let scene = Scene {
        recalls_max: 2,
        ..Scene::new()
    };
    scene.put("a", &list(5, &[1, 2, 3], &[]));
    let shelf = scene.shelf();
    reloads(&shelf, &[5], &["taken"]);
    assert_eq!(shelf.recall(&[digest(1)]).len(), 1);
    assert!(shelf.lists(&digest(3)) && !shelf.is_empty());
    assert_eq!(shelf.recall(&[digest(2), digest(3)]).len(), 1);
    assert!(!shelf.lists(&digest(3)) && shelf.is_empty());
    assert_eq!(shelf.recalled_len(), (2, true));
    shelf.save_recalls().unwrap();
    let again = scene.shelf();
    reloads(&again, &[5], &["taken"]);
    assert!(!again.lists(&digest(3)), "after a restart, too");
}

#[test]
fn recalls_that_cannot_be_saved_count_all_the_same() {
    let scene = Scene::new();
    scene.put("a", &list(5, &[1], &[]));
    let shelf = scene.shelf();
    reloads(&shelf, &[5], &["taken"]);
    fs::create_dir(scene.path("allowlist.recalled")).unwrap();
    assert_eq!(shelf.recall(&[digest(1)]).len(), 1);
    assert!(shelf.save_recalls().is_err());
    assert!(!shelf.lists(&digest(1)));
    fs::remove_dir(scene.path("allowlist.recalled")).unwrap();
    shelf.save_recalls().unwrap();
    assert_eq!(scene.shelf().recalled(), [digest(1)]);
}
