//! What is particular to one format.

use unpack::IncompleteKind::{Encrypted, Malformed, Unsupported};
use zip::CompressionMethod;

use crate::fixtures::*;
use crate::handmade::*;
use crate::walked::walked;

#[test]
fn zip_methods() {
    let content = planted(50_000);
    for method in [
        CompressionMethod::Stored,
        CompressionMethod::Deflated,
        CompressionMethod::Bzip2,
        CompressionMethod::Zstd,
        CompressionMethod::Xz,
        CompressionMethod::Ppmd,
    ] {
        let walked = walked(&zip_with(&[("x", &content)], method));
        assert_eq!(walked.marked(), ["x"], "{method:?}");
        assert!(
            walked.summary.is_complete(),
            "{method:?}: {:?}",
            walked.incomplete()
        );
    }
}

/// One that `python3 -m zipfile` and PKZIP made: LZMA in a ZIP has a header of its own.
#[test]
fn zip_with_lzma() {
    let walked = walked(include_bytes!("data/lzma.zip"));
    assert_eq!(
        walked.marked(),
        ["planted.txt"],
        "{:?}",
        walked.incomplete()
    );
    assert!(walked.summary.is_complete());
}

#[test]
fn zip_entries_of_one_name_are_all_shown() {
    let mut archive = zip(&[("aa", &planted(100)), ("ab", b"harmless")]);
    let harmless_name = b"ab";
    while let Some(at) = archive
        .windows(2)
        .position(|window| window == harmless_name)
    {
        archive[at..at + 2].copy_from_slice(b"aa");
    }
    let walked = walked(&archive);
    assert_eq!(walked.paths(), ["aa", "aa"]);
    assert!(walked.summary.is_complete(), "{:?}", walked.incomplete());
}

#[test]
fn encrypted_members_are_told_and_the_others_shown() {
    let inner = zip_encrypted(&[("secret.txt", &planted(100))]);
    let outer = zip(&[("locked.zip", &inner), ("plain.txt", &planted(50))]);
    let walked = walked(&outer);
    assert_eq!(walked.kind(), Some(Encrypted));
    assert_eq!(
        walked.incomplete_path().as_deref(),
        Some("locked.zip > secret.txt")
    );
    assert_eq!(walked.marked(), ["plain.txt"]);
}

#[test]
fn encrypted_7z() {
    for header in [false, true] {
        let archive = sevenz_encrypted(&[("a", &planted(100))], header);
        let walked = walked(&archive);
        assert_eq!(
            walked.kind(),
            Some(Encrypted),
            "header {header}: {:?}",
            walked.incomplete()
        );
        assert!(walked.marked().is_empty());
    }
}

#[test]
fn encrypted_documents() {
    let office = ole(&[
        ("/EncryptionInfo", b"x"),
        ("/EncryptedPackage", &noise(500)),
    ]);
    assert_eq!(walked(&office).kind(), Some(Encrypted));
    let mut pdf = pdf(&[("", b"\x01\x02")]);
    let at = pdf.len() - b">>\nstartxref\n9\n%%EOF\n".len();
    pdf.splice(at..at, *b"/Encrypt 5 0 R ");
    assert_eq!(walked(&pdf).kind(), Some(Encrypted));
}

#[test]
fn zip_behind_an_executable() {
    let archive = zip(&[("payload.exe", &planted(3000))]);
    let mut program = b"MZ".to_vec();
    program.extend(noise(10_000));
    program.extend_from_slice(&archive);
    let walked = walked(&program);
    assert_eq!(walked.marked(), ["payload.exe"]);
    assert!(walked.summary.is_complete(), "{:?}", walked.incomplete());
}

#[test]
fn zip_without_directory() {
    let archive = zip(&[("a", b"first"), ("b/", b""), ("c", &planted(4000))]);
    let directory = archive
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .expect("a directory");
    let walked = walked(&archive[..directory]);
    assert_eq!(walked.marked(), ["c"]);
    assert_eq!(walked.kind(), Some(Malformed));
}

/// A streamed archive has sizes only behind the data and in the directory.
#[test]
fn streamed_zip_without_directory() {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new_stream(Vec::new());
    for (name, bytes) in [("a", b"first".to_vec()), ("c", planted(4000))] {
        writer
            .start_file(name, zip::write::SimpleFileOptions::default())
            .expect("a name");
        writer.write_all(&bytes).expect("memory");
    }
    let archive = writer.finish().expect("memory").into_inner();
    assert!(walked(&archive).summary.is_complete());
    let directory = archive
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .expect("a directory");
    let walked = walked(&archive[..directory]);
    assert_eq!(
        (walked.marked(), walked.kind()),
        (vec!["c".to_owned()], Some(Malformed))
    );
}

#[test]
fn zip_whose_headers_disagree() {
    let mut archive = zip(&[("a", &planted(3000))]);
    archive[8] = 0;
    let walked = walked(&archive);
    assert_eq!(
        (walked.marked(), walked.kind()),
        (vec!["a".to_owned()], Some(Malformed))
    );
}

#[test]
fn tar_long_names_and_sparse_files() {
    let long = "d/".repeat(80) + "file";
    assert_eq!(
        walked(&tar(&[(&long, &planted(600))])).marked(),
        [long.as_str()]
    );
    let sparse = walked(&sparse_tar());
    let expected = [vec![0; 1024], planted(512)].concat();
    assert_eq!(sparse.members, [(vec!["holes".to_owned()], expected)]);
    assert!(sparse.summary.is_complete(), "{:?}", sparse.incomplete());
}

/// A GNU sparse file: 1024 bytes of hole, 512 bytes of data.
fn sparse_tar() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("holes").expect("short");
    header.set_size(512);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::GNUSparse);
    let gnu = header.as_gnu_mut().expect("it is");
    gnu.set_real_size(1536);
    gnu.sparse[0].set_offset(1024);
    gnu.sparse[0].set_length(512);
    header.set_cksum();
    [header.as_bytes().as_slice(), &planted(512), &[0; 1024]].concat()
}

#[test]
fn sevenz_methods_and_damage() {
    use sevenz_rust2::EncoderMethod as M;
    let content = planted(5000);
    for method in [
        M::COPY,
        M::LZMA,
        M::LZMA2,
        M::BZIP2,
        M::DEFLATE,
        M::PPMD,
        M::ZSTD,
    ] {
        let archive = sevenz_with(&[&[("x", &content)]], vec![method.into()]);
        assert_eq!(walked(&archive).marked(), ["x"], "{}", method.name());
    }
    let mut archive = sevenz(&[&[("a", &planted(900))], &[("b", &planted(900))]]);
    archive[40] ^= 0xff;
    let walked = walked(&archive);
    assert!(
        walked.marked().contains(&"b".to_owned()),
        "a damaged block costs only itself"
    );
    assert_eq!(walked.kind(), Some(Malformed));
}

#[test]
fn cab_methods() {
    let content = planted(90_000);
    let second = planted(40_000);
    for method in [cab::CompressionType::None, cab::CompressionType::MsZip] {
        let files: [(&str, &[u8]); 3] = [("a", b"first"), ("b", &content), ("c", b"last")];
        let walked = walked(&cab(&[&files, &[("d", &second)]], method));
        assert_eq!(walked.paths(), ["a", "b", "c", "d"], "{method:?}");
        assert_eq!(walked.members[1].1, content, "{method:?}");
        assert_eq!(walked.members[3].1, second, "{method:?}");
        assert!(
            walked.summary.is_complete(),
            "{method:?}: {:?}",
            walked.incomplete()
        );
    }
    let lzx = walked(&cab_lzx("x", &planted(20_000)));
    assert_eq!(lzx.members[0].1, planted(20_000), "{:?}", lzx.incomplete());
    assert!(lzx.summary.is_complete());
    let quantum = cab_raw("x", 4, 2, b"abcd", 4);
    assert_eq!(walked(&quantum).kind(), Some(Unsupported));
}

#[test]
fn ar_names() {
    let files: &Files<'_> = &[("a-name-of-many-bytes.o", &planted(101)), ("short", b"1")];
    for names in [ArNames::Gnu, ArNames::Bsd] {
        let walked = walked(&ar(files, names));
        assert_eq!(walked.marked(), ["a-name-of-many-bytes.o"]);
        assert!(
            walked.paths().contains(&"short".to_owned()),
            "{:?}",
            walked.paths()
        );
        assert!(walked.summary.is_complete());
    }
}

#[test]
fn cpio_kinds() {
    use CpioKind::*;
    for kind in [Newc, Odc, BinaryLittle, BinaryBig] {
        let walked = walked(&cpio(&[("odd", b"123"), ("x/y", &planted(777))], kind));
        assert_eq!(walked.paths(), ["odd", "x/y"]);
        assert_eq!(walked.marked(), ["x/y"]);
        assert!(walked.summary.is_complete());
    }
}

#[test]
fn iso_trees() {
    let image = iso(
        &[("a file", &planted(5000))],
        Some(&[("only in Joliet", &planted(99))]),
    );
    let both = walked(&image);
    assert_eq!(both.marked(), ["DIR/a file", "DIR/only in Joliet"]);
    assert!(both.summary.is_complete());
    let mut udf = image.clone();
    udf[18 * 2048 + 1..][..5].copy_from_slice(b"NSR03");
    assert_eq!(walked(&udf).kind(), Some(Unsupported));
}

#[test]
fn rpm_with_unknown_compression() {
    let walked = walked(&rpm(b"legacy lzma perhaps"));
    assert_eq!(
        (walked.paths(), walked.kind()),
        (vec!["payload".to_owned()], Some(Unsupported))
    );
}

#[test]
fn powerpoint_objects() {
    let object = ole(&[("/a", &planted(500))]);
    let zipped = [
        &(object.len() as u32).to_le_bytes(),
        zlib(&object).as_slice(),
    ]
    .concat();
    let mut stream = Vec::new();
    for (options, kind, body) in [(0x0f_u16, 1000_u16, &b"slide"[..]), (0x10, 0x1011, &zipped)] {
        stream.extend_from_slice(&options.to_le_bytes());
        stream.extend_from_slice(&kind.to_le_bytes());
        stream.extend_from_slice(&(body.len() as u32).to_le_bytes());
        stream.extend_from_slice(body);
    }
    let walked = walked(&ole(&[("/PowerPoint Document", &stream)]));
    assert_eq!(
        walked.marked(),
        [
            "PowerPoint Document/object 1",
            "PowerPoint Document/object 1 > a"
        ]
    );
    assert!(walked.summary.is_complete());
}

#[test]
fn pdf_filters() {
    let content = planted(300);
    let lzw = weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8)
        .encode(&content)
        .expect("memory");
    let rows: Vec<u8> = content
        .chunks(10)
        .flat_map(|row| [&[0], row].concat())
        .collect();
    let streams: &Files<'_> = &[
        ("", &content),
        ("/Filter /LZWDecode", &lzw),
        (
            "/Filter /FlateDecode /DecodeParms << /Predictor 15 /Columns 10 >>",
            &zlib(&rows),
        ),
        (
            "/Filter [/FlateDecode /FlateDecode]",
            &zlib(&zlib(&content)),
        ),
        ("/Filter /DCTDecode", &content),
    ];
    let whole = walked(&pdf(streams));
    assert_eq!(
        whole.marked().len(),
        streams.len(),
        "{:?}: {:?}",
        whole.marked(),
        whole.incomplete()
    );
    assert!(whole.summary.is_complete(), "{:?}", whole.incomplete());
    let strange = walked(&pdf(&[("/Filter 9 0 R", &zlib(&content))]));
    assert_eq!(
        (strange.marked().len(), strange.kind()),
        (1, Some(Unsupported))
    );
    let crypt = walked(&pdf(&[("/Filter /Crypt", &content)]));
    assert_eq!(crypt.kind(), Some(Encrypted));
}

/// A cross-reference table that points to itself leads nowhere: it is not read.
#[test]
fn pdf_with_a_looping_table() {
    let mut pdf = pdf(&[("/Filter /FlateDecode", &zlib(&planted(100)))]);
    pdf.extend_from_slice(b"xref\n0 0\ntrailer << /Prev 9 >>\nstartxref\n9\n%%EOF");
    assert_eq!(walked(&pdf).marked(), ["object 2 0"]);
}

#[test]
fn pdf_that_is_a_zip_too() {
    let polyglot = [pdf(&[]), zip(&[("x", &planted(50))])].concat();
    assert_eq!(walked(&polyglot).marked(), ["x"]);
}

#[test]
fn mail_encodings() {
    let nested = "From: a\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=o\n\n\
        --o\nContent-Type: multipart/alternative; boundary=\"i\"\n\n\
        --i\nContent-Transfer-Encoding: quoted-printable\nContent-Type: text/html; name=q\n\n\
        =4CAZARET-PLA=\nNTED-STRING\n--i--\n\
        --o\nContent-Type: text/plain\n\nbegin 644 u.bin\n63$%:05)%5\"U03$%.5$5$+5-44DE.1P``\n`\nend\n\
        --o--\n";
    let walked = walked(nested.as_bytes());
    assert_eq!(walked.marked(), ["q", "u.bin"], "{:?}", walked.paths());
    assert!(walked.summary.is_complete(), "{:?}", walked.incomplete());
}

#[test]
fn mailbox() {
    let mail = mail(&[("x", &planted(90))]);
    let mbox = [b"From a\n", mail.as_slice(), b"\nFrom b\n", &mail].concat();
    assert_eq!(walked(&mbox).marked(), ["message 1 > x", "message 2 > x"]);
}

#[test]
fn a_name_keeps_its_bytes_and_is_cut() {
    let cpio = cpio(&[(&"n\n/../".repeat(300), b"1")], CpioKind::Newc);
    let walked = walked(&cpio);
    assert_eq!(walked.paths()[0].len(), unpack::NAME_BYTES_MAX);
    assert!(walked.paths()[0].starts_with("n\n/../"));
}
