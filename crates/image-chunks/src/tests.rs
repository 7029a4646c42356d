use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use chunks::{Kind, Lister, Manifest};
use proptest::prelude::*;

use crate::format::{ENTRY_BYTES, TRAILER_BYTES};
use crate::{Builder, Error, ImageChunks, Made};

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut xof = blake3::Hasher::new().update(&[seed]).finalize_xof();
    xof.fill(&mut bytes);
    bytes
}

fn list(bytes: &[u8]) -> Manifest {
    let mut lister = Lister::new(Kind::of(bytes.len() as u64, bytes).unwrap());
    lister.update(bytes);
    lister.finish().0
}

/// A file made of these, in a folder of its own.
fn make(files: &[Vec<u8>]) -> (tempfile::TempDir, PathBuf, Made) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root/below");
    fs::create_dir_all(&root).unwrap();
    for (number, bytes) in files.iter().enumerate() {
        fs::write(root.join(number.to_string()), bytes).unwrap();
    }
    let out = dir.path().join("image.chunks");
    let mut builder = Builder::create(&out).unwrap();
    let root = dir.path().join("root");
    builder.directory(&root, 1000, |_, _| {}).unwrap();
    let made = builder.finish().unwrap();
    (dir, out, made)
}

#[track_caller]
fn assert_holds(image: &ImageChunks, bytes: &[u8]) {
    let manifest = list(bytes);
    for chunk in manifest.chunks() {
        let own = &bytes[chunk.offset as usize..chunk.end() as usize];
        assert!(image.read(chunk.id, chunk.len).unwrap() == own);
        assert_eq!(image.read(chunk.id, chunk.len + 1), None);
    }
}

#[test]
fn what_was_there_is_read_again() {
    let random = noise(1, 300_000);
    let text: Vec<u8> = b"the same line again\n".repeat(10_000);
    let pages = [&b"SQLite format 3\0"[..], &noise(2, 50_000)].concat();
    let files = [random, text, pages];
    let twice: Vec<Vec<u8>> = [&files[..], &files[..], &[vec![7; 999]]].concat();
    let (_dir, out, made) = make(&twice);
    let image = ImageChunks::open(&out).unwrap();
    files.iter().for_each(|bytes| assert_holds(&image, bytes));
    assert_eq!((made.files, made.left_out), (6, 0), "one was too small");
    assert_eq!(made.bytes, files.iter().map(|it| it.len() as u64 * 2).sum());
    assert_eq!(made.file_bytes, fs::metadata(&out).unwrap().len());
    assert!(made.file_bytes < 400_000, "once, and the text is smaller");
    assert_eq!(made.chunks, image.len() as u64);
    assert_eq!(image.read(chunks::ChunkId([9; 8]), 4096), None);
}

#[test]
fn an_image_of_nothing_is_a_file_too() {
    let (_dir, out, made) = make(&[]);
    assert!(ImageChunks::open(&out).unwrap().is_empty());
    assert_eq!((made.files, made.chunks), (0, 0));
}

#[test]
fn what_cannot_be_read_is_told_of_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("image.chunks");
    let mut builder = Builder::create(&out).unwrap();
    let missing = dir.path().join("missing");
    let error = builder.directory(&missing, 1, |_, _| {}).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == missing));
    drop(builder);
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "nothing stays of a file that was not finished");
}

/// The error that a file changed like this is refused with.
fn refused(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (_dir, out, _) = make(&[noise(1, 100_000)]);
    let mut bytes = fs::read(&out).unwrap();
    change(&mut bytes);
    fs::write(&out, bytes).unwrap();
    let error = ImageChunks::open(&out).unwrap_err().to_string();
    let (path, what) = error.split_once(": ").unwrap();
    assert_eq!(Path::new(path), out);
    what.to_owned()
}

#[test]
fn a_file_that_is_not_whole_is_refused() {
    assert_eq!(refused(|it| it.clear()), "not a file of image chunks");
    assert_eq!(refused(|it| it[3] ^= 1), "not a file of image chunks");
    let version = refused(|it| it[8] = 9);
    assert!(version.starts_with("unknown format version 9 at byte 8"));
    for len in [16, 70, 50_000] {
        let cut = refused(|it| it.truncate(len));
        assert!(cut.ends_with("truncated or damaged"), "{cut}");
    }
    let longer = refused(|it| it.push(0));
    assert!(longer.ends_with("truncated or damaged"), "{longer}");
    // Still sorted, and within the file.
    let index = refused(|it| {
        let at = it.len() - TRAILER_BYTES - ENTRY_BYTES + 7;
        it[at] ^= 1;
    });
    assert!(index.contains("its index is not the one"), "{index}");
    let many = refused(|it| {
        let at = it.len() - TRAILER_BYTES + 8;
        it[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    });
    assert!(many.starts_with("more than"), "{many}");
}

/// An index with a right digest that lies about where its chunks are.
#[test]
fn an_entry_that_points_elsewhere_is_refused() {
    for (at, what) in [(8, "stored outside"), (16, "a chunk of no size")] {
        let error = refused(|it| {
            let trailer = it.len() - TRAILER_BYTES;
            let index = u64::from_le_bytes(it[trailer..trailer + 8].try_into().unwrap()) as usize;
            it[index + at..index + at + 4].copy_from_slice(&[0xff; 4]);
            let digest = *blake3::hash(&it[index..trailer]).as_bytes();
            it[trailer + 16..trailer + 48].copy_from_slice(&digest);
        });
        assert!(error.starts_with("entry 0 of the index"), "{error}");
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn what_is_damaged_behind_its_back_is_not_what_it_is_called() {
    let bytes = noise(1, 100_000);
    let (_dir, out, _) = make(std::slice::from_ref(&bytes));
    let image = ImageChunks::open(&out).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&out).unwrap();
    file.write_all_at(b"damaged", 16).unwrap();
    let first = list(&bytes).chunks()[0];
    let read = image.read(first.id, first.len).unwrap();
    assert_ne!(Kind::Content.name(0, &read), first.id);
    file.set_len(20).unwrap();
    assert_eq!(image.read(first.id, first.len), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever a file holds, opening it ends in an error or in something that can be read.
    #[test]
    fn no_file_does_harm(at in 0_usize..4000, with: [u8; 4], cut in 0_usize..4000) {
        let (_dir, out, _) = make(&[noise(3, 3000)]);
        let mut bytes = fs::read(&out).unwrap();
        let at = at.min(bytes.len() - 4);
        bytes[at..at + 4].copy_from_slice(&with);
        bytes.truncate(cut.max(1));
        fs::write(&out, bytes).unwrap();
        if let Ok(image) = ImageChunks::open(&out) {
            let chunk = list(&noise(3, 3000)).chunks()[0];
            let _ = image.read(chunk.id, chunk.len);
        }
    }
}
