//! Which container some bytes are: by their content, never by a name.

use std::fmt;

use crate::formats::{ar, cab, compressed, cpio, iso, mime, ole, pdf, rpm, sevenz, tar, zip};
use crate::walker::{Halt, Walker};

/// A kind of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// ZIP, also OOXML, JAR, APK… and self-extracting executables with a ZIP at their end.
    Zip,
    /// gzip, of one or more members.
    Gzip,
    /// bzip2, of one or more streams.
    Bzip2,
    /// xz, of one or more streams.
    Xz,
    /// Zstandard, of one or more frames.
    Zstd,
    /// tar: v7, ustar, GNU, pax.
    Tar,
    /// 7z.
    SevenZ,
    /// Microsoft cabinet.
    Cab,
    /// Unix archive, also deb packages.
    Ar,
    /// RPM package.
    Rpm,
    /// cpio: newc, crc, odc and both binary orders.
    Cpio,
    /// ISO 9660 with Joliet and Rock Ridge names.
    Iso,
    /// OLE compound file: DOC, XLS, PPT, MSI, MSG.
    Ole,
    /// PDF.
    Pdf,
    /// Internet message with MIME parts or uuencoded text.
    Mime,
    /// Unix mailbox of such messages.
    Mbox,
}

impl Format {
    /// Every kind, in no order.
    pub const ALL: [Self; 16] = [
        Self::Zip,
        Self::Gzip,
        Self::Bzip2,
        Self::Xz,
        Self::Zstd,
        Self::Tar,
        Self::SevenZ,
        Self::Cab,
        Self::Ar,
        Self::Rpm,
        Self::Cpio,
        Self::Iso,
        Self::Ole,
        Self::Pdf,
        Self::Mime,
        Self::Mbox,
    ];

    /// What containers of the common kinds begin with; others do not, or hardly ever.
    pub const HEADS: [&[u8]; 10] = [
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"BZh91AY&SY",
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"7z\xbc\xaf\x27\x1c",
        b"MSCF\0\0\0\0",
        b"!<arch>\n",
        b"\xed\xab\xee\xdb",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    ];

    /// The kind of `bytes`, if they are a container. Cheap: looks at the start, and at a few
    /// known places.
    ///
    /// What is found here and cannot be read is damaged, and says so; so each test asks for
    /// enough that chance does not pass it. A magic in the middle of a file is never looked for,
    /// but for one: the directory of a ZIP at the very end, as self-extractors have it.
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        Self::by_magic(bytes)
            .or_else(|| cpio::is_cpio(bytes).then_some(Self::Cpio))
            .or_else(|| tar::is_tar(bytes).then_some(Self::Tar))
            .or_else(|| iso::is_iso(bytes).then_some(Self::Iso))
            .or_else(|| pdf::is_pdf(bytes).then_some(Self::Pdf))
            .or_else(|| mime::is_mbox(bytes).then_some(Self::Mbox))
            .or_else(|| mime::is_message(bytes).then_some(Self::Mime))
            .or_else(|| zip::has_appended_zip(bytes).then_some(Self::Zip))
    }

    pub(crate) fn by_magic(bytes: &[u8]) -> Option<Self> {
        let starts = |magic: &[u8]| bytes.starts_with(magic);
        if zip::is_zip(bytes) {
            Some(Self::Zip)
        } else if compressed::is_gzip(bytes) {
            Some(Self::Gzip)
        } else if compressed::is_bzip2(bytes) {
            Some(Self::Bzip2)
        } else if starts(b"\xfd7zXZ\0") {
            Some(Self::Xz)
        } else if compressed::is_zstd(bytes) {
            Some(Self::Zstd)
        } else if starts(b"7z\xbc\xaf\x27\x1c") {
            Some(Self::SevenZ)
        } else if starts(b"MSCF\0\0\0\0") {
            Some(Self::Cab)
        } else if starts(b"!<arch>\n") {
            Some(Self::Ar)
        } else if starts(b"\xed\xab\xee\xdb") {
            Some(Self::Rpm)
        } else if starts(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") {
            Some(Self::Ole)
        } else {
            None
        }
    }

    /// Opens `bytes` as this kind, members going to the walker.
    pub(crate) fn open(self, walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
        match self {
            Self::Zip => zip::open(walker, bytes),
            Self::Gzip => compressed::open_gzip(walker, bytes),
            Self::Bzip2 => compressed::open_bzip2(walker, bytes),
            Self::Xz => compressed::open_xz(walker, bytes),
            Self::Zstd => compressed::open_zstd(walker, bytes),
            Self::Tar => tar::open(walker, bytes),
            Self::SevenZ => sevenz::open(walker, bytes),
            Self::Cab => cab::open(walker, bytes),
            Self::Ar => ar::open(walker, bytes),
            Self::Rpm => rpm::open(walker, bytes),
            Self::Cpio => cpio::open(walker, bytes),
            Self::Iso => iso::open(walker, bytes),
            Self::Ole => ole::open(walker, bytes),
            Self::Pdf => pdf::open(walker, bytes),
            Self::Mime => mime::open(walker, bytes),
            Self::Mbox => mime::open_mbox(walker, bytes),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zip => "zip",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Tar => "tar",
            Self::SevenZ => "7z",
            Self::Cab => "cab",
            Self::Ar => "ar",
            Self::Rpm => "rpm",
            Self::Cpio => "cpio",
            Self::Iso => "iso",
            Self::Ole => "ole",
            Self::Pdf => "pdf",
            Self::Mime => "mime",
            Self::Mbox => "mbox",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guess::{Guess, Whole};

    #[test]
    fn what_begins_with_one_of_the_heads_may_be_a_container() {
        for head in Format::HEADS {
            let mut bytes = head.to_vec();
            bytes.resize(4096, 0);
            assert!(Format::by_magic(&bytes).is_some(), "{head:x?}");
            assert_eq!(Format::guess(&Whole(&bytes)), Guess::Maybe, "{head:x?}");
        }
    }
}
