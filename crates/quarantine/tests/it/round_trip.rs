//! What goes in comes out.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use model::Digest;

use crate::scene::{Scene, eicar, everything, items};

const SEGMENT: usize = 64 * 1024;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn everything_comes_back() {
    let scene = Scene::ornate(&bytes(3 * SEGMENT + 17));
    let file = scene.file();
    let atime = |metadata: fs::Metadata| (metadata.atime(), metadata.atime_nsec());
    let atime_before = atime(fs::metadata(&file).unwrap());
    let vault = scene.vault();
    let now = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    let taken = vault.take(&file, scene.digest(), &[eicar()], now).unwrap();
    assert!(!file.exists());
    let [item] = &items(&vault)[..] else {
        panic!("one item");
    };
    assert_eq!((item.id, &item.path), (taken.id, &file));
    assert_eq!((item.digest, item.size), (scene.digest(), taken.size));
    assert_eq!((item.taken.s, item.taken.ns), (1_700_000_000, 5));
    assert_eq!(item.detections, [eicar()]);

    let restored = vault.restore(taken.id, None).unwrap();
    assert_eq!(restored.path, file);
    assert_eq!(restored.attributes_lost, Vec::<Vec<u8>>::new());
    assert_eq!(atime(fs::metadata(&file).unwrap()), atime_before);
    // The same file, made once more, is what the restored one must equal.
    let twin = Scene::ornate(&scene.content);
    assert_eq!(everything(&file), everything(&twin.file()));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o6740);
    assert_eq!(everything(&file), everything(&twin.file()));
    assert!(items(&vault).is_empty());
    scene.expect_nothing_under_way();
}

#[test]
fn every_size_around_a_segment() {
    for len in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT] {
        let scene = Scene::new(&bytes(len));
        let vault = scene.vault();
        let taken = scene.take(&vault).unwrap();
        assert_eq!(taken.size, len as u64);
        vault.restore(taken.id, None).unwrap();
        assert_eq!(
            fs::read(scene.file()).unwrap(),
            scene.content,
            "{len} bytes"
        );
    }
}

#[test]
fn strange_names() {
    let names: [&[u8]; 5] = [b"new\nline", b"\xff\xfe", b" ", b"-rf", &[b'n'; 255]];
    for name in names {
        let scene = Scene::new(b"content");
        let path = scene.home().join(OsStr::from_bytes(name));
        fs::rename(scene.file(), &path).unwrap();
        let vault = scene.vault();
        let taken = vault
            .take(&path, scene.digest(), &[], SystemTime::now())
            .unwrap();
        assert_eq!(items(&vault)[0].path, path);
        assert!(!path.exists());
        assert_eq!(vault.restore(taken.id, None).unwrap().path, path);
        assert_eq!(fs::read(&path).unwrap(), scene.content);
    }
}

#[test]
fn other_hard_links_stay_and_are_counted() {
    let scene = Scene::new(b"content");
    let other = scene.home().join("other");
    fs::hard_link(scene.file(), &other).unwrap();
    let vault = scene.vault();
    let taken = scene.take(&vault).unwrap();
    assert_eq!(taken.links_left, 1);
    assert_eq!(items(&vault)[0].metadata.links, 2);
    assert_eq!(scene.names(), ["other"]);
    let taken = vault
        .take(&other, scene.digest(), &[], SystemTime::now())
        .unwrap();
    assert_eq!(taken.links_left, 0);
    assert!(scene.names().is_empty());
}

#[test]
fn restored_elsewhere() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let taken = scene.take(&vault).unwrap();
    let target = scene.home().join("elsewhere");
    vault.restore(taken.id, Some(&target)).unwrap();
    assert_eq!(scene.names(), ["elsewhere"]);
}

#[test]
fn holes_stay_holes() {
    let scene = Scene::new(b"");
    let file = fs::File::create(scene.file()).unwrap();
    file.set_len(32 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"data", 16 << 20).unwrap();
    let content = fs::read(scene.file()).unwrap();
    let vault = scene.vault();
    let digest = Digest::of(&content);
    let taken = vault
        .take(&scene.file(), digest, &[], SystemTime::now())
        .unwrap();
    vault.restore(taken.id, None).unwrap();
    assert!(fs::read(scene.file()).unwrap() == content);
    assert!(fs::metadata(scene.file()).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn an_item_shows_nothing_of_its_content() {
    let marker = b"a string that a scanner would look for";
    let scene = Scene::new(marker);
    let vault = scene.vault();
    let taken = scene.take(&vault).unwrap();
    let path = scene.vault_dir().join("items").join(taken.id.to_string());
    let sealed = fs::read(&path).unwrap();
    assert!(!sealed.windows(8).any(|window| window == &marker[..8]));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let vault_mode = fs::metadata(scene.vault_dir()).unwrap().mode();
    assert_eq!(vault_mode & 0o7777, 0o700);
}

#[test]
fn deleted_and_discarded_is_gone() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    vault.delete(&scene.file(), scene.digest()).unwrap();
    assert!(scene.names().is_empty() && items(&vault).is_empty());
    fs::write(scene.file(), &scene.content).unwrap();
    let taken = scene.take(&vault).unwrap();
    vault.discard(taken.id).unwrap();
    assert!(scene.names().is_empty() && items(&vault).is_empty());
    scene.expect_nothing_under_way();
}
