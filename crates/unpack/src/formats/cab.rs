//! Microsoft cabinets: folders of blocks, each folder decoded once, front to back.

use std::io::{self, Read};

use crate::codecs::CabDecoder;
use crate::fields;
use crate::summary::Problem;
use crate::walker::{Halt, Walker};

/// Header flags: what else the header holds.
const FLAG_PREVIOUS: u16 = 1;
const FLAG_NEXT: u16 = 2;
const FLAG_RESERVE: u16 = 4;

/// Folder numbers from here on mean "continued in another cabinet".
const FOLDER_CONTINUED: u16 = 0xfffd;

/// Longest name; 256 bytes by the specification.
const NAME_LEN_MAX: usize = 257;

#[derive(Debug)]
struct Header {
    folders: u16,
    files: u16,
    files_at: usize,
    folders_at: usize,
    folder_reserve: usize,
    block_reserve: usize,
}

#[derive(Debug)]
struct File<'a> {
    name: &'a [u8],
    folder: u16,
    /// Place in the unpacked folder.
    offset: u64,
    len: u64,
}

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let header = header(bytes).ok_or_else(|| Problem::malformed("cab: damaged header"))?;
    let promised = fields::u32_le(bytes, 8).unwrap_or(0) as usize;
    if promised > bytes.len() {
        walker.note(Problem::malformed("cab: cut"));
    }
    let mut files = files(walker, bytes, &header)?;
    if files.iter().any(|file| file.folder >= FOLDER_CONTINUED) {
        walker.note(Problem::unsupported("cab: part of a set of cabinets"));
    }
    files.sort_by_key(|file| (file.folder, file.offset));
    let mut rest = files.as_slice();
    while let Some(first) = rest.first() {
        let len = rest
            .iter()
            .take_while(|file| file.folder == first.folder)
            .count();
        let (same, others) = rest.split_at(len);
        if first.folder < FOLDER_CONTINUED {
            open_folder(walker, bytes, &header, same)?;
        }
        rest = others;
    }
    Ok(())
}

fn header(bytes: &[u8]) -> Option<Header> {
    let flags = fields::u16_le(bytes, 30)?;
    let (mut at, mut folder_reserve, mut block_reserve) = (36, 0, 0);
    if flags & FLAG_RESERVE != 0 {
        folder_reserve = fields::u8(bytes, 38)?.into();
        block_reserve = fields::u8(bytes, 39)?.into();
        at = 40 + usize::from(fields::u16_le(bytes, 36)?);
    }
    // Names of neighbouring cabinet and disk.
    for flag in [FLAG_PREVIOUS, FLAG_NEXT] {
        for _ in 0..if flags & flag != 0 { 2 } else { 0 } {
            at += fields::until_nul(bytes.get(at..)?).len() + 1;
        }
    }
    Some(Header {
        folders: fields::u16_le(bytes, 26)?,
        files: fields::u16_le(bytes, 28)?,
        files_at: fields::u32_le(bytes, 16)? as usize,
        folders_at: at,
        folder_reserve,
        block_reserve,
    })
}

/// The file records; those behind damage are missing, which is noted.
fn files<'a>(
    walker: &mut Walker<'_>,
    bytes: &'a [u8],
    header: &Header,
) -> Result<Vec<File<'a>>, Halt> {
    let mut files = Vec::new();
    let mut at = header.files_at;
    for _ in 0..header.files {
        walker.step()?;
        let Some(file) = file(bytes, at) else {
            walker.note(Problem::malformed("cab: damaged file table"));
            break;
        };
        at += 16 + file.name.len() + 1;
        files.push(file);
    }
    Ok(files)
}

fn file(bytes: &[u8], at: usize) -> Option<File<'_>> {
    let name = fields::prefix(bytes, at.checked_add(16)?, NAME_LEN_MAX);
    let end = name.iter().position(|&b| b == 0)?;
    Some(File {
        name: &name[..end],
        folder: fields::u16_le(bytes, at + 8)?,
        offset: fields::u32_le(bytes, at + 4)?.into(),
        len: fields::u32_le(bytes, at)?.into(),
    })
}

/// Gives the files of one folder, sorted by their place in it.
fn open_folder(
    walker: &mut Walker<'_>,
    bytes: &[u8],
    header: &Header,
    files: &[File<'_>],
) -> Result<(), Halt> {
    let number = files.first().map_or(0, |file| file.folder);
    let mut folder = match Folder::new(bytes, header, number) {
        Ok(folder) => folder,
        Err(problem) => {
            walker.note(problem);
            return Ok(());
        }
    };
    let mut at = 0;
    for file in files {
        walker.step()?;
        let Some(gap) = file.offset.checked_sub(at) else {
            walker.note_member(file.name, Problem::malformed("cab: files overlap"));
            continue;
        };
        // Counted before it is decoded: a gap may be 4 GiB long.
        walker.skipped(gap)?;
        let skipped = io::copy(&mut (&mut folder).take(gap), &mut io::sink());
        let mut sink = walker.sink(bytes.len());
        let whole = match skipped {
            Ok(_) => sink.fill("cab", &mut (&mut folder).take(file.len)),
            Err(error) => {
                sink.note(Problem::of_io("cab", &error));
                false
            }
        };
        if whole && sink.len() < file.len {
            sink.note(Problem::malformed("cab: the folder ends within the file"));
        }
        at = file.offset + file.len;
        walker.unpacked(file.name, sink.finish())?;
        if !whole {
            // What follows lies behind the damage, or behind what a limit kept from decoding.
            break;
        }
    }
    Ok(())
}

/// The unpacked bytes of a folder.
struct Folder<'a> {
    bytes: &'a [u8],
    at: usize,
    blocks_left: u16,
    block_reserve: usize,
    decoder: CabDecoder,
    ready: Vec<u8>,
    taken: usize,
}

impl<'a> Folder<'a> {
    fn new(bytes: &'a [u8], header: &Header, number: u16) -> Result<Self, Problem> {
        let damaged = || Problem::malformed(format!("cab: no folder {number}"));
        if number >= header.folders {
            return Err(damaged());
        }
        let at = header.folders_at + usize::from(number) * (8 + header.folder_reserve);
        let method = fields::u16_le(bytes, at + 6).ok_or_else(damaged)?;
        Ok(Self {
            bytes,
            at: fields::u32_le(bytes, at).ok_or_else(damaged)? as usize,
            blocks_left: fields::u16_le(bytes, at + 4).ok_or_else(damaged)?,
            block_reserve: header.block_reserve,
            decoder: CabDecoder::new(method)?,
            ready: Vec::new(),
            taken: 0,
        })
    }

    fn next_block(&mut self) -> io::Result<()> {
        let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let packed_len = fields::u16_le(self.bytes, self.at + 4).ok_or_else(cut)?;
        let plain_len = fields::u16_le(self.bytes, self.at + 6).ok_or_else(cut)?;
        let data_at = self.at + 8 + self.block_reserve;
        let packed = fields::slice(self.bytes, data_at, packed_len.into()).ok_or_else(cut)?;
        self.ready = self.decoder.block(packed, plain_len.into())?;
        self.taken = 0;
        self.at = data_at + usize::from(packed_len);
        self.blocks_left -= 1;
        Ok(())
    }
}

impl Read for Folder<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() {
            if self.blocks_left == 0 {
                return Ok(0);
            }
            self.next_block()?;
        }
        let rest = &self.ready[self.taken..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.taken += len;
        Ok(len)
    }
}
