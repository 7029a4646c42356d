//! Items whose files are not what was written.

use std::fs;

use quarantine::{DamagedItem, Listed, RestoreError};

use crate::scene::{Scene, items};

/// Damages the item's file, then checks that it is listed, restored never, discarded at will.
fn check(damage: impl Fn(&mut Vec<u8>), header_is_hit: bool) {
    let scene = Scene::new(&[9; 100_000]);
    let vault = scene.vault();
    let id = scene.take(&vault).unwrap().id;
    let path = scene.vault_dir().join("items").join(id.to_string());
    let mut bytes = fs::read(&path).unwrap();
    damage(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let listed = vault.list().unwrap();
    let is_damaged = matches!(&listed[..], [Listed::Damaged { id: i, .. }] if *i == id);
    assert_eq!(is_damaged, header_is_hit, "{listed:?}");
    let error = vault.restore(id, None).unwrap_err();
    assert!(matches!(error, RestoreError::Item { .. }), "{error}");
    assert!(scene.names().is_empty());
    scene.expect_nothing_under_way();
    vault.discard(id).unwrap();
    assert!(items(&vault).is_empty());
}

#[test]
fn one_bit() {
    // Each field of the prefix, the sealed header, the first and the last segment.
    for at in [0, 9, 13, 16, 47, 50, 60, 100] {
        check(|bytes| bytes[at] ^= 1, true);
    }
    check(
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1
        },
        false,
    );
    check(|bytes| *bytes.last_mut().unwrap() ^= 0x80, false);
}

#[test]
fn length() {
    for len in [0, 5, 56, 80, 5000] {
        check(|bytes| bytes.truncate(len), true);
    }
    check(|bytes| bytes.truncate(bytes.len() - 1), true);
    check(|bytes| bytes.push(0), true);
}

#[test]
fn segments_cannot_be_exchanged() {
    let segment = 64 * 1024 + 16;
    let scene = Scene::new(&[9; 3 * 64 * 1024]);
    let vault = scene.vault();
    let id = scene.take(&vault).unwrap().id;
    let path = scene.vault_dir().join("items").join(id.to_string());
    let mut bytes = fs::read(&path).unwrap();
    let start = bytes.len() - 3 * segment;
    let (first, rest) = bytes[start..].split_at_mut(segment);
    first.swap_with_slice(&mut rest[..segment]);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(
        vault.restore(id, None),
        Err(RestoreError::Item { .. })
    ));
}

#[test]
fn an_item_under_another_id() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let id = scene.take(&vault).unwrap().id;
    let items = scene.vault_dir().join("items");
    fs::rename(items.join(id.to_string()), items.join("0".repeat(32))).unwrap();
    let listed = vault.list().unwrap();
    let seal = |listed: &Listed| {
        matches!(
            listed,
            Listed::Damaged {
                why: DamagedItem::Seal(_),
                ..
            }
        )
    };
    assert!(seal(&listed[0]));
}

#[test]
fn a_version_of_the_future_says_so() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    let id = scene.take(&vault).unwrap().id;
    let path = scene.vault_dir().join("items").join(id.to_string());
    let mut bytes = fs::read(&path).unwrap();
    bytes[11] = 2;
    fs::write(&path, bytes).unwrap();
    let listed = vault.list().unwrap();
    let Listed::Damaged { why, .. } = &listed[0] else {
        panic!("read a version it does not know");
    };
    assert_eq!(
        why.to_string(),
        "it has format version 2; this program reads version 1"
    );
}

#[test]
fn other_files_in_the_vault_are_left_alone() {
    let scene = Scene::new(b"content");
    let vault = scene.vault();
    scene.take(&vault).unwrap();
    let stray = scene.vault_dir().join("items/README");
    fs::write(&stray, b"hello").unwrap();
    assert_eq!(items(&scene.vault()).len(), 1);
    assert!(stray.exists());
}

#[test]
fn an_unreadable_intent_waits_and_hinders_nothing() {
    let scene = Scene::new(b"content");
    drop(scene.vault());
    let intent = scene.vault_dir().join("intents").join("1".repeat(32));
    fs::write(&intent, b"garbage").unwrap();
    let vault = scene.vault();
    assert_eq!(vault.recovery().waiting.len(), 1);
    let taken = scene.take(&vault).unwrap();
    vault.restore(taken.id, None).unwrap();
    assert!(intent.exists());
}
