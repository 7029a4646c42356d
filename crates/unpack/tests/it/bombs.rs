//! Small files that would unpack to more than there is.

use std::io::Write;

use unpack::IncompleteKind::{Depth, Entries, EntryBytes, Malformed, Ratio, TotalBytes};
use unpack::Limits;

use crate::fixtures::*;
use crate::handmade::{CpioKind, cpio, record};
use crate::walked::{walked, walked_with};

/// Ten GiB of zeros as streams of 64 MiB one after the other: no encoder has to run for long.
fn ten_gib(encode: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    encode(&vec![0; 64 << 20]).repeat(160)
}

#[test]
fn ten_gib_of_zeros() {
    for (what, bomb) in [
        ("gzip", ten_gib(gzip)),
        ("bzip2", ten_gib(bzip2)),
        ("xz", ten_gib(xz)),
        ("zstd", ten_gib(zstd)),
    ] {
        let walked = walked(&bomb);
        let kind = walked.kind();
        assert!(
            matches!(kind, Some(Ratio | EntryBytes)),
            "{what}: {:?}",
            walked.incomplete()
        );
        assert!(walked.summary.bytes <= Limits::ENTRY_BYTES_MAX, "{what}");
    }
}

#[test]
fn ten_thousand_levels_of_gzip() {
    let mut bytes = planted(50);
    for _ in 0..10_000 {
        // Stored, so that it stays quick to make: 23 bytes more each time.
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gzip.write_all(&bytes).expect("memory");
        bytes = gzip.finish().expect("memory");
    }
    let deepest = Limits {
        depth_max: u32::MAX,
        ..Limits::default()
    };
    for limits in [Limits::default(), deepest] {
        let walked = walked_with(&bytes, &limits);
        assert_eq!(walked.kind(), Some(Depth));
        assert!(walked.members.len() <= 64);
    }
}

/// As 42.zip: sixteen archives in each, five levels, then files of zeros.
#[test]
fn nested_archives_that_multiply() {
    let zeros = vec![0; 4 << 20];
    let mut level = zip(&[("0", &zeros)]);
    for _ in 0..5 {
        let names: Vec<String> = (0..16).map(|i| format!("{i}.zip")).collect();
        let files: Vec<(&str, &[u8])> = names
            .iter()
            .map(|n| (n.as_str(), level.as_slice()))
            .collect();
        level = zip(&files);
    }
    let limits = Limits {
        ratio_max: u32::MAX,
        ..Limits::default()
    };
    let walked = walked_with(&level, &limits);
    assert_eq!(walked.kind(), Some(TotalBytes));
    assert!(walked.summary.bytes <= Limits::TOTAL_BYTES_MAX);
}

/// Thousands of directory entries that share one kernel of data.
#[test]
fn zip_entries_that_overlap() {
    let content = vec![0; 4 << 20];
    let one = zip(&[("0", &content)]);
    let directory = one
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .expect("a directory");
    let end = one
        .windows(4)
        .position(|w| w == b"PK\x05\x06")
        .expect("an end");
    let entries = 65_534_u16;
    let record = &one[directory..end];
    let mut bomb = one[..directory].to_vec();
    bomb.extend(record.repeat(entries.into()));
    let mut tail = one[end..].to_vec();
    tail[8..10].copy_from_slice(&entries.to_le_bytes());
    tail[10..12].copy_from_slice(&entries.to_le_bytes());
    tail[12..16].copy_from_slice(&(record.len() as u32 * u32::from(entries)).to_le_bytes());
    bomb.extend(tail);
    let limits = Limits {
        ratio_max: u32::MAX,
        ..Limits::default()
    };
    let walked = walked_with(&bomb, &limits);
    assert_eq!(walked.kind(), Some(TotalBytes), "{:?}", walked.incomplete());
    assert_eq!(walked.summary.bytes, Limits::TOTAL_BYTES_MAX);
    assert!(walked.members.len() <= 129, "the walk ended");
}

#[test]
fn many_empty_entries() {
    let names: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b""[..])).collect();
    for bomb in [zip(&files), cpio(&files, CpioKind::Newc)] {
        let walked = walked(&bomb);
        assert_eq!(walked.kind(), Some(Entries));
        assert_eq!(walked.members.len() as u32, Limits::ENTRIES_MAX);
    }
}

/// An archive that holds itself: the bytes of a member are those of the container.
#[test]
fn an_archive_that_holds_itself() {
    // A file of an ISO image may point at the image itself.
    const SECTOR: usize = 2048;
    let mut image = crate::handmade::iso(&[("x", b"1")], None);
    let len = image.len();
    let quine = record(b"QUINE.ISO;1", (0, len), 0, b"");
    let dots = 2 * record(&[0], (0, 0), 2, b"").len();
    image[21 * SECTOR + dots..][..quine.len()].copy_from_slice(&quine);
    let walked = walked(&image);
    assert_eq!(walked.kind(), Some(Depth));
    let deepest = walked.members.iter().map(|(path, _)| path.len()).max();
    assert_eq!(deepest, Some(Limits::DEPTH_MAX as usize));
}

#[test]
fn directories_that_loop() {
    const SECTOR: usize = 2048;
    let mut image = crate::handmade::iso(&[("x", MARKER)], None);
    let used = record(&[0], (0, 0), 2, b"").len() * 2;
    let up = record(b"UP", (20, SECTOR), 2, b"");
    let at = 21 * SECTOR + used + record(b"FILE0.BIN;1", (0, 0), 0, b"NM\x06\x01\0x").len();
    image[at..at + up.len()].copy_from_slice(&up);
    let walked = walked(&image);
    assert_eq!(walked.paths(), ["DIR/x"]);
    assert!(walked.summary.is_complete(), "{:?}", walked.incomplete());
}

/// A FAT that loops: the crate refuses it or its stream ends; either way it says so.
#[test]
fn sectors_that_loop() {
    let mut file = ole(&[("/big", &planted(60_000))]);
    let fat = file.len() / 512;
    let mut looped = 0;
    for at in (512..fat * 512).step_by(4) {
        // Chains count up: make each link that leads on lead back to where it is.
        let id = u32::from_le_bytes(file[at..at + 4].try_into().expect("four"));
        if (10..100).contains(&id) && looped < 20 {
            file[at..at + 4].copy_from_slice(&(id - 1).to_le_bytes());
            looped += 1;
        }
    }
    assert!(looped > 0, "the test changed something");
    assert_eq!(walked(&file).kind(), Some(Malformed));
}

/// A chain of filters whose middle is huge and whose end is nothing.
#[test]
fn pdf_filters_that_swallow() {
    let spaces = vec![b' '; 64 << 20];
    let bomb = crate::handmade::pdf(&[
        (
            "/Filter [/FlateDecode /FlateDecode /ASCIIHexDecode]",
            &zlib(&zlib(&spaces)),
        ),
        ("", MARKER),
    ]);
    let limits = Limits {
        entry_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let walked = walked_with(&bomb, &limits);
    assert!(walked.kind().is_some());
    assert_eq!(walked.marked().len(), 1);
}

/// A cabinet whose file lies behind gigabytes that nobody asked for.
#[test]
fn cab_with_a_gap() {
    let mut cab = cab::CabinetBuilder::new();
    cab.add_folder(cab::CompressionType::MsZip).add_file("far");
    let mut writer = cab.build(std::io::Cursor::new(Vec::new())).expect("memory");
    let mut file = writer.next_file().expect("memory").expect("one file");
    file.write_all(&vec![0; 40 << 20]).expect("memory");
    let mut bytes = writer.finish().expect("memory").into_inner();
    let name = bytes
        .windows(4)
        .position(|w| w == b"far\0")
        .expect("its name");
    bytes[name - 16..name - 12].copy_from_slice(&10_u32.to_le_bytes());
    bytes[name - 12..name - 8].copy_from_slice(&(39_u32 << 20).to_le_bytes());
    let limits = Limits {
        total_bytes_max: 16 << 20,
        ..Limits::default()
    };
    let walked = walked_with(&bytes, &limits);
    assert_eq!((walked.kind(), walked.members.len()), (Some(TotalBytes), 0));
}

/// A header of a few hundred bytes that unpacks to one announcing millions of files.
#[test]
fn sevenz_with_a_long_header() {
    let names: Vec<String> = (0..60_000).map(|i| format!("{i:0>40}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b""[..])).collect();
    let bomb = sevenz(&[&files]);
    let tight = Limits {
        window_bytes_max: 128 << 20,
        ..Limits::default()
    };
    let refused = walked_with(&bomb, &tight);
    assert_eq!(refused.kind(), Some(unpack::IncompleteKind::Unsupported));
    assert_eq!(refused.members.len(), 0);
}
