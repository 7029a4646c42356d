//! The raw decoders. Each runs into a [`Sink`], and nothing else may make one: `clippy.toml`
//! bans their constructors everywhere but here.
#![expect(
    clippy::disallowed_methods,
    reason = "the one module that wraps raw decoders in the capped reader"
)]

use std::io::{self, Read};

use crate::budget::{Budget, Source};
use crate::predictor::{Predictor, Rows};
use crate::sink::Sink;
use crate::summary::Problem;
use crate::text_codecs::{Ascii85, AsciiHex, RunLength, Stage};

/// Multi-member gzip.
pub(crate) fn gzip(sink: &mut Sink<'_>, data: &[u8]) {
    let read = |sink: &mut Sink<'_>, rest| {
        let mut decoder = flate2::bufread::GzDecoder::new(rest);
        sink.fill("gzip", &mut decoder)
            .then(|| decoder.into_inner())
    };
    concatenated(sink, data, b"\x1f\x8b\x08", read);
}

/// Multi-stream bzip2.
pub(crate) fn bzip2(sink: &mut Sink<'_>, data: &[u8]) {
    let read = |sink: &mut Sink<'_>, rest| {
        let mut decoder = bzip2::bufread::BzDecoder::new(rest);
        sink.fill("bzip2", &mut decoder)
            .then(|| decoder.into_inner())
    };
    concatenated(sink, data, b"BZh", read);
}

/// Multi-stream xz, its dictionary within `window_bytes`.
pub(crate) fn xz(sink: &mut Sink<'_>, data: &[u8], window_bytes: u64) {
    let limit_kb = u32::try_from(window_bytes >> 10).unwrap_or(u32::MAX);
    let read = |sink: &mut Sink<'_>, rest| {
        let mut decoder = lzma_rust2::XzReader::new_mem_limit(rest, false, limit_kb);
        sink.fill("xz", &mut decoder).then(|| decoder.into_inner())
    };
    concatenated(sink, data, b"\xfd7zXZ\0", read);
}

/// Multi-frame zstd, its window within `window_bytes`. Frames that hold no data are skipped.
pub(crate) fn zstd(sink: &mut Sink<'_>, data: &[u8], window_bytes: u64) {
    // libzstd takes logarithms from 10 to 31.
    let window_log = window_bytes.max(1).ilog2().clamp(10, 31);
    let read = |sink: &mut Sink<'_>, rest| {
        let decoder = zstd::stream::read::Decoder::with_buffer(rest)
            .map(zstd::stream::read::Decoder::single_frame)
            .and_then(|mut decoder| decoder.window_log_max(window_log).map(|()| decoder));
        match decoder {
            Ok(mut decoder) => sink.fill("zstd", &mut decoder).then(|| decoder.finish()),
            Err(error) => {
                sink.note(Problem::of_io("zstd", &error));
                None
            }
        }
    };
    let rest = skip_zstd_frames(sink.budget(), data);
    concatenated(sink, rest, b"\x28\xb5\x2f\xfd", |sink, rest| {
        let rest = read(sink, rest)?;
        Some(skip_zstd_frames(sink.budget(), rest))
    });
}

/// What follows the skippable frames (magic 0x184D2A5?, length, content) at the start.
fn skip_zstd_frames<'d>(budget: &Budget<'_>, mut data: &'d [u8]) -> &'d [u8] {
    while let [m, 0x2a, 0x4d, 0x18, l0, l1, l2, l3, rest @ ..] = data {
        if m & 0xf0 != 0x50 || budget.spend(0) {
            break;
        }
        let len = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
        data = rest.get(len..).unwrap_or_default();
    }
    data
}

/// Streams one after the other make one output. Zeros after one are padding; anything else that
/// does not start with `magic` is not part of the file, unless it is a cut magic.
fn concatenated<'d>(
    sink: &mut Sink<'_>,
    data: &'d [u8],
    magic: &[u8],
    mut read: impl FnMut(&mut Sink<'_>, &'d [u8]) -> Option<&'d [u8]>,
) {
    let mut rest = data;
    loop {
        let Some(after) = read(sink, rest) else {
            return;
        };
        let padding = after.iter().take_while(|&&b| b == 0).count();
        rest = &after[padding..];
        if sink.budget().spend(padding as u64) || !rest.starts_with(magic) {
            break;
        }
    }
    if !rest.is_empty() && magic.starts_with(rest) {
        sink.note(Problem::malformed("cut at the start of its next stream"));
    }
}

/// A filter of a PDF stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Flate,
    /// `early_change`: codes grow one code early, PDF's default.
    Lzw {
        early_change: bool,
    },
    AsciiHex,
    Ascii85,
    RunLength,
    Predictor(Predictor),
}

/// A PDF stream through its filters, the first of `filters` applied first. What a filter passes
/// to the next one is limited as a member is.
pub(crate) fn filtered(sink: &mut Sink<'_>, data: &[u8], filters: &[Filter]) {
    let (budget, between_max) = (sink.budget(), sink.entry_bytes_max());
    let mut reader: Box<dyn Read + '_> = Box::new(Source::new(data, budget));
    for &filter in filters {
        let decoded: Box<dyn Read + '_> = match filter {
            Filter::Flate => Box::new(flate2::read::ZlibDecoder::new(reader)),
            Filter::Lzw { early_change } => Box::new(Lzw::new(reader, early_change)),
            Filter::AsciiHex => Box::new(Stage::new(reader, AsciiHex::default())),
            Filter::Ascii85 => Box::new(Stage::new(reader, Ascii85::default())),
            Filter::RunLength => Box::new(Stage::new(reader, RunLength::default())),
            Filter::Predictor(predictor) => Box::new(Stage::new(reader, Rows::new(predictor))),
        };
        reader = Box::new(Metered {
            inner: decoded,
            left: between_max.saturating_add(1),
            budget,
        });
    }
    sink.fill("stream", &mut reader);
}

/// A zlib stream of an OLE object.
pub(crate) fn zlib(sink: &mut Sink<'_>, data: &[u8]) {
    sink.fill("zlib", &mut flate2::bufread::ZlibDecoder::new(data));
}

/// Limits what one filter passes to the next, so that a chain cannot work for ever on output
/// that the last filter swallows.
struct Metered<'b, R> {
    inner: R,
    left: u64,
    budget: &'b Budget<'b>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        if self.budget.spend(got as u64) {
            return Err(io::Error::other("stopped by the caller"));
        }
        self.left = self.left.checked_sub(got as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::OutOfMemory, "too much between filters")
        })?;
        Ok(got)
    }
}

/// LZW as PDF has it: codes from 9 bits, most significant bit first.
struct Lzw<R> {
    inner: io::BufReader<R>,
    decoder: weezl::decode::Decoder,
}

impl<R: Read> Lzw<R> {
    fn new(inner: R, early_change: bool) -> Self {
        let order = weezl::BitOrder::Msb;
        Self {
            inner: io::BufReader::new(inner),
            decoder: if early_change {
                weezl::decode::Decoder::with_tiff_size_switch(order, 8)
            } else {
                weezl::decode::Decoder::new(order, 8)
            },
        }
    }
}

impl<R: Read> Read for Lzw<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use io::BufRead;
        loop {
            let input = self.inner.fill_buf()?;
            let at_end = input.is_empty();
            let result = self.decoder.decode_bytes(input, buf);
            self.inner.consume(result.consumed_in);
            let status = result.status.map_err(io::Error::other)?;
            let finished = matches!(status, weezl::LzwStatus::Done) || at_end;
            if result.consumed_out > 0 || finished || buf.is_empty() {
                return Ok(result.consumed_out);
            }
            if matches!(status, weezl::LzwStatus::NoProgress) {
                return Ok(0);
            }
        }
    }
}

/// Cabinet blocks are at most this long unpacked.
const CAB_BLOCK_BYTES: usize = 32 << 10;

/// Decodes the blocks of a cabinet folder, in order.
pub(crate) enum CabDecoder {
    Stored,
    MsZip {
        inflate: Box<flate2::Decompress>,
        /// The last block's output: the next one refers to it.
        window: Vec<u8>,
    },
    Lzx(Box<lzxd::Lzxd>),
}

impl CabDecoder {
    /// By the folder's method field.
    pub(crate) fn new(method: u16) -> Result<Self, Problem> {
        use lzxd::WindowSize as W;
        let windows = [
            W::KB32,
            W::KB64,
            W::KB128,
            W::KB256,
            W::KB512,
            W::MB1,
            W::MB2,
        ];
        match method & 0x0f {
            0 => Ok(Self::Stored),
            1 => Ok(Self::MsZip {
                inflate: Box::new(flate2::Decompress::new(false)),
                window: Vec::new(),
            }),
            2 => Err(Problem::unsupported("cab: Quantum compression")),
            3 => usize::from(method >> 8 & 0x1f)
                .checked_sub(15)
                .and_then(|index| windows.get(index))
                .map(|&window| Self::Lzx(Box::new(lzxd::Lzxd::new(window))))
                .ok_or_else(|| Problem::malformed("cab: no such LZX window")),
            other => Err(Problem::unsupported(format!("cab: method {other}"))),
        }
    }

    /// One block; `plain_len` is what its header promises.
    pub(crate) fn block(&mut self, packed: &[u8], plain_len: usize) -> io::Result<Vec<u8>> {
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if plain_len > CAB_BLOCK_BYTES && !matches!(self, Self::Stored) {
            return Err(damaged(format!("a block of {plain_len} bytes")));
        }
        let plain = match self {
            Self::Stored => packed.to_vec(),
            Self::MsZip { inflate, window } => {
                let data = packed
                    .strip_prefix(b"CK")
                    .ok_or_else(|| damaged("an MSZIP block without its mark".into()))?;
                let plain = inflate_block(inflate, window, data, plain_len)?;
                window.clone_from(&plain);
                plain
            }
            Self::Lzx(lzx) => lzx
                .decompress_next(packed, plain_len)
                .map_err(|error| damaged(format!("LZX: {error}")))?
                .to_vec(),
        };
        if plain.len() != plain_len {
            return Err(damaged(format!(
                "a block has {} bytes in place of {plain_len}",
                plain.len()
            )));
        }
        Ok(plain)
    }
}

/// Inflates a block that may refer to `window`: zlib-rs takes no dictionary for raw deflate, so
/// the window is fed first, as a stored block, and its output dropped.
fn inflate_block(
    inflate: &mut flate2::Decompress,
    window: &[u8],
    data: &[u8],
    plain_len: usize,
) -> io::Result<Vec<u8>> {
    inflate.reset(false);
    let mut plain = Vec::with_capacity(window.len() + plain_len);
    if let (false, Ok(len)) = (window.is_empty(), u16::try_from(window.len())) {
        let mut stored = vec![0];
        stored.extend_from_slice(&len.to_le_bytes());
        stored.extend_from_slice(&(!len).to_le_bytes());
        stored.extend_from_slice(window);
        inflate.decompress_vec(&stored, &mut plain, flate2::FlushDecompress::Sync)?;
    }
    inflate.decompress_vec(data, &mut plain, flate2::FlushDecompress::Finish)?;
    Ok(plain.split_off(window.len().min(plain.len())))
}
