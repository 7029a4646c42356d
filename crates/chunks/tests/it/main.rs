//! Properties of lists: they cover their file, come back from the wire, and find what has moved.

use std::collections::HashSet;
use std::convert::Infallible;

use chunks::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Kind, Lister, Manifest, plan};
use proptest::prelude::*;

fn list(kind: Kind, bytes: &[u8], pieces: usize) -> (Manifest, [u8; 32]) {
    let mut lister = Lister::new(kind);
    bytes.chunks(pieces).for_each(|piece| lister.update(piece));
    lister.finish()
}

/// Content that is the same for a seed, with runs, repeats and signatures of members in it.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut xof = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    xof.fill(&mut bytes);
    for (n, at) in (0..len).step_by(9000).enumerate() {
        let end = len.min(at + 3000);
        match n % 3 {
            0 => bytes[at..end].fill(0),
            1 => put(&mut bytes[at..], b"PK\x03\x04"),
            _ => put(&mut bytes[at..], b"PK\x01\x02"),
        }
    }
    bytes
}

/// As much of it as there is room for.
fn put(into: &mut [u8], what: &[u8]) {
    let len = into.len().min(what.len());
    into[..len].copy_from_slice(&what[..len]);
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

/// Puts a file together from what is held and what is asked for, as an appliance does.
fn rebuild(manifest: &Manifest, bytes: &[u8], held: &HashSet<chunks::ChunkId>) -> (Vec<u8>, u64) {
    let at = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
    let mut file = vec![0xee; bytes.len()];
    let plan = plan(manifest, |chunk| {
        let place = at(chunk.offset, chunk.len.into());
        let is_held = held.contains(&chunk.id);
        if is_held {
            file[place.clone()].copy_from_slice(&bytes[place]);
        }
        Ok::<_, Infallible>(is_held)
    });
    let plan = plan.unwrap();
    for range in &plan.ranges {
        let place = at(range.offset, range.len);
        file[place.clone()].copy_from_slice(&bytes[place]);
    }
    for copy in &plan.copies {
        file.copy_within(at(copy.from, copy.len.into()), copy.to as usize);
    }
    (file, plan.missing_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn chunks_cover_the_file_and_come_back(
        kind in kinds(), seed: u64, len in 1usize..400_000, pieces in 1usize..200_000,
    ) {
        let bytes = content(seed, len);
        let (manifest, digest) = list(kind, &bytes, pieces);
        prop_assert_eq!(digest, *blake3::hash(&bytes).as_bytes());
        prop_assert_eq!(&manifest, &list(kind, &bytes, len).0);
        let (before, last) = bytes.split_at(pieces % (len + 1));
        for (before, last) in [(before, last), (&[][..], &bytes[..])] {
            let mut lister = Lister::new(kind);
            lister.update(before);
            prop_assert_eq!(lister.finish_with(last), (manifest.clone(), digest));
        }
        let mut end = 0;
        for chunk in manifest.chunks() {
            prop_assert_eq!(chunk.offset, end);
            end = chunk.end();
            let is_last = end == len as u64;
            prop_assert!(chunk.len <= CHUNK_BYTES_MAX);
            prop_assert!(chunk.len >= CHUNK_BYTES_MIN || is_last);
            let own = &bytes[chunk.offset as usize..end as usize];
            prop_assert_eq!(kind.name(chunk.offset, own), chunk.id);
        }
        prop_assert_eq!(end, len as u64);
        let read = Manifest::decode(kind, len as u64, &digest, &manifest.encode());
        // One group alone is no tree: nobody lists such a file.
        if kind != Kind::Groups || manifest.chunks().len() > 1 {
            prop_assert_eq!(read.as_ref(), Ok(&manifest));
        }
    }

    #[test]
    fn a_file_is_put_together_again(
        kind in kinds(), seed: u64, len in 1usize..400_000, at in 0usize..400_000, put in 0usize..200,
    ) {
        let old = content(seed, len);
        let at = at.min(len);
        let new = [&old[..at], &content(seed ^ 1, put), &old[at..]].concat();
        let held = list(kind, &old, len).0.chunks().iter().map(|chunk| chunk.id).collect();
        let (manifest, _) = list(kind, &new, len);
        let (file, missing) = rebuild(&manifest, &new, &held);
        prop_assert!(file == new);
        // What has moved is found again: at most the neighbours of the change travel.
        if matches!(kind, Kind::Content | Kind::Members) {
            prop_assert!(missing <= 6 * u64::from(CHUNK_BYTES_MAX), "{missing}");
        }
    }

    #[test]
    fn whatever_a_guest_sends_is_read_or_refused(
        number in 0u32..6, size in 0u64..300_000, bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let Some(kind) = Kind::from_number(number) else { return Ok(()) };
        if let Ok(manifest) = Manifest::decode(kind, size, &[0; 32], &bytes) {
            let total: u64 = manifest.chunks().iter().map(|chunk| u64::from(chunk.len)).sum();
            prop_assert_eq!(total, size);
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }
}

/// An archive whose first member and whose directory are new.
#[test]
fn of_an_archive_that_was_saved_again_only_what_is_new_is_missing() {
    let member = |seed, len: usize| [b"PK\x03\x04".to_vec(), noise(seed, len)].concat();
    let archive = |seed| {
        let directory = [b"PK\x01\x02".to_vec(), noise(seed, 60)]
            .concat()
            .repeat(40);
        let members = [member(seed, 30_000), member(2, 100_000), member(3, 50_000)];
        [members.concat(), directory].concat()
    };
    let (old, new) = (archive(7), archive(8));
    let held = list(Kind::Members, &old, 1000).0;
    let held = held.chunks().iter().map(|chunk| chunk.id).collect();
    let manifest = list(Kind::Members, &new, 1000).0;
    let (file, missing) = rebuild(&manifest, &new, &held);
    assert!(file == new);
    let changed = 4 + 30_000 + 40 * 64;
    assert_eq!(missing, changed);
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}
