//! One small container of each kind, all holding the marker: for damage, mutation and as seeds
//! of the fuzz targets.

use unpack::Format;

use crate::fixtures::*;
use crate::handmade::*;

/// A container.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    pub(crate) bytes: Vec<u8>,
}

/// One of each kind; `len` is the length of the file inside.
pub(crate) fn samples(len: usize) -> Vec<Sample> {
    use CpioKind::*;
    use Format::*;
    let content = planted(len);
    let files: &Files<'_> = &[("first.txt", b"first"), ("planted.bin", &content)];
    let sample = |name, format, bytes| Sample {
        name,
        format,
        bytes,
    };
    let mut samples = vec![
        sample("zip", Zip, zip(files)),
        sample("gzip", Gzip, gzip(&content)),
        sample("bzip2", Bzip2, bzip2(&content)),
        sample("xz", Xz, xz(&content)),
        sample("zstd", Zstd, zstd(&content)),
        sample("tar", Tar, tar(files)),
        sample("7z", SevenZ, sevenz(&[files, &[("third", b"3")]])),
        sample("cab", Cab, cab(&[files], cab::CompressionType::MsZip)),
        sample(
            "cab-lzx",
            Cab,
            cab_lzx("planted.bin", &content[..len.min(30_000)]),
        ),
        sample("ar", Ar, ar(files, ArNames::Bsd)),
        sample("rpm", Rpm, rpm(&gzip(&cpio(files, Newc)))),
        sample("rpm6", Rpm, rpm6(files, zstd)),
        sample("iso", Iso, iso(files, Some(&[("third", b"3")]))),
        sample(
            "ole",
            Ole,
            ole(&[("/one", b"1"), ("/a/planted.bin", &content)]),
        ),
        sample("pdf", Pdf, sample_pdf(&content)),
        sample("mime", Mime, mail(files)),
        sample(
            "mbox",
            Mbox,
            [b"From me\n", mail(files).as_slice()].concat(),
        ),
    ];
    for (name, kind) in [
        ("cpio-newc", Newc),
        ("cpio-odc", Odc),
        ("cpio-le", BinaryLittle),
        ("cpio-be", BinaryBig),
    ] {
        samples.push(sample(name, Cpio, cpio(files, kind)));
    }
    samples
}

fn sample_pdf(content: &[u8]) -> Vec<u8> {
    pdf(&[
        ("/Filter /FlateDecode", &zlib(b"first")),
        (
            "/Filter [/FlateDecode] /DecodeParms [<< /Predictor 12 /Columns 4 >>]",
            &zlib(b""),
        ),
        ("/Filter /Fl", &zlib(content)),
    ])
}
