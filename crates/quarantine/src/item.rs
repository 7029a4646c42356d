//! The file of one item.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `LAZARETQ` |
//! | 4 | format version, big-endian: 1 |
//! | 4 | length of the sealed header |
//! | 32 | the item's key |
//! | 8 | the item's nonce prefix |
//! | … | the header, a protobuf message, sealed; bound to the bytes above and to the item's id |
//! | … | the content in segments of 64 KiB, each sealed; the last one may be shorter or empty |
//!
//! Sealed means ChaCha20-Poly1305, 16 bytes longer than the plain text. The nonce is the prefix
//! and a counter of 32 bits: 0 is the header, segments follow, and the last one sets the top bit,
//! so that no segment can be missing, doubled, moved or cut off unnoticed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use model::{Detection, Digest, ItemId};
use prost::Message;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::{Metadata, Timestamp};

const MAGIC: &[u8; 8] = b"LAZARETQ";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 8 + 4 + 4 + 32 + 8;
const TAG_BYTES: usize = 16;
/// Bytes of content in one segment.
pub(crate) const SEGMENT_BYTES: usize = 64 * 1024;
/// Most bytes of a header: bounds what a damaged or hostile file can make us hold.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// Most bytes of detections kept with an item; further ones are counted.
const DETECTION_BYTES_MAX: usize = 256 * 1024;
const LAST_SEGMENT: u32 = 1 << 31;

/// An item whose file is not what was once written. It can only be discarded.
#[derive(Debug, thiserror::Error)]
pub enum DamagedItem {
    /// Not the beginning of an item.
    #[error("it does not begin like an item")]
    Magic,
    /// Written by another version of this program. Not damaged, but not readable here.
    #[error("it has format version {0}; this program reads version {VERSION}")]
    Version(u32),
    /// Too short, too long, or a length that cannot be.
    #[error("its length is wrong")]
    Length,
    /// Bytes of it were changed.
    #[error("its seal is broken at {0}")]
    Seal(&'static str),
    /// The header is sealed properly but does not make sense.
    #[error("its header is not valid: {0}")]
    Header(&'static str),
    /// The content does not have the digest that the header names.
    #[error("its content has another digest than its header says")]
    Digest,
    /// It cannot be read at all.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

/// What the vault knows of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemInfo {
    /// The item.
    pub id: ItemId,
    /// Where it came from.
    pub path: PathBuf,
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Bytes of content.
    pub size: u64,
    /// When it was taken.
    pub taken: Timestamp,
    /// Why; the most important first.
    pub detections: Vec<Detection>,
    /// Detections beyond those kept.
    pub detections_omitted: u32,
    /// What a restore puts back besides the bytes.
    pub metadata: Metadata,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderV1 {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    blake3: Vec<u8>,
    #[prost(uint64, tag = "3")]
    size: u64,
    #[prost(message, required, tag = "4")]
    taken: Time,
    #[prost(message, repeated, tag = "5")]
    detections: Vec<DetectionV1>,
    #[prost(uint32, tag = "6")]
    detections_omitted: u32,
    #[prost(uint32, tag = "7")]
    uid: u32,
    #[prost(uint32, tag = "8")]
    gid: u32,
    #[prost(uint32, tag = "9")]
    mode: u32,
    #[prost(message, required, tag = "10")]
    atime: Time,
    #[prost(message, required, tag = "11")]
    mtime: Time,
    #[prost(uint64, tag = "12")]
    links: u64,
    #[prost(bool, tag = "13")]
    sparse: bool,
    #[prost(message, repeated, tag = "14")]
    xattrs: Vec<Xattr>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Time {
    #[prost(sint64, tag = "1")]
    s: i64,
    #[prost(uint32, tag = "2")]
    ns: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Xattr {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct DetectionV1 {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    engine: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    path_inside: Vec<Vec<u8>>,
}

impl From<Timestamp> for Time {
    fn from(time: Timestamp) -> Self {
        Self {
            s: time.s,
            ns: time.ns,
        }
    }
}

impl TryFrom<Time> for Timestamp {
    type Error = DamagedItem;
    fn try_from(time: Time) -> Result<Self, DamagedItem> {
        if time.ns >= 1_000_000_000 {
            return Err(DamagedItem::Header("a time has too many nanoseconds"));
        }
        Ok(Self {
            s: time.s,
            ns: time.ns,
        })
    }
}

impl HeaderV1 {
    fn of(info: &ItemInfo) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let metadata = &info.metadata;
        let (detections, omitted) = fitting(&info.detections);
        Self {
            path: info.path.as_os_str().as_bytes().to_vec(),
            blake3: info.digest.0.to_vec(),
            size: info.size,
            taken: info.taken.into(),
            detections,
            detections_omitted: info.detections_omitted.saturating_add(omitted),
            uid: metadata.uid,
            gid: metadata.gid,
            mode: metadata.mode,
            atime: metadata.atime.into(),
            mtime: metadata.mtime.into(),
            links: metadata.links,
            sparse: metadata.sparse,
            xattrs: metadata
                .xattrs
                .iter()
                .map(|(name, value)| Xattr {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
        }
    }

    fn into_info(self, id: ItemId) -> Result<ItemInfo, DamagedItem> {
        let digest = Digest::from_slice(&self.blake3).ok_or(DamagedItem::Header("no digest"))?;
        Ok(ItemInfo {
            id,
            path: OsString::from_vec(self.path).into(),
            digest,
            size: self.size,
            taken: self.taken.try_into()?,
            detections: self
                .detections
                .into_iter()
                .map(|d| Detection {
                    name: d.name,
                    engine: d.engine,
                    path_inside: d.path_inside,
                })
                .collect(),
            detections_omitted: self.detections_omitted,
            metadata: Metadata {
                uid: self.uid,
                gid: self.gid,
                mode: self.mode & 0o7777,
                atime: self.atime.try_into()?,
                mtime: self.mtime.try_into()?,
                links: self.links,
                sparse: self.sparse,
                xattrs: self.xattrs.into_iter().map(|x| (x.name, x.value)).collect(),
            },
        })
    }
}

/// The first detections that fit [`DETECTION_BYTES_MAX`], and the number of the others.
fn fitting(detections: &[Detection]) -> (Vec<DetectionV1>, u32) {
    let mut room = DETECTION_BYTES_MAX;
    let mut kept = Vec::new();
    for detection in detections {
        let detection = DetectionV1 {
            name: detection.name.clone(),
            engine: detection.engine.clone(),
            path_inside: detection.path_inside.clone(),
        };
        let Some(left) = room.checked_sub(detection.encoded_len() + 8) else {
            break;
        };
        room = left;
        kept.push(detection);
    }
    let omitted = detections.len() - kept.len();
    (kept, u32::try_from(omitted).unwrap_or(u32::MAX))
}

/// One item's key, and the counter of its nonces.
struct Sealer {
    key: LessSafeKey,
    nonce_prefix: [u8; 8],
    counter: u32,
}

impl Sealer {
    fn new(key: &[u8; 32], nonce_prefix: [u8; 8]) -> Result<Self, DamagedItem> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key);
        let key = key.map_err(|_| DamagedItem::Header("its key is not a key"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            nonce_prefix,
            counter: 0,
        })
    }

    /// The nonce of the next part; `None` after 2^31 of them (128 TiB).
    fn next_nonce(&mut self, last: bool) -> Option<Nonce> {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.nonce_prefix);
        let top = if last { LAST_SEGMENT } else { 0 };
        nonce[8..].copy_from_slice(&(self.counter | top).to_be_bytes());
        self.counter += 1;
        (self.counter < LAST_SEGMENT).then(|| Nonce::assume_unique_for_key(nonce))
    }
}

fn header_aad(prefix: &[u8; PREFIX_BYTES], id: ItemId) -> Aad<Vec<u8>> {
    Aad::from([prefix.as_slice(), &id.0].concat())
}

/// Fills a buffer from the system's random source.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system's random source failed"))?;
    Ok(bytes)
}

/// Writes an item: the header at once, then the content in segments.
pub(crate) struct ItemWriter<'a> {
    file: &'a File,
    sealer: Sealer,
}

impl<'a> ItemWriter<'a> {
    pub(crate) fn start(mut file: &'a File, info: &ItemInfo) -> io::Result<Self> {
        let mut header = HeaderV1::of(info).encode_to_vec();
        if header.len() + TAG_BYTES > HEADER_BYTES_MAX {
            return Err(io::Error::other("the item's header would be too long"));
        }
        let (key, nonce_prefix) = (random::<32>()?, random::<8>()?);
        let mut sealer = Sealer::new(&key, nonce_prefix).map_err(io::Error::other)?;
        let mut prefix = [0; PREFIX_BYTES];
        prefix[..8].copy_from_slice(MAGIC);
        prefix[8..12].copy_from_slice(&VERSION.to_be_bytes());
        let sealed_len = (header.len() + TAG_BYTES) as u32;
        prefix[12..16].copy_from_slice(&sealed_len.to_be_bytes());
        prefix[16..48].copy_from_slice(&key);
        prefix[48..].copy_from_slice(&nonce_prefix);
        seal(
            &mut sealer,
            false,
            header_aad(&prefix, info.id),
            &mut header,
        )?;
        file.write_all(&prefix)?;
        file.write_all(&header)?;
        Ok(Self { file, sealer })
    }

    /// Seals one segment in place and writes it. All but the last have [`SEGMENT_BYTES`].
    pub(crate) fn segment(&mut self, content: &mut Vec<u8>, last: bool) -> io::Result<()> {
        seal(&mut self.sealer, last, Aad::from(Vec::new()), content)?;
        self.file.write_all(content)
    }
}

fn seal(sealer: &mut Sealer, last: bool, aad: Aad<Vec<u8>>, plain: &mut Vec<u8>) -> io::Result<()> {
    let too_long = || io::Error::other("the file is too large to be sealed");
    let nonce = sealer.next_nonce(last).ok_or_else(too_long)?;
    let sealed = sealer.key.seal_in_place_append_tag(nonce, aad, plain);
    sealed.map_err(|_| too_long())
}

/// Reads an item: the header at once, then the content in segments.
pub(crate) struct ItemReader {
    file: File,
    sealer: Sealer,
    pub(crate) info: ItemInfo,
    left: Option<u64>,
}

impl ItemReader {
    /// Checks everything but the content's seals.
    pub(crate) fn open(mut file: File, id: ItemId) -> Result<Self, DamagedItem> {
        let file_len = file.metadata()?.len();
        let mut prefix = [0; PREFIX_BYTES];
        read_exactly(&mut file, &mut prefix)?;
        let (header_len, key, nonce_prefix) = parse_prefix(&prefix)?;
        let mut sealer = Sealer::new(&key, nonce_prefix)?;
        let mut header = vec![0; header_len];
        read_exactly(&mut file, &mut header)?;
        let nonce = sealer.next_nonce(false).ok_or(DamagedItem::Length)?;
        let aad = header_aad(&prefix, id);
        let plain = sealer.key.open_in_place(nonce, aad, &mut header);
        let plain = plain.map_err(|_| DamagedItem::Seal("the header"))?;
        let header =
            HeaderV1::decode(&*plain).map_err(|_| DamagedItem::Header("it does not decode"))?;
        let info = header.into_info(id)?;
        let content_len = sealed_len(info.size).ok_or(DamagedItem::Length)?;
        if file_len.checked_sub((PREFIX_BYTES + header_len) as u64) != Some(content_len) {
            return Err(DamagedItem::Length);
        }
        let left = Some(info.size);
        Ok(Self {
            file,
            sealer,
            info,
            left,
        })
    }

    /// The next segment of content, in `buffer`'s front; `None` after the last one.
    pub(crate) fn segment<'b>(
        &mut self,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>, DamagedItem> {
        let Some(left) = self.left else {
            return Ok(None);
        };
        let plain_len = left.min(SEGMENT_BYTES as u64);
        // The last segment is the one after which nothing is left; empty content has one, too.
        let last = plain_len == left;
        self.left = (!last).then_some(left - plain_len);
        buffer.resize(plain_len as usize + TAG_BYTES, 0);
        read_exactly(&mut self.file, buffer)?;
        let nonce = self.sealer.next_nonce(last).ok_or(DamagedItem::Length)?;
        let plain = self.sealer.key.open_in_place(nonce, Aad::empty(), buffer);
        plain
            .map(|plain| Some(&*plain))
            .map_err(|_| DamagedItem::Seal("the content"))
    }
}

/// Bytes of a file, sealed; `None` where that is more than 64 bits.
fn sealed_len(size: u64) -> Option<u64> {
    let segments = size.div_ceil(SEGMENT_BYTES as u64).max(1);
    segments.checked_mul(TAG_BYTES as u64)?.checked_add(size)
}

/// Bytes that an item of that content takes in the vault, but for its header.
pub(crate) fn room_needed(size: u64) -> u64 {
    sealed_len(size).map_or(u64::MAX, |len| len.saturating_add(PREFIX_BYTES as u64))
}

fn parse_prefix(prefix: &[u8; PREFIX_BYTES]) -> Result<(usize, [u8; 32], [u8; 8]), DamagedItem> {
    let (magic, rest) = prefix.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n: u32, b| n << 8 | u32::from(*b));
    if magic != MAGIC {
        return Err(DamagedItem::Magic);
    }
    let (version, rest) = rest.split_at(4);
    if number(version) != VERSION {
        return Err(DamagedItem::Version(number(version)));
    }
    let (header_len, rest) = rest.split_at(4);
    let header_len = number(header_len) as usize;
    if !(TAG_BYTES..=HEADER_BYTES_MAX).contains(&header_len) {
        return Err(DamagedItem::Length);
    }
    let (mut key, mut nonce_prefix) = ([0; 32], [0; 8]);
    let (key_bytes, nonce_bytes) = rest.split_at(32);
    key.copy_from_slice(key_bytes);
    nonce_prefix.copy_from_slice(nonce_bytes);
    Ok((header_len, key, nonce_prefix))
}

fn read_exactly(file: &mut File, buffer: &mut [u8]) -> Result<(), DamagedItem> {
    file.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => DamagedItem::Length,
        _ => DamagedItem::Read(error),
    })
}
