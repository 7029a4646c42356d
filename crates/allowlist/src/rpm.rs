//! What a header of rpm's database says of a package's files. The sums are SHA-256 today and
//! not checked against any signature here, so, like dpkg's, they only leave out what was changed.
//!
//! A header is an index of 16-byte entries (tag, type, offset, count), then the data; in the
//! database it begins with the number of entries and of data bytes, all big-endian
//! (rpm's documentation, "RPM V4 package format").

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use crate::sums::Sum;

const NAME: u32 = 1000;
const FILE_MODES: u32 = 1030;
const FILE_DIGESTS: u32 = 1035;
const FILE_FLAGS: u32 = 1037;
const DIR_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIR_NAMES: u32 = 1118;
const FILE_DIGEST_ALGORITHM: u32 = 5011;

const MODE_KIND: u16 = 0o170_000;
const MODE_REGULAR: u16 = 0o100_000;
/// Belongs to the package and is not in it.
const FLAG_GHOST: u32 = 1 << 6;
/// Where a package says nothing.
const MD5: u32 = 1;

/// A package's files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// By path below the root; `Err`: why the file cannot be verified.
    pub(crate) files: Vec<(PathBuf, Result<Sum, String>)>,
}

impl Package {
    /// Reads a header as the database holds it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(header: &[u8]) -> Result<Self, &'static str> {
        let header = Header::read(header).ok_or("the counts in the header are not its length")?;
        let name = header.texts(NAME)?.first().copied();
        let name = name.ok_or("the header has no name")?;
        let algorithm = match header.numbers(FILE_DIGEST_ALGORITHM)?.first() {
            Some(number) => u32::from_be_bytes(*number),
            None => MD5,
        };
        let mut package = Self {
            name: String::from_utf8_lossy(name).into_owned(),
            files: Vec::new(),
        };
        let (names, folders) = (header.texts(BASE_NAMES)?, header.texts(DIR_NAMES)?);
        let sums = header.texts(FILE_DIGESTS)?;
        let modes: &[[u8; 2]] = header.numbers(FILE_MODES)?;
        let flags: &[[u8; 4]] = header.numbers(FILE_FLAGS)?;
        let places: &[[u8; 4]] = header.numbers(DIR_INDEXES)?;
        let lengths = [sums.len(), modes.len(), flags.len(), places.len()];
        if lengths.iter().any(|length| *length != names.len()) {
            return Err("the lists of files are not equally long");
        }
        for at in 0..names.len() {
            let mode = u16::from_be_bytes(modes[at]);
            let ghost = u32::from_be_bytes(flags[at]) & FLAG_GHOST != 0;
            // A digest of no digits is one of no content: links, folders.
            if mode & MODE_KIND != MODE_REGULAR || ghost || sums[at].is_empty() {
                continue;
            }
            let folder = folders.get(u32::from_be_bytes(places[at]) as usize);
            let folder = folder.ok_or("a file is in a folder that is not listed")?;
            let path = below_root(folder, names[at])?;
            let sum = Sum::parse(algorithm, sums[at]).ok_or_else(|| {
                format!("the package's sum (hash function {algorithm}) cannot be used")
            });
            package.files.push((path, sum));
        }
        Ok(package)
    }
}

fn below_root(folder: &[u8], name: &[u8]) -> Result<PathBuf, &'static str> {
    let path = [folder, name].concat();
    let path = Path::new(OsStr::from_bytes(&path));
    let path = path.strip_prefix("/").unwrap_or(path);
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
    if path.components().all(inside) && path.file_name().is_some() {
        Ok(path.to_owned())
    } else {
        Err("a path that leaves the root")
    }
}

struct Header<'a> {
    index: &'a [[u8; 16]],
    data: &'a [u8],
}

impl<'a> Header<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (entries, rest) = bytes.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let entries = (u32::from_be_bytes(*entries) as usize).checked_mul(16)?;
        let (index, data) = rest.split_at_checked(entries)?;
        (data.len() == u32::from_be_bytes(*length) as usize).then_some(Self {
            index: index.as_chunks().0,
            data,
        })
    }

    /// The data from a tag's start on, and its number of values; nothing where it is not there.
    fn tag(&self, wanted: u32) -> Result<(&'a [u8], usize), &'static str> {
        let word = |entry: &[u8; 16], at: usize| {
            u32::from_be_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        let Some(entry) = self.index.iter().find(|entry| word(entry, 0) == wanted) else {
            return Ok((&[], 0));
        };
        let data = self.data.get(word(entry, 8) as usize..);
        let data = data.ok_or("an entry begins behind the header's end")?;
        Ok((data, word(entry, 12) as usize))
    }

    fn texts(&self, tag: u32) -> Result<Vec<&'a [u8]>, &'static str> {
        let (data, count) = self.tag(tag)?;
        // Each ends with a zero, and so do the last one's.
        let texts: Vec<_> = data.split(|byte| *byte == 0).take(count).collect();
        if texts.len() < count {
            return Err("a list of texts ends behind the header's end");
        }
        Ok(texts)
    }

    fn numbers<const N: usize>(&self, tag: u32) -> Result<&'a [[u8; N]], &'static str> {
        let (data, count) = self.tag(tag)?;
        let numbers = data.as_chunks().0;
        numbers
            .get(..count)
            .ok_or("a list of numbers ends behind the header's end")
    }
}
