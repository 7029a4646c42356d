//! Does clamd say when one of its limits kept it from looking? Without `AlertExceedsMax yes` it
//! answers as if the file were clean, and then there is no telling what was scanned. So it is
//! given a file that exceeds its recursion limit, whatever that is.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use crate::answer::Answer;
use crate::session::{Session, SessionError};
use crate::worker::memory_file;

/// Tars inside each other. ClamAV's default limit is 17, and it has a ceiling of 100.
const DEPTH: usize = 110;
/// Size of a tar's header and of its blocks.
const BLOCK: usize = 512;

/// A session with a clamd that passes.
pub(crate) fn open(path: &Path, limit: Duration) -> Result<Session, SessionError> {
    let mut session = Session::open(path)?;
    let text = scan(&mut session, &nested(), limit)?;
    match Answer::parse(&text) {
        Some(Answer::Incomplete(..)) => Ok(session),
        Some(Answer::Clean) => Err(SessionError::Unfit(
            "calls files beyond its limits clean; set 'AlertExceedsMax yes' in clamd.conf".into(),
        )),
        _ => Err(SessionError::Unfit(format!(
            "limits test: answer not understood: {text:?}"
        ))),
    }
}

/// A warning where clamd calls an encrypted archive clean.
pub(crate) fn encrypted(
    session: &mut Session,
    limit: Duration,
) -> Result<Option<String>, SessionError> {
    let text = scan(session, &encrypted_zip(), limit)?;
    let is_clean = Answer::parse(&text) == Some(Answer::Clean);
    Ok(is_clean.then(|| {
        "clamd calls encrypted archives clean; set 'AlertEncrypted yes' in clamd.conf".to_owned()
    }))
}

fn scan(session: &mut Session, bytes: &[u8], limit: Duration) -> Result<String, SessionError> {
    let file =
        memory_file(bytes).map_err(|error| SessionError::Unfit(format!("limits test: {error}")))?;
    session.scan(file.as_fd(), limit)
}

/// A zip with one stored member that calls itself encrypted.
fn encrypted_zip() -> Vec<u8> {
    let fields = b"\x0a\0\x01\0\0\0\0\0\0\0\x12\x34\x56\x78\x10\0\0\0\x10\0\0\0\x01\0\0\0";
    let local = [b"PK\x03\x04", &fields[..], b"a", &[7; 16][..]].concat();
    let central = [b"PK\x01\x02\x0a\0", &fields[..], &[0; 14][..], b"a"].concat();
    let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
    for len in [central.len(), local.len()] {
        end.extend(u32::try_from(len).unwrap_or_default().to_le_bytes());
    }
    end.extend([0; 2]);
    [local, central, end].concat()
}

/// A tar in a tar in a tar …
fn nested() -> Vec<u8> {
    let mut file = b"the innermost".to_vec();
    for _ in 0..DEPTH {
        let mut outer = header(file.len()).to_vec();
        outer.append(&mut file);
        outer.resize(outer.len().next_multiple_of(BLOCK), 0);
        file = outer;
    }
    file.resize(file.len() + 2 * BLOCK, 0);
    file
}

/// A ustar header of one plain file of this size.
fn header(size: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        if let Some(field) = header.get_mut(at..at + text.len()) {
            field.copy_from_slice(text);
        }
    };
    put(0, b"inner.tar");
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    header
}
