//! The marker is found at each nesting, at its exact path.

use crate::fixtures::*;
use crate::handmade::*;
use crate::walked::walked;

fn check(what: &str, content: &[u8], expected_path: &str) {
    let walked = walked(content);
    let marked = walked.marked();
    assert!(
        marked.iter().any(|path| path == expected_path),
        "in {what}: {:?}",
        walked.paths()
    );
    assert_eq!(walked.incomplete(), None, "in {what}");
    assert!(walked.summary.is_complete(), "{what}");
    assert_eq!(
        walked.summary.members,
        walked.members.len() as u64,
        "{what}"
    );
    let bytes: usize = walked.members.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(walked.summary.bytes, bytes as u64, "{what}");
}

#[test]
fn zip_in_tar_in_gzip() {
    let zip = zip(&[("readme", b"nothing"), ("dir/eicar.com", &planted(5000))]);
    let tar = tar(&[("first", b"1"), ("a/b.zip", &zip)]);
    check(
        "tar.gz",
        &gzip_named(&tar, Some("x.tar")),
        "x.tar > a/b.zip > dir/eicar.com",
    );
    check("tar.gz", &gzip(&tar), "data > a/b.zip > dir/eicar.com");
}

#[test]
fn docx_in_mail() {
    let object = ole(&[("/\u{1}Ole10Native", &ole_native("evil.exe", &planted(700)))]);
    let mail = mail(&[("note.txt", b"text"), ("letter.docx", &docx(&object))]);
    check(
        "mail",
        &mail,
        "letter.docx > word/embeddings/oleObject1.bin > \u{1}Ole10Native/evil.exe",
    );
}

#[test]
fn deb_with_xz() {
    let data = xz(&tar(&[("usr/bin/tool", &planted(9000))]));
    let deb = ar(
        &[
            ("debian-binary", b"2.0\n"),
            (
                "control.tar.gz",
                &gzip(&tar(&[("./control", b"Package: x")])),
            ),
            ("data.tar.xz", &data),
        ],
        ArNames::Gnu,
    );
    check("deb", &deb, "data.tar.xz > data.tar > usr/bin/tool");
}

#[test]
fn rpm_with_each_compression() {
    let payload = cpio(
        &[("./etc/x", b"1"), ("./usr/bin/tool", &planted(3000))],
        CpioKind::Newc,
    );
    let inside = |suffix: &str| format!("payload.cpio.{suffix} > payload.cpio > ./usr/bin/tool");
    check("rpm", &rpm(&zstd(&payload)), &inside("zst"));
    check("rpm", &rpm(&xz(&payload)), &inside("xz"));
    check("rpm", &rpm(&gzip(&payload)), &inside("gz"));
    check("rpm", &rpm(&bzip2(&payload)), &inside("bz2"));
    check("rpm", &rpm(&payload), "payload.cpio > ./usr/bin/tool");
}

#[test]
fn rpm_of_version_6() {
    let inner = zip(&[("x", &planted(800))]);
    let files: &Files<'_> = &[("a", b"12345"), ("b.zip", &inner), ("c", b"1")];
    check("rpm", &rpm6(files, zstd), "/opt/b.zip > x");
    check("rpm", &rpm6(files, <[u8]>::to_vec), "/opt/b.zip > x");
}

#[test]
fn iso_with_7z_with_cab() {
    let mszip = cab::CompressionType::MsZip;
    let cabinet = cab(
        &[&[("setup.inf", b"[x]"), ("tool.exe", &planted(100_000))]],
        mszip,
    );
    let archive = sevenz(&[&[("a.txt", b"a"), ("deep/data.cab", &cabinet)]]);
    let image = iso(&[("autorun.inf", b"x"), ("Long name.7z", &archive)], None);
    check("iso", &image, "DIR/Long name.7z > deep/data.cab > tool.exe");
}

#[test]
fn pdf_in_ole_in_zip() {
    let pdf = pdf(&[
        ("/Filter /FlateDecode", &zlib(b"harmless")),
        (
            "/Type /ObjStm /Filter[/ASCIIHexDecode/Fl#61teDecode]",
            &hex(&zlib(&planted(2000))),
        ),
    ]);
    let document = ole(&[("/WordDocument", b"text"), ("/Pool/1/CONTENTS", &pdf)]);
    check(
        "zip",
        &zip(&[("a.doc", &document)]),
        "a.doc > Pool/1/CONTENTS > object 3 0",
    );
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}\n")).collect();
    format!("{digits}>").into_bytes()
}

#[test]
fn each_plain_compression() {
    let content = planted(200_000);
    for (what, packed) in [
        ("gzip", gzip(&content)),
        ("bzip2", bzip2(&content)),
        ("xz", xz(&content)),
        ("zstd", zstd(&content)),
    ] {
        check(what, &packed, "data");
        let twice = [packed.as_slice(), &packed].concat();
        let both = walked(&twice);
        assert!(both.summary.is_complete(), "{what}: two streams");
        assert_eq!(
            both.members[0].1,
            [content.as_slice(), &content].concat(),
            "{what}"
        );
        let padded = [packed.as_slice(), &[0; 512], b"behind the end"].concat();
        check(what, &padded, "data");
    }
}
