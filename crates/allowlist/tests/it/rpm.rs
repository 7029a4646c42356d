//! Headers of rpm's database: made here byte by byte, and by the rpm program in the CLI's tests.

use std::fs;
use std::path::Path;

use allowlist::{Builder, Error};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

const STRING: u32 = 6;
const STRINGS: u32 = 8;
const INT16: u32 = 3;
const INT32: u32 = 4;

type Tag = (u32, u32, u32, Vec<u8>);

/// A header as rpm's database holds it.
fn header(tags: &[Tag]) -> Vec<u8> {
    let (mut index, mut data) = (Vec::new(), Vec::new());
    for (tag, kind, count, bytes) in tags {
        for number in [*tag, *kind, data.len() as u32, *count] {
            index.extend_from_slice(&number.to_be_bytes());
        }
        data.extend_from_slice(bytes);
    }
    let mut header = (tags.len() as u32).to_be_bytes().to_vec();
    header.extend_from_slice(&(data.len() as u32).to_be_bytes());
    [header, index, data].concat()
}

fn texts(tag: u32, texts: &[&str]) -> Tag {
    let bytes = texts
        .iter()
        .flat_map(|text| [text.as_bytes(), b"\0"].concat());
    (tag, STRINGS, texts.len() as u32, bytes.collect())
}

fn words(tag: u32, words: &[u32]) -> Tag {
    let bytes = words.iter().flat_map(|word| word.to_be_bytes());
    (tag, INT32, words.len() as u32, bytes.collect())
}

fn modes(modes: &[u16]) -> Tag {
    let bytes = modes.iter().flat_map(|mode| mode.to_be_bytes());
    (1030, INT16, modes.len() as u32, bytes.collect())
}

fn sum(content: &str) -> String {
    allowlist::hex(&Sha256::digest(content))
}

/// good, changed, gone, a link, a ghost; all in /usr/bin.
fn tool() -> Vec<Tag> {
    let (good, other) = (sum("good"), sum("as packaged"));
    vec![
        (1000, STRING, 1, b"tool\0".to_vec()),
        modes(&[0o100_755, 0o100_644, 0o100_644, 0o120_777, 0o100_644]),
        texts(1035, &[&good, &other, &other, "", &other]),
        words(1037, &[0, 1, 0, 0, 64]),
        words(1116, &[0; 5]),
        texts(1117, &["good", "changed", "gone", "link", "ghost"]),
        texts(1118, &["/usr/bin/"]),
        words(5011, &[8]),
    ]
}

fn root() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
    fs::write(folder.path().join("usr/bin/good"), "good").unwrap();
    fs::write(folder.path().join("usr/bin/changed"), "changed").unwrap();
    folder
}

#[test]
fn files_of_packages_are_verified() {
    let root = root();
    let mut builder = Builder::new();
    let name = builder
        .rpm_header(root.path(), &header(&tool()), &[])
        .unwrap();
    assert_eq!(name, "tool");
    let left_out: Vec<_> = builder
        .differing()
        .iter()
        .map(|it| it.path.strip_prefix(root.path()).unwrap())
        .collect();
    assert_eq!(
        left_out,
        [Path::new("usr/bin/changed"), Path::new("usr/bin/gone")]
    );
    let list = builder.finish("x", 1, 7).unwrap();
    assert_eq!(list.listed(), [*blake3::hash(b"good").as_bytes()]);
}

#[test]
fn other_packages_are_left_alone() {
    let root = root();
    let mut builder = Builder::new();
    let wanted = ["another".to_owned()];
    builder
        .rpm_header(root.path(), &header(&tool()), &wanted)
        .unwrap();
    assert!(builder.is_empty() && builder.differing().is_empty());
}

#[test]
fn a_sum_that_is_not_understood_lists_nothing() {
    let root = root();
    let mut tags = tool();
    tags[7] = words(5011, &[2]);
    let mut builder = Builder::new();
    builder
        .rpm_header(root.path(), &header(&tags), &[])
        .unwrap();
    assert_eq!((builder.len(), builder.differing().len()), (0, 3));
    assert!(builder.differing()[0].why.contains("hash function 2"));
}

#[track_caller]
fn refused(header: &[u8], why: &str) {
    let error = Builder::new()
        .rpm_header(root().path(), header, &[])
        .unwrap_err();
    assert!(
        matches!(error, Error::RpmHeader(_)) && error.to_string().contains(why),
        "{error}"
    );
}

#[test]
fn each_defect_is_named() {
    let whole = header(&tool());
    refused(&whole[..whole.len() - 1], "counts");
    refused(&[0xff; 16], "counts");
    refused(&header(&tool()[1..]), "no name");
    let with = |at: usize, tag: Tag| {
        let mut tags = tool();
        tags[at] = tag;
        header(&tags)
    };
    refused(&with(4, words(1116, &[0, 0, 0, 0])), "equally long");
    refused(&with(4, words(1116, &[9; 5])), "not listed");
    refused(&with(6, texts(1118, &["/usr/../../"])), "leaves the root");
    let mut tag = words(1037, &[0]);
    tag.2 = u32::MAX;
    refused(&with(3, tag), "ends behind");
}

proptest! {
    #[test]
    fn foreign_headers_never_panic(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let root = root();
        let mut bytes = header(&tool());
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let mut builder = Builder::new();
        // Whatever it says: only content that was read can be listed.
        let _ = builder.rpm_header(root.path(), &bytes, &[]);
        prop_assert!(builder.len() <= 1);
    }
}
