//! Harmless samples. None of them stands in this source as a file or a literal that an engine
//! would find: each is put together at run time.

use std::io::Write;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;

/// The EICAR test file: 68 bytes that every engine agrees to call malicious.
#[must_use]
pub fn eicar() -> Vec<u8> {
    [
        r"X5O!P%@AP[4\PZX54(P^)7CC)7}$",
        "EICAR-STANDARD-ANTIVIRUS",
        "-TEST-FILE!$H+H*",
    ]
    .concat()
    .into_bytes()
}

/// A ZIP archive with one stored member.
///
/// # Panics
/// The member has more than 4 GiB or its name more than 64 KiB: a bug of the caller.
#[must_use]
pub fn zip(name: &str, content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len())
        .expect("a small member")
        .to_le_bytes();
    let name_len = u16::try_from(name.len())
        .expect("a short name")
        .to_le_bytes();
    let crc = crc32fast::hash(content).to_le_bytes();
    // Version, flags, method (stored), time, date, then sums, sizes and lengths; shared by both
    // headers.
    let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x58];
    for part in [&crc[..], &size, &size, &name_len, &[0, 0]] {
        common.extend_from_slice(part);
    }
    let local = [b"PK\x03\x04", &common[..], name.as_bytes(), content].concat();
    // Comment length, disk, attributes, offset of the local header (0).
    let central = [
        b"PK\x01\x02\x14\x00",
        &common[..],
        &[0; 14],
        name.as_bytes(),
    ]
    .concat();
    let len_of = |part: &[u8]| u32::try_from(part.len()).expect("small").to_le_bytes();
    let end = [
        &b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..],
        &len_of(&central),
        &len_of(&local),
        &[0, 0],
    ]
    .concat();
    [local, central, end].concat()
}

/// A gzip-compressed tar archive with one member.
///
/// # Errors
/// The name is too long for tar.
pub fn tar_gz(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content)?;
    Ok(tar.into_inner()?.finish()?)
}

/// Text that the project's rule `Lazaret_Test_File` finds.
#[must_use]
pub fn test_file() -> Vec<u8> {
    let planted = [
        "LAZARET!TEST-STRING!",
        "6C5F1E0B-2D7A-4E1B-9C53",
        "-NOT-MALWARE!",
    ];
    format!("An ordinary report.\n{}\n", planted.concat()).into_bytes()
}

/// Text that the demo's and the benches' own rules look for: a mark that stands nowhere else.
#[must_use]
pub fn marked(mark: &str) -> Vec<u8> {
    let mut text = Vec::new();
    writeln!(text, "An ordinary report with a mark: {}.", planted(mark))
        .expect("writing to a Vec cannot fail");
    text
}

/// The mark itself, as rules spell it.
#[must_use]
pub fn planted(mark: &str) -> String {
    ["LAZARET", "PLANTED", mark].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn eicar_has_its_known_digest() {
        let file = eicar();
        assert_eq!(file.len(), 68);
        assert_eq!(crc32fast::hash(&file), 0x6851_cf3c);
    }

    /// The archives are ones that others can read.
    #[test]
    fn archives_are_real() {
        let zip = zip("a/b.txt", b"content");
        let script = "import sys,io,zipfile;\
            z=zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read()));\
            print(z.testzip(), z.namelist(), z.read('a/b.txt'))";
        let said = pipe(&["python3", "-c", script], &zip);
        assert_eq!(said, "None ['a/b.txt'] b'content'\n");
        let tar_gz = tar_gz("c.txt", b"inside\n").expect("tar");
        assert_eq!(pipe(&["tar", "-xzO"], &tar_gz), "inside\n");
    }

    fn pipe(command: &[&str], input: &[u8]) -> String {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawn");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input).expect("write");
        drop(stdin);
        let output = child.wait_with_output().expect("wait");
        String::from_utf8(output.stdout).expect("text")
    }
}
