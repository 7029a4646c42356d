//! Files that hold one compressed stream: gzip, bzip2, xz, zstd.

use crate::codecs;
use crate::fields;
use crate::sink::Sink;
use crate::walker::{Halt, Walker};

/// The name of a member that has none and whose container has none that helps.
const UNNAMED: &[u8] = b"data";

/// Suffixes of the formats here, and what replaces them.
const SUFFIXES: [(&[u8], &[u8]); 11] = [
    (b".gz", b""),
    (b".bz2", b""),
    (b".xz", b""),
    (b".zst", b""),
    (b".zstd", b""),
    (b".Z", b""),
    (b".tgz", b".tar"),
    (b".tbz2", b".tar"),
    (b".tbz", b".tar"),
    (b".txz", b".tar"),
    (b".tzst", b".tar"),
];

/// The magic, deflate, and no flag that does not exist.
pub(crate) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x1f\x8b\x08") && bytes.get(3).is_none_or(|flags| flags & 0xe0 == 0)
}

/// The magic, then the mark of a block or of the end.
pub(crate) fn is_bzip2(bytes: &[u8]) -> bool {
    let level_ok = fields::u8(bytes, 3).is_some_and(|level| (b'1'..=b'9').contains(&level));
    bytes.starts_with(b"BZh") && level_ok && {
        let mark = fields::prefix(bytes, 4, 6);
        b"\x31\x41\x59\x26\x53\x59".starts_with(mark)
            || b"\x17\x72\x45\x38\x50\x90".starts_with(mark)
    }
}

/// A frame of zstd that holds nothing; other formats have them too.
pub(crate) fn starts_with_skippable(bytes: &[u8]) -> bool {
    matches!(bytes, [m, 0x2a, 0x4d, 0x18, ..] if m & 0xf0 == 0x50)
}

/// The magic, perhaps behind one skippable frame.
pub(crate) fn is_zstd(bytes: &[u8]) -> bool {
    const MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";
    let skippable = starts_with_skippable(bytes);
    let behind = fields::u32_le(bytes, 4).and_then(|len| (len as usize).checked_add(8));
    bytes.starts_with(MAGIC)
        || skippable && behind.is_some_and(|at| fields::slice(bytes, at, 4) == Some(MAGIC))
}

pub(crate) fn open_gzip(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let name = gzip_name(bytes).map(<[u8]>::to_vec);
    open(walker, bytes, name, codecs::gzip)
}

pub(crate) fn open_bzip2(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    open(walker, bytes, None, codecs::bzip2)
}

pub(crate) fn open_xz(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let window_bytes = walker.window_bytes();
    open(walker, bytes, None, |sink, data| {
        codecs::xz(sink, data, window_bytes);
    })
}

pub(crate) fn open_zstd(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let window_bytes = walker.window_bytes();
    open(walker, bytes, None, |sink, data| {
        codecs::zstd(sink, data, window_bytes);
    })
}

fn open(
    walker: &mut Walker<'_>,
    bytes: &[u8],
    name: Option<Vec<u8>>,
    decode: impl FnOnce(&mut Sink<'_>, &[u8]),
) -> Result<(), Halt> {
    let name = name.unwrap_or_else(|| inner_name(walker.own_name()));
    let mut sink = walker.sink(bytes.len());
    decode(&mut sink, bytes);
    Ok(walker.unpacked(&name, sink.finish())?)
}

/// The file name in a gzip header: present, not empty, and no longer than names are.
fn gzip_name(bytes: &[u8]) -> Option<&[u8]> {
    let flags = fields::u8(bytes, 3)?;
    let extra = if flags & 4 != 0 {
        2 + usize::from(fields::u16_le(bytes, 10)?)
    } else {
        0
    };
    let rest = bytes.get(10 + extra..)?;
    let name = fields::until_nul(&rest[..rest.len().min(crate::NAME_BYTES_MAX)]);
    (flags & 8 != 0 && !name.is_empty()).then_some(name)
}

/// The container's name without the suffix of its compression.
fn inner_name(own: Option<&[u8]>) -> Vec<u8> {
    let base = own.map(|own| own.rsplit(|&b| b == b'/').next().unwrap_or(own));
    let stripped = base.and_then(|base| {
        SUFFIXES.iter().find_map(|(suffix, put)| {
            let stem = base.strip_suffix(*suffix)?;
            (!stem.is_empty()).then(|| [stem, put].concat())
        })
    });
    stripped.unwrap_or_else(|| UNNAMED.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_inside() {
        let check = |own: Option<&[u8]>, expected: &[u8]| {
            assert_eq!(inner_name(own), expected, "of {own:?}");
        };
        check(Some(b"a.tar.gz"), b"a.tar");
        check(Some(b"x/a.tgz"), b"a.tar");
        check(Some(b"data.tar.zst"), b"data.tar");
        check(Some(b".gz"), b"data");
        check(Some(b"plain"), b"data");
        check(None, b"data");
    }

    #[test]
    fn chance_does_not_make_a_container() {
        assert!(!is_gzip(b"\x1f\x8b\x08\xff"));
        assert!(!is_bzip2(b"BZh9 is not bzip2"));
        assert!(is_bzip2(b"BZh91AY&SY"));
        assert!(!is_zstd(b"\x50\x2a\x4d\x18\x01\0\0\0xlz4?"));
        assert!(is_zstd(b"\x50\x2a\x4d\x18\x01\0\0\0x\x28\xb5\x2f\xfd"));
    }
}
