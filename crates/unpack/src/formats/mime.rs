//! Internet messages: MIME parts with their transfer encoding undone, uuencoded files in text,
//! and mailboxes of messages. One pass over the lines, no recursion.

use memchr::memchr;

use super::mime_header::{self, Header};
use crate::fields;
use crate::guess::{Glimpse, Guess, HEAD_BYTES};
use crate::summary::{IncompleteKind, Problem};
use crate::text_codecs::{Base64, QuotedPrintable, Stage, Uuencode};
use crate::walker::{Halt, Stop, Walker};

/// Multiparts within each other; each line is compared with every open boundary.
const MULTIPARTS_MAX: usize = 64;

/// Bytes of the header that are looked at to tell mail from text.
const SNIFF_BYTES: usize = 16 << 10;

/// What a mailbox and each message in it start with.
const MAILBOX: &[u8] = b"From ";

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    None,
    Base64,
    QuotedPrintable,
    Uuencode,
}

/// Fields that say "MIME", and fields of which mail has several.
const MIME_FIELDS: [&[u8]; 3] = [
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
];
const MAIL_FIELDS: [&[u8]; 12] = [
    b"return-path",
    b"received",
    b"delivered-to",
    b"from",
    b"to",
    b"cc",
    b"subject",
    b"date",
    b"message-id",
    b"reply-to",
    b"sender",
    b"x-mailer",
];

/// Text that starts with header fields: one of MIME's and one of mail's, or three of mail's, or
/// two of MIME's.
pub(crate) fn is_message(bytes: &[u8]) -> bool {
    sniff(fields::prefix(bytes, 0, SNIFF_BYTES), true) == Some(true)
}

/// Bytes of the start that are asked for, one after the other, where those before leave it open.
const STARTS_BYTES: [usize; 3] = [HEAD_BYTES, 4 << 10, SNIFF_BYTES];

/// Whether content of which a part is known may be a message or a mailbox.
pub(crate) fn guess(glimpse: &dyn Glimpse) -> Guess {
    for len in STARTS_BYTES {
        let Some(start) = glimpse.get(0, len) else {
            return Guess::need(0, len);
        };
        // Hardly anything else starts so; whether a message follows is left to who has it whole.
        if start.starts_with(MAILBOX) {
            return Guess::Maybe;
        }
        let is_all = start.len() < len || len == SNIFF_BYTES;
        if let Some(is_message) = sniff(start, is_all) {
            return Guess::of(is_message);
        }
    }
    Guess::Maybe
}

/// Whether a message starts so; `None`: not known, since more follows unless this `is_all`.
fn sniff(start: &[u8], is_all: bool) -> Option<bool> {
    let (mut mime, mut mail) = (0, 0);
    for line in lines(start) {
        let is_cut = !is_all && !line.has_end;
        let text = line.text;
        if text.is_empty() {
            return Some(false);
        }
        if matches!(text, [b' ' | b'\t', ..]) && mime + mail > 0 {
            continue;
        }
        let Some((name, _)) = mime_header::name_and_value(text) else {
            return match is_cut && mime_header::may_be_name(text) {
                true => None,
                false => Some(false),
            };
        };
        let is = |known: &&[u8]| name.eq_ignore_ascii_case(known);
        mime += u32::from(MIME_FIELDS.iter().any(is));
        mail += u32::from(MAIL_FIELDS.iter().any(is));
        if mime >= 1 && mail >= 1 || mail >= 3 || mime >= 2 {
            return Some(true);
        }
    }
    is_all.then_some(false)
}

/// `From `, then a message.
pub(crate) fn is_mbox(bytes: &[u8]) -> bool {
    bytes.starts_with(MAILBOX)
        && memchr(b'\n', fields::prefix(bytes, 0, 1024))
            .is_some_and(|end| is_message(&bytes[end + 1..]))
}

pub(crate) fn open_mbox(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let mut message: Option<(usize, usize)> = None;
    let mut number = 0_u32;
    let mut at = 0;
    for line in lines(bytes) {
        walker.step()?;
        if line.text.starts_with(MAILBOX) {
            if let Some((start, end)) = message {
                number += 1;
                walker.stored(format!("message {number}").as_bytes(), &bytes[start..end])?;
            }
            let start = at + line.len;
            message = Some((start, start));
        } else if let Some((_, end)) = &mut message {
            *end = at + line.len;
        }
        at += line.len;
    }
    if let Some((start, end)) = message {
        number += 1;
        walker.stored(format!("message {number}").as_bytes(), &bytes[start..end])?;
    }
    Ok(())
}

/// A line without its end, and its length with it.
struct Line<'a> {
    text: &'a [u8],
    len: usize,
    has_end: bool,
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    bytes.split_inclusive(|&b| b == b'\n').map(|line| Line {
        text: mime_header::without_cr(line.strip_suffix(b"\n").unwrap_or(line)),
        len: line.len(),
        has_end: line.ends_with(b"\n"),
    })
}

/// Where the pass stands.
enum State {
    /// In a header block that starts here.
    Header(usize),
    /// In the body that starts here.
    Body(usize, Header),
    /// Between parts: preamble, epilogue.
    Between,
}

struct Pass<'a> {
    bytes: &'a [u8],
    state: State,
    /// Boundaries of the open multiparts, outermost first.
    open: Vec<Vec<u8>>,
    parts: u32,
}

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let mut pass = Pass {
        bytes,
        state: State::Header(0),
        open: Vec::new(),
        parts: 0,
    };
    let mut at = 0;
    for line in lines(bytes) {
        walker.step()?;
        let next = at + line.len;
        match pass.delimiter(line.text) {
            Some((level, closes)) => pass.delimited(walker, at, next, level, closes)?,
            None if line.text.is_empty() => pass.header_ends(walker, at, next)?,
            None => {}
        }
        at = next;
    }
    // A header that nothing follows is a part without a body.
    if let State::Body(start, header) = std::mem::replace(&mut pass.state, State::Between) {
        pass.part(walker, &header, &bytes[start..])?;
    }
    if !pass.open.is_empty() {
        walker.note(Problem::malformed("mime: the last boundary is missing"));
    }
    Ok(())
}

impl Pass<'_> {
    /// The open multipart that a line delimits, and whether it closes it.
    fn delimiter(&self, line: &[u8]) -> Option<(usize, bool)> {
        let rest = line.strip_prefix(b"--")?;
        self.open
            .iter()
            .enumerate()
            .rev()
            .find_map(|(level, boundary)| {
                match rest.strip_prefix(boundary.as_slice())?.trim_ascii() {
                    b"" => Some((level, false)),
                    b"--" => Some((level, true)),
                    _ => None,
                }
            })
    }

    fn delimited(
        &mut self,
        walker: &mut Walker<'_>,
        at: usize,
        next: usize,
        level: usize,
        closes: bool,
    ) -> Result<(), Halt> {
        if let State::Body(start, header) = std::mem::replace(&mut self.state, State::Between) {
            let body = &self.bytes[start..at.max(start)];
            // The line end before a boundary belongs to the boundary.
            let body = mime_header::without_cr(body.strip_suffix(b"\n").unwrap_or(body));
            self.part(walker, &header, body)?;
        }
        if level + 1 < self.open.len() {
            walker.note(Problem::malformed(
                "mime: the last boundary of a part is missing",
            ));
        }
        self.open.truncate(if closes { level } else { level + 1 });
        if !closes {
            self.state = State::Header(next);
        }
        Ok(())
    }

    fn header_ends(&mut self, walker: &mut Walker<'_>, at: usize, next: usize) -> Result<(), Halt> {
        let State::Header(start) = self.state else {
            return Ok(());
        };
        let mut header = mime_header::parse(&self.bytes[start..at.max(start)]);
        self.state = match header.boundary.take() {
            Some(_) if self.open.len() >= MULTIPARTS_MAX => {
                walker.note(Problem::new(
                    IncompleteKind::Depth,
                    format!("mime: more than {MULTIPARTS_MAX} multiparts within each other"),
                ));
                State::Body(next, header)
            }
            Some(boundary) => {
                self.open.push(boundary);
                State::Between
            }
            None => State::Body(next, header),
        };
        Ok(())
    }

    /// Gives one part, and the uuencoded files in it.
    fn part(&mut self, walker: &mut Walker<'_>, header: &Header, body: &[u8]) -> Result<(), Halt> {
        self.parts += 1;
        let name = header
            .filename
            .clone()
            .unwrap_or_else(|| format!("part {}", self.parts).into_bytes());
        match header.encoding {
            Encoding::Base64 => {
                let mut reader = Stage::new(body, Base64::default());
                walker.decoded(&name, body.len(), &mut reader)?;
            }
            Encoding::QuotedPrintable => {
                let mut reader = Stage::new(body, QuotedPrintable::default());
                walker.decoded(&name, body.len(), &mut reader)?;
            }
            Encoding::None | Encoding::Uuencode => {
                walker.stored(&name, body)?;
                uuencoded(walker, body)?;
            }
        }
        Ok(())
    }
}

/// Files between `begin MODE NAME` and `end` lines.
fn uuencoded(walker: &mut Walker<'_>, body: &[u8]) -> Result<(), Halt> {
    let mut file: Option<(&[u8], usize)> = None;
    let mut at = 0;
    for line in lines(body) {
        let next = at + line.len;
        file = match file {
            None => begin_line(line.text).map(|name| (name, next)),
            Some((name, start)) if line.text == b"end" => {
                uudecode(walker, name, &body[start..at], None)?;
                None
            }
            open => open,
        };
        at = next;
    }
    if let Some((name, start)) = file {
        let text = &body[start..];
        // Some writers stop at the empty line before `end`.
        let ended = text.trim_ascii_end().ends_with(b"\n`");
        let cut = || Problem::malformed("uuencode: the end is missing");
        uudecode(walker, name, text, (!ended).then(cut))?;
    }
    Ok(())
}

fn uudecode(
    walker: &mut Walker<'_>,
    name: &[u8],
    text: &[u8],
    problem: Option<Problem>,
) -> Result<(), Stop> {
    let mut sink = walker.sink(text.len());
    sink.fill("uuencode", &mut Stage::new(text, Uuencode::default()));
    if let Some(problem) = problem {
        sink.note(problem);
    }
    walker.unpacked(name, sink.finish())
}

/// The name in `begin 644 name`.
fn begin_line(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"begin ")?;
    let (mode, name) = rest.split_at(rest.iter().position(|&b| b == b' ')?);
    let octal = (3..=4).contains(&mode.len()) && mode.iter().all(|b| (b'0'..=b'7').contains(b));
    octal.then_some(name.trim_ascii())
}
