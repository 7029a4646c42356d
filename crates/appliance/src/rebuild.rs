//! Content put together from chunks that are here and ranges that come; proved as any other.

use std::fs::File;
use std::os::unix::fs::FileExt;

use chunks::{Chunk, Copy, Manifest, Plan, Range, plan};
use model::Digest;
use scan_core::Place;

use crate::assembly::{AssemblyError, Proved, Spool, each_piece, memory_file, read_only, sealed};
use crate::expected::Expected;

/// Content of which a part is here.
#[derive(Debug)]
pub(crate) struct Rebuild {
    size: u64,
    place: Place,
    file: File,
    expected: Expected,
    copies: Vec<Copy>,
    /// Bytes that were here.
    pub(crate) held_bytes: u64,
}

impl Rebuild {
    /// Puts what `take` gives into its place. Blocks on the disk.
    pub(crate) fn begin(
        manifest: &Manifest,
        place: Place,
        spool: &Spool,
        mut take: impl FnMut(&Chunk) -> Option<Vec<u8>>,
    ) -> Result<Self, AssemblyError> {
        let size = manifest.size();
        let file = match place {
            Place::Memory => {
                let file = memory_file().map_err(AssemblyError::Memory)?;
                file.set_len(size).map_err(AssemblyError::Memory)?;
                file
            }
            Place::Spool => spool.create(size).map_err(AssemblyError::Spool)?,
        };
        let failed = io_error(place);
        let planned = plan(manifest, |chunk| match take(chunk) {
            Some(bytes) => file.write_all_at(&bytes, chunk.offset).map(|()| true),
            None => Ok(false),
        });
        let Plan {
            ranges,
            copies,
            held_bytes,
        } = planned.map_err(failed)?;
        Ok(Self {
            size,
            place,
            file,
            expected: Expected::new(ranges),
            copies,
            held_bytes,
        })
    }

    /// What is missing; empty: nothing.
    pub(crate) fn ranges(&self) -> &[Range] {
        self.expected.ranges()
    }

    /// Bytes of all ranges.
    pub(crate) fn missing_bytes(&self) -> u64 {
        self.expected.bytes()
    }

    /// Bytes taken so far.
    pub(crate) fn received(&self) -> u64 {
        self.expected.received()
    }

    /// Takes the next piece: where the last one ended, or where the next range begins. May block
    /// on the disk.
    pub(crate) fn absorb(&mut self, offset: u64, bytes: &[u8]) -> Result<(), AssemblyError> {
        self.expected.take(offset, bytes.len() as u64)?;
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(io_error(self.place))
    }

    /// Makes the copies, checks size and digest, and seals the content. Blocks on the disk.
    pub(crate) fn finish(self, claimed: Digest) -> Result<Proved, AssemblyError> {
        self.expected.finish()?;
        let failed = io_error(self.place);
        self.copy().map_err(io_error(self.place))?;
        let digest = self.hash().map_err(io_error(self.place))?;
        if digest != claimed {
            return Err(AssemblyError::Changed);
        }
        let size = self.size;
        let content = match self.place {
            Place::Memory => sealed(self.file.into(), size),
            Place::Spool => read_only(&self.file, size),
        };
        Ok(Proved {
            content: content.map_err(failed)?,
            size,
            digest,
        })
    }

    fn copy(&self) -> std::io::Result<()> {
        let mut buffer = vec![0; chunks::CHUNK_BYTES_MAX as usize];
        for copy in &self.copies {
            let bytes = buffer.get_mut(..copy.len as usize).unwrap_or_default();
            self.file.read_exact_at(bytes, copy.from)?;
            self.file.write_all_at(bytes, copy.to)?;
        }
        Ok(())
    }

    fn hash(&self) -> std::io::Result<Digest> {
        let mut blake3 = blake3::Hasher::new();
        each_piece(&self.file, self.size, |bytes| {
            blake3.update(bytes);
        })?;
        Ok(Digest(*blake3.finalize().as_bytes()))
    }
}

fn io_error(place: Place) -> fn(std::io::Error) -> AssemblyError {
    match place {
        Place::Memory => AssemblyError::Memory,
        Place::Spool => AssemblyError::Spool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chunks::{Kind, Lister};
    use model::UnscannedReason;

    fn content() -> Vec<u8> {
        let mut bytes = vec![0; 200_000];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes.extend_from_within(50_000..150_000);
        bytes
    }

    /// With every second chunk held.
    fn begin(bytes: &[u8], place: Place) -> (tempfile::TempDir, Rebuild) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().to_owned());
        let mut lister = Lister::new(Kind::Pages);
        lister.update(bytes);
        let manifest = lister.finish().0;
        let own = |chunk: &Chunk| bytes[chunk.offset as usize..chunk.end() as usize].to_vec();
        let is_held = |chunk: &Chunk| chunk.offset.is_multiple_of(8192);
        let take = |chunk: &Chunk| is_held(chunk).then(|| own(chunk));
        let rebuild = Rebuild::begin(&manifest, place, &spool, take).unwrap();
        (dir, rebuild)
    }

    fn send(rebuild: &mut Rebuild, bytes: &[u8]) {
        for Range { offset, len } in rebuild.ranges().to_vec() {
            let own = &bytes[offset as usize..(offset + len) as usize];
            for (n, piece) in own.chunks(3000).enumerate() {
                rebuild.absorb(offset + n as u64 * 3000, piece).unwrap();
            }
        }
    }

    #[test]
    fn what_is_here_and_what_comes_make_the_whole() {
        let bytes = content();
        for place in [Place::Memory, Place::Spool] {
            let (_dir, mut rebuild) = begin(&bytes, place);
            assert!(rebuild.held_bytes > 100_000);
            send(&mut rebuild, &bytes);
            assert_eq!(rebuild.received(), rebuild.missing_bytes());
            let proved = rebuild.finish(Digest::of(&bytes)).unwrap();
            assert_eq!(proved.size, bytes.len() as u64);
            let sha256 = |content| crate::assembly::sha256_of(content).unwrap();
            let whole = engine::host::Content::Inline(bytes.clone().into());
            assert_eq!(sha256(&proved.content), sha256(&whole));
        }
    }

    #[track_caller]
    fn refused(result: Result<(), AssemblyError>, expected: UnscannedReason) {
        assert_eq!(result.unwrap_err().reason(), expected);
    }

    #[test]
    fn what_does_not_come_as_asked_for_is_refused() {
        use UnscannedReason::{Changed, Truncated};
        let bytes = content();
        let claimed = Digest::of(&bytes);
        let (_dir, rebuild) = begin(&bytes, Place::Memory);
        refused(rebuild.finish(claimed).map(drop), Truncated);
        let (_dir, mut rebuild) = begin(&bytes, Place::Memory);
        refused(rebuild.absorb(0, &[1; 10]), Truncated);
        let first = rebuild.ranges()[0];
        let over = vec![1; first.len as usize + 1];
        refused(rebuild.absorb(first.offset, &over), Truncated);
        send(&mut rebuild, &bytes);
        refused(rebuild.absorb(first.offset, &[1]), Truncated);
        let (_dir, mut rebuild) = begin(&bytes, Place::Memory);
        let mut other = bytes.clone();
        other[first.offset as usize] ^= 1;
        send(&mut rebuild, &other);
        refused(rebuild.finish(claimed).map(drop), Changed);
    }
}
