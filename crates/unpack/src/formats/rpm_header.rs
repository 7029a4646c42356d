//! Headers of RPM packages: an index of 16-byte entries (tag, type, offset, count), then data.

use crate::fields;

const MAGIC: &[u8] = b"\x8e\xad\xe8";
const INTRO_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

/// Tags: lists with one value for each file, but for the list of directories.
const FILE_SIZES: u32 = 1028;
const DIR_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIR_NAMES: u32 = 1118;
const LONG_FILE_SIZES: u32 = 5008;
/// Version of the package's format; only those from 6 on have it.
const RPM_FORMAT: u32 = 5114;

/// A header whose index and data lie within the package.
pub(super) struct Header<'a> {
    index: &'a [u8],
    data: &'a [u8],
    /// Where it ends in the package.
    pub(super) end: usize,
}

/// The lists of files.
pub(super) struct Files<'a> {
    names: Vec<&'a [u8]>,
    directories: Vec<&'a [u8]>,
    directory_indexes: &'a [u8],
    sizes: &'a [u8],
    long_sizes: &'a [u8],
}

impl<'a> Header<'a> {
    pub(super) fn read(bytes: &'a [u8], at: usize) -> Option<Self> {
        fields::slice(bytes, at, 3).filter(|magic| *magic == MAGIC)?;
        let entries = fields::u32_be(bytes, at + 8)? as usize;
        let data_len = fields::u32_be(bytes, at + 12)? as usize;
        let index_at = at.checked_add(INTRO_BYTES)?;
        let index_len = entries.checked_mul(ENTRY_BYTES)?;
        let data_at = index_at.checked_add(index_len)?;
        Some(Self {
            index: fields::slice(bytes, index_at, index_len)?,
            data: fields::slice(bytes, data_at, data_len)?,
            end: data_at + data_len,
        })
    }

    /// The data of a tag from its start on, and its number of values.
    fn tag(&self, wanted: u32) -> Option<(&'a [u8], usize)> {
        let mut entries = self.index.chunks_exact(ENTRY_BYTES);
        let entry = entries.find(|entry| fields::u32_be(entry, 0) == Some(wanted))?;
        let offset = fields::u32_be(entry, 8)? as usize;
        Some((
            self.data.get(offset..)?,
            fields::u32_be(entry, 12)? as usize,
        ))
    }

    pub(super) fn has_stripped_payload(&self) -> bool {
        self.tag(RPM_FORMAT).is_some() || self.tag(LONG_FILE_SIZES).is_some()
    }

    pub(super) fn files(&self) -> Files<'a> {
        let numbers = |tag, bytes| {
            let (data, count) = self.tag(tag).unwrap_or_default();
            fields::prefix(data, 0, usize::saturating_mul(count, bytes))
        };
        let texts = |tag| {
            let (data, count) = self.tag(tag).unwrap_or_default();
            data.split(|&b| b == 0).take(count).collect()
        };
        Files {
            names: texts(BASE_NAMES),
            directories: texts(DIR_NAMES),
            directory_indexes: numbers(DIR_INDEXES, 4),
            sizes: numbers(FILE_SIZES, 4),
            long_sizes: numbers(LONG_FILE_SIZES, 8),
        }
    }
}

impl Files<'_> {
    /// Path and size of a file by its number.
    pub(super) fn get(&self, number: usize) -> Option<(Vec<u8>, usize)> {
        let at = number.checked_mul(4)?;
        let size = fields::u64_be(self.long_sizes, number.checked_mul(8)?)
            .or_else(|| fields::u32_be(self.sizes, at).map(u64::from))?;
        let directory = fields::u32_be(self.directory_indexes, at)
            .and_then(|index| self.directories.get(index as usize).copied())
            .unwrap_or_default();
        let name = [directory, *self.names.get(number)?].concat();
        Some((name, usize::try_from(size).ok()?))
    }
}
