//! ISO 9660: the trees of the primary and the Joliet descriptor, with Rock Ridge names. A file
//! that both trees have is visited once; one that only one of them has is not missed.

use std::collections::HashSet;
use std::io::Read;

use crate::fields;
use crate::guess::{Glimpse, Guess, Mark};
use crate::summary::Problem;
use crate::walker::{Halt, Walker};

const SECTOR_BYTES: usize = 2048;

/// Volume descriptors start here; more than this many are not looked at.
const DESCRIPTORS_AT: usize = 16 * SECTOR_BYTES;
const DESCRIPTORS_MAX: usize = 64;

pub(crate) const MAGIC: &[u8] = b"CD001";

const FLAG_DIRECTORY: u8 = 2;
const FLAG_MORE_EXTENTS: u8 = 0x80;

/// Longest path inside that is built.
const PATH_BYTES_MAX: usize = crate::NAME_BYTES_MAX;

/// A directory tree of the volume.
struct Tree {
    joliet: bool,
    block_bytes: usize,
    root: Extent,
}

/// A run of bytes of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Extent {
    at: usize,
    len: usize,
}

/// A directory record.
struct Record<'a> {
    extent: Extent,
    flags: u8,
    name: &'a [u8],
    system_use: &'a [u8],
}

/// `CD001` in the first volume descriptor.
pub(crate) fn is_iso(bytes: &[u8]) -> bool {
    fields::slice(bytes, DESCRIPTORS_AT + 1, MAGIC.len()) == Some(MAGIC)
}

/// The same of content of which a part is known.
pub(crate) fn guess(glimpse: &dyn Glimpse) -> Guess {
    let at = DESCRIPTORS_AT as u64 + 1;
    if let Some(found) = glimpse.get(at, MAGIC.len()) {
        return Guess::of(found == MAGIC);
    }
    match glimpse.places(Mark::Iso, at..at + 1) {
        Some(places) => Guess::of(!places.is_empty()),
        None => Guess::need(at, MAGIC.len()),
    }
}

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let (mut trees, udf) = descriptors(bytes);
    if trees.is_empty() {
        return Err(Problem::malformed("iso: no volume descriptor").into());
    }
    if udf {
        walker.note(Problem::unsupported("iso: it may hold more files in UDF"));
    }
    // Rock Ridge names, which the primary tree has, are the fuller ones.
    trees.sort_by_key(|tree| tree.joliet);
    let mut volume = Volume {
        bytes,
        files_seen: HashSet::new(),
    };
    for tree in &trees {
        volume.walk_tree(walker, tree)?;
    }
    Ok(())
}

/// The trees, and whether there are marks of UDF.
fn descriptors(bytes: &[u8]) -> (Vec<Tree>, bool) {
    let mut trees = Vec::new();
    let mut udf = false;
    for index in 0..DESCRIPTORS_MAX {
        let at = DESCRIPTORS_AT + index * SECTOR_BYTES;
        let Some(sector) = fields::slice(bytes, at, SECTOR_BYTES) else {
            break;
        };
        match &sector[1..6] {
            b"CD001" => trees.extend(tree(sector)),
            b"NSR02" | b"NSR03" => udf = true,
            b"BEA01" | b"TEA01" | b"BOOT2" => {}
            _ => break,
        }
    }
    (trees, udf)
}

fn tree(sector: &[u8]) -> Option<Tree> {
    let kind = sector.first()?;
    let joliet = *kind == 2 && matches!(&sector[88..91], b"%/@" | b"%/C" | b"%/E");
    if *kind != 1 && !joliet {
        return None;
    }
    let block_bytes = usize::from(fields::u16_le(sector, 128)?);
    let root = record(&sector[156..190], block_bytes)?;
    Some(Tree {
        joliet,
        block_bytes,
        root: root.extent,
    })
}

/// The record at the start of `bytes`; `None` if there is none.
fn record(bytes: &[u8], block_bytes: usize) -> Option<Record<'_>> {
    let len = usize::from(fields::u8(bytes, 0)?);
    let record = fields::slice(bytes, 0, len)?;
    let name_len = usize::from(fields::u8(record, 32)?);
    // An extended attribute record, if any, lies before the data.
    let block = u64::from(fields::u32_le(record, 2)?) + u64::from(fields::u8(record, 1)?);
    let name_end = 33 + name_len + (1 - name_len % 2);
    Some(Record {
        extent: Extent {
            at: usize::try_from(block).ok()?.checked_mul(block_bytes)?,
            len: fields::u32_le(record, 10)? as usize,
        },
        flags: fields::u8(record, 25)?,
        name: fields::slice(record, 33, name_len)?,
        system_use: record.get(name_end..).unwrap_or_default(),
    })
}

struct Volume<'a> {
    bytes: &'a [u8],
    files_seen: HashSet<Extent>,
}

impl Volume<'_> {
    /// Every directory once, so that a loop ends.
    fn walk_tree(&mut self, walker: &mut Walker<'_>, tree: &Tree) -> Result<(), Halt> {
        let mut directories_seen = HashSet::from([tree.root.at]);
        let mut directories = vec![(Vec::new(), tree.root)];
        while let Some((path, extent)) = directories.pop() {
            let content = fields::prefix(self.bytes, extent.at, extent.len);
            if content.len() < extent.len {
                walker.note(Problem::malformed("iso: a directory is cut"));
            }
            let mut file_extents = Vec::new();
            for record in records(content, tree.block_bytes) {
                walker.step()?;
                let record = match record {
                    Ok(record) => record,
                    Err(problem) => {
                        walker.note(problem);
                        break;
                    }
                };
                if matches!(record.name, [0] | [1]) {
                    continue;
                }
                let path = joined(&path, &name(&record, tree.joliet));
                if record.flags & FLAG_DIRECTORY != 0 {
                    if directories_seen.insert(record.extent.at) {
                        directories.push((path, record.extent));
                    }
                    continue;
                }
                file_extents.push(record.extent);
                if record.flags & FLAG_MORE_EXTENTS == 0 {
                    self.visit_file(walker, &path, &std::mem::take(&mut file_extents))?;
                }
            }
        }
        Ok(())
    }

    fn visit_file(
        &mut self,
        walker: &mut Walker<'_>,
        path: &[u8],
        extents: &[Extent],
    ) -> Result<(), Halt> {
        let new = extents
            .iter()
            .filter(|e| self.files_seen.insert(**e))
            .count();
        if new == 0 {
            return Ok(());
        }
        let part = |extent: &Extent| fields::prefix(self.bytes, extent.at, extent.len);
        let cut = extents.iter().any(|extent| part(extent).len() < extent.len);
        let problem = cut.then(|| Problem::malformed("iso: the file is cut"));
        if let [extent] = extents {
            return Ok(walker.member(path, part(extent), problem)?);
        }
        let mut reader: Box<dyn Read + '_> = Box::new(std::io::empty());
        for extent in extents {
            reader = Box::new(reader.chain(part(extent)));
        }
        let mut sink = walker.sink(self.bytes.len());
        if let Some(problem) = problem {
            sink.note(problem);
        }
        sink.fill("iso", &mut reader);
        Ok(walker.unpacked(path, sink.finish())?)
    }
}

/// The records of a directory; none crosses a sector, whose rest is zeros.
fn records(
    content: &[u8],
    block_bytes: usize,
) -> impl Iterator<Item = Result<Record<'_>, Problem>> {
    content.chunks(SECTOR_BYTES).flat_map(move |sector| {
        let mut rest = sector;
        std::iter::from_fn(move || {
            let len = usize::from(*rest.first().filter(|len| **len != 0)?);
            let found = record(rest, block_bytes);
            rest = rest.get(len..).unwrap_or_default();
            Some(found.ok_or_else(|| Problem::malformed("iso: damaged directory")))
        })
    })
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = path.to_vec();
    if !joined.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined.truncate(PATH_BYTES_MAX);
    joined
}

fn name(record: &Record<'_>, joliet: bool) -> Vec<u8> {
    if joliet {
        let units = record
            .name
            .chunks_exact(2)
            .map(|c| u16::from_be_bytes([c[0], c[1]]));
        let name: String = char::decode_utf16(units)
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        return without_version(name.as_bytes()).to_vec();
    }
    let name = rock_ridge_name(record.system_use);
    if name.is_empty() {
        without_version(record.name).to_vec()
    } else {
        name
    }
}

fn without_version(name: &[u8]) -> &[u8] {
    let name = name.strip_suffix(b";1").unwrap_or(name);
    name.strip_suffix(b".").unwrap_or(name)
}

/// The `NM` entries of a system use area; areas continued elsewhere are not followed.
fn rock_ridge_name(mut system_use: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    while let [a, b, len, _, ..] = *system_use {
        let Some((entry, rest)) = system_use.split_at_checked(len.into()) else {
            break;
        };
        if entry.len() < 4 {
            break;
        }
        if (a, b) == (b'N', b'M') {
            name.extend_from_slice(entry.get(5..).unwrap_or_default());
        }
        system_use = rest;
    }
    name
}
