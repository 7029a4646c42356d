//! What is a container, and what only looks like one.

use unpack::Format;

use crate::fixtures::*;
use crate::samples::samples;
use crate::walked::walked;

#[test]
fn each_sample_is_what_it_is() {
    for sample in samples(500) {
        assert_eq!(
            Format::detect(&sample.bytes),
            Some(sample.format),
            "{}",
            sample.name
        );
    }
    for format in Format::ALL {
        assert!(
            samples(10).iter().any(|sample| sample.format == format),
            "no sample of {format}"
        );
    }
}

#[test]
fn not_containers() {
    let check = |what: &str, bytes: &[u8]| {
        let walked = walked(bytes);
        assert_eq!(Format::detect(bytes), None, "{what}");
        assert!(
            walked.summary.is_complete() && walked.members.is_empty(),
            "{what}"
        );
    };
    check("nothing", b"");
    check("one byte", b"P");
    check("zeros", &[0; 100_000]);
    check("noise", &noise(100_000));
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.extend(noise(3000));
    for magic in [
        &b"PK\x03\x04"[..],
        b"PK\x05\x06",
        b"\x1f\x8b\x08",
        b"7z\xbc\xaf\x27\x1c",
        b"BZh91AY&SY",
    ] {
        elf.extend_from_slice(magic);
        elf.extend(noise(500));
    }
    check("a program that knows magics", &elf);
    check(
        "a magic behind the start",
        &[b"x".as_slice(), &gzip(b"1")].concat(),
    );
    check(
        "source",
        b"use zip::ZipArchive;\n\nfn main() {\n    // From: nobody\n}\n",
    );
    check("yaml", b"from: here\nto: there\nvalue: 3\n");
    check("a word", b"Subject: verb\nBZh is no bzip2");
    check(
        "a skippable frame of another format",
        b"\x50\x2a\x4d\x18\x02\0\0\0abLZ4?",
    );
    check(
        "two bytes of cpio",
        &[b"\xc7\x71".as_slice(), &noise(200)].concat(),
    );
    check(
        "an executable without archive",
        &[b"MZ".as_slice(), &noise(4000)].concat(),
    );
}

/// Real programs of the machine that runs this: none is taken for a damaged container.
#[test]
fn programs_of_the_system_are_complete() {
    let programs = [
        "/bin/ls",
        "/bin/sh",
        "/usr/bin/env",
        "/etc/passwd",
        "/etc/services",
    ];
    let contents: Vec<_> = programs
        .iter()
        .filter_map(|path| std::fs::read(path).ok())
        .collect();
    assert!(!contents.is_empty(), "none of {programs:?}");
    for bytes in contents {
        assert!(walked(&bytes).summary.is_complete());
    }
}
