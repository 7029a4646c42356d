//! Content on its way to the appliance: listed by its chunks or reported on where it asks for that,
//! sent by range, compressed where policy says so and it pays.
//!
//! A chunk that was listed is hashed again as it is sent, and a part of a group with its group: where
//! the file has changed in between, sending ends at once, and the file is hashed anew. So ranges that
//! are asked for because of a report are those of the content that was reported on, whoever writes.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chunks::{Chunk, GROUP_BYTES, HEAD_BYTES, Kind, Lister, Manifest, PieceCompressor};
use link::Priority;
use link::client::{Client, SendDataError, SendError};
use literal_filter::{HEAD_BYTES_MAX, Pack, PackScan, Report};
use model::{Digest, UnscannedReason};
use proto::v1::{self, envelope::Body};
use proto::{DATA_MAX_BYTES, DATA_PLAIN_MAX_BYTES, REPORT_HEAD_BYTES};

/// Bytes read at a time to be listed or reported on.
const READ_BYTES: usize = 128 * 1024;
/// How often it is tried again where the link has no room for a manifest or a report.
const ROOM_GLANCE: Duration = Duration::from_millis(5);

/// Something that is read by offset.
pub(crate) trait ReadAt {
    /// # Errors
    /// As `pread`; 0 bytes: the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// Why something was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The session is over.
    NotConnected,
    /// Nobody wants it any more.
    NotWanted,
    /// The appliance took nothing in time.
    Stalled,
    /// It cannot be completed; the appliance is to be told.
    Failed(UnscannedReason),
}

impl From<SendDataError> for Stopped {
    fn from(error: SendDataError) -> Self {
        match error {
            SendDataError::NotConnected => Self::NotConnected,
            SendDataError::NotWanted => Self::NotWanted,
            SendDataError::TimedOut => Self::Stalled,
        }
    }
}

/// Lists the first `size` bytes of a file, whose digest is known. `None`: its list would be too
/// long, so it is sent instead.
///
/// # Errors
/// [`Stopped::Failed`]: it cannot be read, or has changed.
pub(crate) fn list(
    file: &impl ReadAt,
    size: u64,
    digest: Digest,
) -> Result<Option<Manifest>, Stopped> {
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    let mut lister = None;
    while offset < size {
        let bytes = read_up_to(file, &mut buffer, offset, size)?;
        if lister.is_none() {
            let head = bytes.get(..HEAD_BYTES).unwrap_or(bytes);
            lister = Some(Lister::new(match Kind::of(size, head) {
                Some(kind) => kind,
                None => return Ok(None),
            }));
        }
        if let Some(lister) = &mut lister {
            lister.update(bytes);
        }
        offset += bytes.len() as u64;
    }
    let Some(lister) = lister else {
        return Ok(None);
    };
    let (manifest, listed) = lister.finish();
    if listed != digest.0 {
        return Err(Stopped::Failed(UnscannedReason::Changed));
    }
    Ok(Some(manifest))
}

/// Says what a filter finds in the first bytes of a file, whose size and digest are known, and lists
/// their groups; between pieces it asks whether anybody still wants that. `None`: there is more than
/// a report can tell, or there are more groups than a list has.
///
/// # Errors
/// [`Stopped::Failed`]: it cannot be read, or has changed; [`Stopped::NotWanted`].
pub(crate) fn report(
    file: &impl ReadAt,
    (size, digest): (u64, Digest),
    pack: &Pack,
    is_wanted: impl Fn() -> bool,
) -> Result<Option<Reported>, Stopped> {
    let Some(mut reporter) = Reporter::new(pack, size) else {
        return Ok(None);
    };
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < size {
        if !is_wanted() {
            return Err(Stopped::NotWanted);
        }
        let bytes = read_up_to(file, &mut buffer, offset, size)?;
        if offset == 0 && pack.wants_whole(bytes) {
            return Ok(Some(wanted_whole(pack, bytes)));
        }
        reporter.push(bytes);
        if reporter.is_in_vain() {
            return Ok(None);
        }
        offset += bytes.len() as u64;
    }
    let (reported, found) = reporter.finish();
    if reported != digest {
        return Err(Stopped::Failed(UnscannedReason::Changed));
    }
    Ok(found)
}

/// Hashes content that comes in pieces, lists its groups, and looks for what a filter names.
pub(crate) struct Reporter<'p> {
    pack: &'p Pack,
    /// `None`: there is more than a report can tell.
    scan: Option<PackScan<'p>>,
    lister: Lister,
    head: Vec<u8>,
}

impl<'p> Reporter<'p> {
    /// `None`: content of `size` bytes has more groups than a list.
    pub(crate) fn new(pack: &'p Pack, size: u64) -> Option<Self> {
        Kind::of(size, &[])?;
        Some(Self {
            pack,
            scan: Some(PackScan::new(pack)),
            lister: Lister::new(Kind::Groups),
            head: Vec::new(),
        })
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let missing = REPORT_HEAD_BYTES - self.head.len();
        let head = bytes.get(..missing).unwrap_or(bytes);
        if self.head.is_empty() && self.pack.wants_whole(head) {
            self.scan = None;
        }
        self.head.extend_from_slice(head);
        self.lister.update(bytes);
        self.scan.take_if(|scan| scan.push(bytes).is_break());
    }

    /// Nothing but the digest will come of it.
    fn is_in_vain(&self) -> bool {
        self.scan.is_none()
    }

    /// The digest of all that came, and the report with the groups that it is of.
    pub(crate) fn finish(self) -> (Digest, Option<Reported>) {
        let (groups, digest) = self.lister.finish();
        if self.pack.wants_whole(&self.head) {
            return (Digest(digest), Some(wanted_whole(self.pack, &self.head)));
        }
        let found = self.scan.and_then(PackScan::finish);
        let reported = reported(self.pack, self.head, found.as_ref(), groups);
        (Digest(digest), reported)
    }
}

/// A report, and the groups of what it is of where ranges of that may be asked for.
pub(crate) type Reported = (v1::FilterReport, Option<Manifest>);

/// The report on content that is wanted whole, whatever a filter finds in it: what it begins with.
fn wanted_whole(pack: &Pack, head: &[u8]) -> Reported {
    let report = v1::FilterReport {
        filter: pack.id().to_vec(),
        head: head.get(..HEAD_BYTES_MAX).unwrap_or(head).to_vec(),
        report: Bytes::new(),
    };
    (report, None)
}

/// The same as of a [`Reporter`], of content that has come whole.
pub(crate) fn report_whole(pack: &Pack, whole: &[u8]) -> (Digest, Option<Reported>) {
    if pack.wants_whole(whole) {
        return (Digest::of(whole), Some(wanted_whole(pack, whole)));
    }
    let (groups, digest) = Lister::new(Kind::Groups).finish_with(whole);
    let head = whole.get(..REPORT_HEAD_BYTES).unwrap_or(whole).to_vec();
    let found = pack.scan(whole);
    (Digest(digest), reported(pack, head, found.as_ref(), groups))
}

/// `None`: there is more than a report can tell.
fn reported(
    pack: &Pack,
    head: Vec<u8>,
    found: Option<&Report>,
    groups: Manifest,
) -> Option<Reported> {
    let report = v1::FilterReport {
        filter: pack.id().to_vec(),
        head,
        report: found?.to_bytes()?.into(),
    };
    Some((report, Some(groups)))
}

/// Fills the buffer, unless `end` comes first; a file that ends before it has changed.
fn read_up_to<'b>(
    file: &impl ReadAt,
    buffer: &'b mut [u8],
    offset: u64,
    end: u64,
) -> Result<&'b [u8], Stopped> {
    let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX);
    let wanted = wanted.min(buffer.len());
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..wanted).filter(|it| !it.is_empty()) {
        match file.read_at(rest, offset + len as u64) {
            Ok(0) => return Err(Stopped::Failed(UnscannedReason::Changed)),
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Stopped::Failed(UnscannedReason::ReadFailed)),
        }
    }
    Ok(buffer.get(..len).unwrap_or_default())
}

/// Where what is asked for begins and ends, within content of `size` bytes: all of it where no range
/// is named.
pub(crate) fn asked_ranges(asked: &[v1::ByteRange], size: u64) -> Vec<(u64, u64)> {
    if asked.is_empty() {
        return vec![(0, size)];
    }
    let range = |range: &v1::ByteRange| {
        let end = range.offset.saturating_add(range.length);
        (range.offset.min(size), end.min(size))
    };
    asked.iter().map(range).collect()
}

/// One exchange, for which content is sent.
pub(crate) struct Sending<'a> {
    client: &'a Client,
    request_id: u64,
    priority: Priority,
    /// How long the appliance may take nothing.
    stall_max: Duration,
    compression: Compression,
    /// Where the last of it ends.
    ends_at: u64,
}

enum Compression {
    Off,
    /// For what somebody waits for.
    Fast,
    Small(Box<PieceCompressor>),
}

impl Compression {
    fn of(priority: Priority) -> Self {
        match priority {
            Priority::Control | Priority::Open => Self::Fast,
            Priority::CloseWrite | Priority::OnDemand => Self::Small(Box::default()),
        }
    }

    /// `None` where it does not pay.
    fn compress(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Off => None,
            Self::Fast => chunks::compress(plain),
            Self::Small(compressor) => compressor.compress(plain),
        }
    }
}

impl<'a> Sending<'a> {
    pub(crate) fn new(
        client: &'a Client,
        request_id: u64,
        priority: Priority,
        stall_max: Duration,
        compress: bool,
    ) -> Self {
        Self {
            client,
            request_id,
            priority,
            stall_max,
            compression: if compress {
                Compression::of(priority)
            } else {
                Compression::Off
            },
            ends_at: 0,
        }
    }

    /// # Errors
    /// [`Stopped`]; it was not sent then.
    pub(crate) fn manifest(&self, manifest: &Manifest) -> Result<(), Stopped> {
        self.instead(&Body::Manifest(v1::Manifest {
            kind: manifest.kind().number(),
            chunks: manifest.encode(),
        }))
    }

    /// # Errors
    /// [`Stopped`]; it was not sent then.
    pub(crate) fn report(&self, report: v1::FilterReport) -> Result<(), Stopped> {
        self.instead(&Body::FilterReport(report))
    }

    /// What stands for the content in one frame.
    fn instead(&self, body: &Body) -> Result<(), Stopped> {
        let give_up = Instant::now() + self.stall_max;
        loop {
            let envelope = v1::Envelope {
                request_id: self.request_id,
                body: Some(body.clone()),
            };
            match self.client.send(self.priority, envelope) {
                Ok(()) => return Ok(()),
                Err(SendError::NotConnected) => return Err(Stopped::NotConnected),
                Err(SendError::TooLarge) => return Err(Stopped::Failed(UnscannedReason::Other)),
                Err(SendError::Backpressure) if Instant::now() < give_up => {
                    std::thread::sleep(ROOM_GLANCE);
                }
                Err(SendError::Backpressure) => return Err(Stopped::Stalled),
            }
        }
    }

    /// Sends ranges, in pieces of whole chunks where they were listed; a `DataEnd` has to follow.
    /// `sent` is told the bytes of each piece and ends the sending with `false`.
    ///
    /// # Errors
    /// [`Stopped`]; a part may have been sent then.
    pub(crate) fn ranges(
        &mut self,
        file: &impl ReadAt,
        ranges: &[(u64, u64)],
        manifest: Option<&Manifest>,
        mut sent: impl FnMut(u64) -> bool,
    ) -> Result<(), Stopped> {
        self.ends_at = ranges.last().map_or(0, |(_, end)| *end);
        ranges
            .iter()
            .try_for_each(|range| self.range(file, *range, manifest, &mut sent))
    }

    fn range(
        &mut self,
        file: &impl ReadAt,
        (offset, end): (u64, u64),
        manifest: Option<&Manifest>,
        sent: &mut impl FnMut(u64) -> bool,
    ) -> Result<(), Stopped> {
        let mut at = offset;
        while at < end {
            let piece = match manifest {
                Some(groups) if groups.kind() == Kind::Groups => {
                    read_from_groups(file, groups, at, end)?
                }
                _ => read_chunks(file, manifest, at, end)?,
            };
            let len = piece.len() as u64;
            if at == 0 && chunks::is_packed(&piece) {
                self.compression = Compression::Off;
            }
            self.piece(at, piece)?;
            if !sent(len) {
                return Err(Stopped::NotWanted);
            }
            at += len;
        }
        Ok(())
    }

    /// Sends at most `DATA_PLAIN_MAX_BYTES`: compressed together, or else in halves, each
    /// compressed or not.
    fn piece(&mut self, offset: u64, plain: Bytes) -> Result<(), Stopped> {
        match self.compression.compress(&plain) {
            Some(small) if small.len() <= DATA_MAX_BYTES => {
                self.compressed(offset, plain.len(), small)
            }
            Some(_) if plain.len() > DATA_MAX_BYTES => {
                let mut first = plain;
                let second = first.split_off(DATA_MAX_BYTES);
                self.piece(offset, first)?;
                self.piece(offset + DATA_MAX_BYTES as u64, second)
            }
            _ => {
                let give_up = Instant::now() + self.stall_max;
                let (id, priority) = (self.request_id, self.priority);
                let sent = match self.is_last(offset, plain.len()) {
                    true => (self.client).send_last_data(id, priority, offset, plain, give_up),
                    false => (self.client).send_data(id, priority, offset, plain, give_up),
                };
                Ok(sent?)
            }
        }
    }

    fn is_last(&self, offset: u64, len: usize) -> bool {
        offset + len as u64 == self.ends_at
    }

    fn compressed(&self, offset: u64, plain: usize, small: Vec<u8>) -> Result<(), Stopped> {
        let data = v1::Data {
            offset,
            bytes: small.into(),
            plain_bytes: u32::try_from(plain).unwrap_or(u32::MAX),
        };
        let give_up = Instant::now() + self.stall_max;
        let (id, priority) = (self.request_id, self.priority);
        let is_last = self.is_last(offset, plain);
        let sent = self
            .client
            .send_compressed(id, priority, &data, give_up, is_last);
        Ok(sent?)
    }
}

/// The next piece of `at..end`, of whole chunks where one that was listed begins there.
fn read_chunks(
    file: &impl ReadAt,
    manifest: Option<&Manifest>,
    at: u64,
    end: u64,
) -> Result<Bytes, Stopped> {
    let listed = manifest.map(|it| listed_from(it, at, end));
    let piece_end = listed
        .and_then(<[Chunk]>::last)
        .map_or(end.min(at + DATA_PLAIN_MAX_BYTES as u64), Chunk::end);
    let mut piece = vec![0; (piece_end - at) as usize];
    read_up_to(file, &mut piece, at, piece_end)?;
    if let (Some(manifest), Some(listed)) = (manifest, listed)
        && !are_as_listed(manifest.kind(), &piece, listed)
    {
        return Err(Stopped::Failed(UnscannedReason::Changed));
    }
    Ok(piece.into())
}

/// The next piece of `at..end`, out of the groups that it lies in, which are as listed.
fn read_from_groups(
    file: &impl ReadAt,
    groups: &Manifest,
    at: u64,
    end: u64,
) -> Result<Bytes, Stopped> {
    let changed = Stopped::Failed(UnscannedReason::Changed);
    let end = end.min(at.saturating_add(DATA_PLAIN_MAX_BYTES as u64));
    let group = u64::from(GROUP_BYTES);
    let (first, last) = (at / group, end.div_ceil(group));
    let listed = groups.chunks().get(first as usize..last as usize);
    let listed = listed.filter(|it| !it.is_empty()).ok_or(changed)?;
    let from = first * group;
    let to = listed.last().map_or(from, Chunk::end);
    let mut whole = vec![0; (to - from) as usize];
    read_up_to(file, &mut whole, from, to)?;
    if end > to || !are_as_listed(Kind::Groups, &whole, listed) {
        return Err(changed);
    }
    let whole = Bytes::from(whole);
    Ok(whole.slice((at - from) as usize..(end - from) as usize))
}

/// Chunks from `offset` to at most `end` that fit one piece; none where none begins there.
fn listed_from(manifest: &Manifest, offset: u64, end: u64) -> &[Chunk] {
    let chunks = manifest.chunks();
    let Ok(first) = chunks.binary_search_by_key(&offset, |chunk| chunk.offset) else {
        return &[];
    };
    let end = end.min(offset + DATA_PLAIN_MAX_BYTES as u64);
    let from = chunks.get(first..).unwrap_or_default();
    let count = from.iter().take_while(|chunk| chunk.end() <= end).count();
    from.get(..count).unwrap_or_default()
}

fn are_as_listed(kind: Kind, piece: &[u8], listed: &[Chunk]) -> bool {
    let mut rest = piece;
    listed.iter().all(|chunk| {
        let own = rest.split_off(..chunk.len as usize);
        own.is_some_and(|own| kind.name(chunk.offset, own) == chunk.id)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    impl ReadAt for &[u8] {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = self.get(offset as usize..).unwrap_or_default();
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }
    }

    fn content() -> Vec<u8> {
        let mut bytes = vec![0; 700_000];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn listed(bytes: &[u8]) -> Manifest {
        list(&bytes, bytes.len() as u64, Digest::of(bytes))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_file_that_changed_is_not_listed() {
        let bytes = content();
        let changed = Err(Stopped::Failed(UnscannedReason::Changed));
        let size = bytes.len() as u64;
        assert_eq!(list(&&bytes[..], size, Digest::of(b"other")), changed);
        assert_eq!(list(&&bytes[..], size + 1, Digest::of(&bytes)), changed);
        assert_eq!(list(&&bytes[..], 1 << 40, Digest::of(&bytes)), Ok(None));
        // What was appended meanwhile is not part of it.
        let grown = [&bytes[..], b"more"].concat();
        assert!(
            list(&&grown[..], size, Digest::of(&bytes))
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn pieces_are_whole_chunks_and_are_checked() {
        let bytes = content();
        let manifest = listed(&bytes);
        let mut at = 0;
        while at < bytes.len() as u64 {
            let listed = listed_from(&manifest, at, bytes.len() as u64);
            let end = listed.last().unwrap().end();
            assert!(end - at <= DATA_PLAIN_MAX_BYTES as u64);
            let mut piece = bytes[at as usize..end as usize].to_vec();
            assert!(are_as_listed(manifest.kind(), &piece, listed));
            *piece.last_mut().unwrap() ^= 1;
            assert!(!are_as_listed(manifest.kind(), &piece, listed));
            at = end;
        }
        assert_eq!(listed_from(&manifest, 1, 1 << 20), []);
    }

    /// One that looks for `EVIL!`.
    pub(crate) fn pack() -> Pack {
        let literal = literal_filter::Literal {
            bytes: b"EVIL!".to_vec(),
            nocase: false,
        };
        let filter = literal_filter::Filter::build(&[literal]).unwrap();
        let needles = literal_filter::Needles::default();
        Pack::read(&Pack::write_with_heads(&[b"PACKED"], &filter, &needles)).unwrap()
    }

    fn reported(bytes: &[u8], size: u64) -> Result<Option<Reported>, Stopped> {
        let digest = Digest::of(bytes);
        report(&bytes, (size, digest), &pack(), || true)
    }

    #[test]
    fn a_report_is_of_the_content_that_was_hashed() {
        let mut bytes = content();
        bytes[300_000..300_005].copy_from_slice(b"EVIL!");
        let size = bytes.len() as u64;
        let (found, groups) = reported(&bytes, size).unwrap().unwrap();
        assert_eq!(found.head, &bytes[..REPORT_HEAD_BYTES]);
        let read = literal_filter::Report::from_bytes(&found.report, 1, size).unwrap();
        assert_eq!(read.iter().next(), Some((0, &[300_000][..], false)));
        let groups = groups.unwrap();
        assert_eq!((groups.kind(), groups.size()), (Kind::Groups, size));
        let changed = Stopped::Failed(UnscannedReason::Changed);
        assert_eq!(reported(&bytes, size - 1).err(), Some(changed));
        assert_eq!(reported(&bytes, size + 1).err(), Some(changed));
        let small = reported(b"an EVIL! one", 12).unwrap().unwrap();
        assert_eq!(small.0.head, b"an EVIL! one");
        let many = b"EVIL!".repeat(65);
        let told = reported(&many, 325).unwrap().unwrap().0.report;
        let read = literal_filter::Report::from_bytes(&told, 1, 325).unwrap();
        assert!(matches!(read.iter().next(), Some((0, [0, ..], true))));
        assert_eq!(reported(&bytes, 1 << 40), Ok(None), "too many groups");
        bytes[..6].copy_from_slice(b"PACKED");
        let told = reported(&bytes, size).unwrap().unwrap();
        assert_eq!((&told.0.head[..], told.1), (&bytes[..64], None));
        let unwanted = report(&&bytes[..], (size, Digest::of(&bytes)), &pack(), || false);
        assert_eq!(unwanted.err(), Some(Stopped::NotWanted));
    }

    #[test]
    fn ranges_end_with_the_content() {
        let ranges = |asked: &[(u64, u64)]| {
            let range = |&(offset, length): &(u64, u64)| v1::ByteRange { offset, length };
            asked_ranges(&asked.iter().map(range).collect::<Vec<_>>(), 1000)
        };
        assert_eq!(ranges(&[]), [(0, 1000)]);
        assert_eq!(ranges(&[(5, 3), (900, 70_000)]), [(5, 8), (900, 1000)]);
        let beyond = ranges(&[(999, u64::MAX), (u64::MAX, 1), (7, 0)]);
        assert_eq!(beyond, [(999, 1000), (1000, 1000), (7, 7)]);
    }

    #[test]
    fn what_comes_whole_is_reported_as_in_pieces() {
        let mut bytes = content();
        bytes[60_000..60_005].copy_from_slice(b"EVIL!");
        for len in [1, 511, 512, 4096, 60_003, 65_536, 65_537, 131_071, 700_000] {
            let whole = &bytes[..len];
            let (digest, at_once) = report_whole(&pack(), whole);
            assert_eq!(digest, Digest::of(whole), "{len}");
            assert_eq!(Ok(at_once), reported(whole, len as u64), "{len}");
        }
    }

    #[test]
    fn ranges_are_of_the_content_that_was_reported_on() {
        let mut bytes = content();
        let size = bytes.len() as u64;
        let (_, groups) = reported(&bytes, size).unwrap().unwrap();
        let groups = groups.unwrap();
        let read = |bytes: &[u8], at, end| read_from_groups(&bytes, &groups, at, end);
        for (at, end) in [(0, 1), (65_000, 66_000), (65_536, 700_000), (5, 700_000)] {
            let piece = read(&bytes, at, end).unwrap();
            assert!(piece.len() == (end - at) as usize || piece.len() == DATA_PLAIN_MAX_BYTES);
            assert_eq!(piece, &bytes[at as usize..][..piece.len()]);
        }
        let changed = Stopped::Failed(UnscannedReason::Changed);
        assert_eq!(read(&bytes, 699_990, 700_001), Err(changed));
        // Not in the range, but in its group.
        bytes[70_000] ^= 1;
        assert_eq!(read(&bytes, 65_536, 65_600), Err(changed));
        assert!(read(&bytes, 65_000, 65_536).is_ok());
    }
}
