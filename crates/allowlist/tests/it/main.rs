//! Lists from files to look-up, and everything that is refused on the way.

mod rpm;
mod shelf;
mod sources;

use std::sync::Arc;

use allowlist::{Digest, Error, List, Map, Set, SigningKey};
use proptest::prelude::*;

fn key() -> (tempfile::TempDir, SigningKey) {
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::create(&folder.path().join("key")).unwrap();
    (folder, key)
}

fn digest(n: u32) -> Digest {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

fn list(serial: u64, listed: &[u32], revoked: &[u32]) -> List {
    let digests = |of: &[u32]| of.iter().copied().map(digest).collect();
    List::new("golden", serial, 7, digests(listed), digests(revoked)).unwrap()
}

#[test]
fn what_is_listed_is_found_and_nothing_else() {
    let (_folder, key) = key();
    for count in [0, 1, 2, 17, 5000] {
        let all: Vec<u32> = (0..count).collect();
        let bytes = list(1, &all, &[1]).to_bytes(Some(&key)).unwrap();
        let map = Map::new(bytes, &[key.public()], None).unwrap();
        for n in 0..count + 50 {
            assert_eq!(map.lists(&digest(n)), n < count && n != 1, "{n} of {count}");
        }
        assert!(map.revokes(&digest(1)));
        assert!(!map.lists(&[0; 32]) && !map.lists(&[255; 32]));
    }
}

#[test]
fn a_file_is_read_back_and_a_key_too() {
    let (folder, key) = key();
    let path = folder.path().join("list");
    let written = list(3, &[1, 2, 3], &[9]);
    let again = SigningKey::open(&folder.path().join("key")).unwrap();
    written.write(&path, Some(&again)).unwrap();
    let (read, signer) = List::open(&path).unwrap();
    assert_eq!((read, signer), (written, Some(key.public())));
    assert_eq!(
        key.public()
            .to_string()
            .parse::<allowlist::PublicKey>()
            .unwrap(),
        key.public()
    );
    assert!(
        SigningKey::create(&folder.path().join("key")).is_err(),
        "a key is not overwritten"
    );
}

#[test]
fn each_defect_has_its_own_refusal() {
    let (_folder, key) = key();
    let good = list(5, &[1, 2, 3], &[4]).to_bytes(Some(&key)).unwrap();
    let refused = |bytes: Vec<u8>| Map::new(bytes, &[key.public()], None).unwrap_err();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        refused(bytes)
    };
    assert!(matches!(with(0, 0), Error::Magic));
    assert!(matches!(with(8, 9), Error::Version { found: 9 }));
    assert!(matches!(with(12, 3), Error::Header { offset: 12, .. }));
    assert!(matches!(with(32, 2), Error::Length { .. }));
    assert!(matches!(with(39, 255), Error::Length { .. }));
    assert!(matches!(with(48, 0), Error::Header { offset: 48, .. }));
    assert!(matches!(
        with(112, 255),
        Error::Unsorted {
            section: "listed",
            entry: 1
        }
    ));
    assert!(matches!(with(16, 6), Error::Signature));
    assert!(matches!(with(good.len() - 1, 77), Error::Signature));
    assert!(matches!(with(good.len() - 70, 0), Error::Trailer { .. }));
    assert!(matches!(
        with(good.len() - 112, !good[good.len() - 112]),
        Error::Untrusted { .. }
    ));
    for cut in 0..good.len() {
        let error = refused(good[..cut].to_vec());
        assert!(
            matches!(error, Error::Magic | Error::Length { .. }),
            "{cut}: {error}"
        );
    }
    let unsigned = list(5, &[1], &[]).to_bytes(None).unwrap();
    assert!(matches!(refused(unsigned), Error::Unsigned));
}

#[test]
fn an_older_list_or_another_is_refused() {
    let (_folder, key) = key();
    let map = |list: &List, old: Option<&Map>| {
        Map::new(list.to_bytes(Some(&key)).unwrap(), &[key.public()], old)
    };
    let old = map(&list(5, &[1], &[]), None).unwrap();
    assert!(map(&list(6, &[2], &[]), Some(&old)).is_ok());
    assert!(
        map(&list(5, &[1], &[]), Some(&old)).is_ok(),
        "the same again"
    );
    for rolled_back in [list(4, &[1], &[]), list(5, &[1, 2], &[])] {
        assert!(matches!(
            map(&rolled_back, Some(&old)),
            Err(Error::RollBack { .. })
        ));
    }
    let other = List::new("other", 9, 7, vec![], vec![]).unwrap();
    assert!(matches!(
        map(&other, Some(&old)),
        Err(Error::Renamed { .. })
    ));
}

#[test]
fn revocation_wins_everywhere() {
    let (_folder, key) = key();
    let merged = List::merge("m", 1, 7, &[list(1, &[1, 2], &[]), list(2, &[3], &[1])]).unwrap();
    assert_eq!(
        (merged.listed().len(), merged.revoked()),
        (2, &[digest(1)][..])
    );
    let again = List::merge("m", 2, 7, &[merged.clone(), list(3, &[1], &[])]).unwrap();
    assert_eq!(merged.diff(&again), allowlist::Difference::default());
    let mut revoked = again;
    revoked.revoke(&[digest(2)]);
    let diff = merged.diff(&revoked);
    assert_eq!(
        (diff.removed, diff.revoked),
        (vec![digest(2)], vec![digest(2)])
    );
    let maps = [list(1, &[1, 2], &[]), list(2, &[], &[2])]
        .map(|list| list.to_bytes(Some(&key)).unwrap())
        .map(|bytes| Arc::new(Map::new(bytes, &[key.public()], None).unwrap()));
    let set = Set::new(maps.to_vec());
    assert!(set.lists(&digest(1)) && !set.lists(&digest(2)));
}

proptest! {
    #[test]
    fn a_changed_byte_is_never_accepted(at in 0_usize..400, flip in 1_u8..) {
        let (_folder, key) = key();
        let mut bytes = list(5, &[1, 2, 3], &[4]).to_bytes(Some(&key)).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        prop_assert!(Map::new(bytes, &[key.public()], None).is_err());
    }

    #[test]
    fn foreign_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut bytes = b"LZALLOW\0\x01\0\0\0\x01\0\0\0".to_vec();
        bytes.extend_from_slice(&tail);
        prop_assert!(List::from_bytes(&bytes).is_err());
    }
}
