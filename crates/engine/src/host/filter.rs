//! What agents can look for, taken over from a template.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use literal_filter::Pack;
use model::{FilterId, FilterPack};
use proto::v1;

use super::report;
use crate::worker::FILTER_MAX_BYTES;

/// Reads what a template announced, once: its file is of no concern later. `None`: there is none.
/// The error is for people.
pub(super) fn take(
    ready: &v1::EngineReady,
    fd: Option<OwnedFd>,
) -> Result<Option<FilterPack>, String> {
    if ready.filter_bytes == 0 {
        return Ok(None);
    }
    let len = usize::try_from(ready.filter_bytes).unwrap_or(usize::MAX);
    if len > FILTER_MAX_BYTES {
        return Err(format!("sent a filter of {len} bytes, which is too large,"));
    }
    let fd = fd.ok_or_else(|| "sent a filter without its descriptor".to_owned())?;
    let mut bytes = vec![0; len];
    std::fs::File::from(fd)
        .read_exact_at(&mut bytes, 0)
        .map_err(|error| format!("sent a filter that cannot be read ({error})"))?;
    Ok(Some(FilterPack {
        id: FilterId(Pack::id_of(&bytes)),
        generation: report::generation(ready),
        bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sealed;

    #[track_caller]
    fn check(announced: u64, bytes: Option<&[u8]>, expected: Result<Option<&[u8]>, &str>) {
        let ready = v1::EngineReady {
            generation: vec![7; 16],
            filter_bytes: announced,
            ..Default::default()
        };
        let fd = bytes.map(|bytes| sealed("filter", bytes).expect("sealed"));
        match (take(&ready, fd), expected) {
            (Ok(None), Ok(None)) => {}
            (Ok(Some(filter)), Ok(Some(bytes))) => {
                assert_eq!((&*filter.bytes, filter.generation.0), (bytes, [7; 16]));
                assert_eq!(filter.id.0, Pack::id_of(bytes));
            }
            (Err(error), Err(why)) => assert!(error.contains(why), "{error}"),
            (taken, expected) => panic!("{taken:?} is not {expected:?}"),
        }
    }

    #[test]
    fn only_what_was_announced_is_taken() {
        check(0, None, Ok(None));
        check(3, Some(b"abc"), Ok(Some(b"abc")));
        check(3, None, Err("descriptor"));
        check(4, Some(b"abc"), Err("cannot be read"));
        check(FILTER_MAX_BYTES as u64 + 1, Some(b"abc"), Err("too large"));
        check(u64::MAX, Some(b"abc"), Err("too large"));
    }
}
