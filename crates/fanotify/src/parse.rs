//! Parser of what `read` on a fanotify group returns. Pure, and total on any bytes.

/// Size in bytes of an event without extra records (`struct fanotify_event_metadata`).
pub(crate) const METADATA_LEN: usize = 24;

/// The layout that this parser speaks (`FANOTIFY_METADATA_VERSION`).
const METADATA_VERSION: u8 = 3;

/// One event's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawEvent {
    pub(crate) mask: u64,
    /// A descriptor number, or negative (`FAN_NOFD`).
    pub(crate) fd: i32,
    pub(crate) pid: i32,
}

/// The kernel's buffer does not have the layout we know: it is not our kind of kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than one event has.
    #[error("fanotify event at byte {offset}: {left} bytes left, an event has at least 24")]
    Truncated {
        /// Where in the buffer, in bytes.
        offset: usize,
        /// Bytes from there to the buffer's end.
        left: usize,
    },
    /// Another version of the layout.
    #[error("fanotify event at byte {offset}: layout version {version}, known is 3")]
    Version {
        /// Where in the buffer, in bytes.
        offset: usize,
        /// What the event says.
        version: u8,
    },
    /// Lengths that contradict each other or the buffer.
    #[error(
        "fanotify event at byte {offset}: length {event_len} with metadata {metadata_len}, {left} bytes left"
    )]
    Length {
        /// Where in the buffer, in bytes.
        offset: usize,
        /// The event's length by its own field, in bytes.
        event_len: usize,
        /// The fixed part's length by its own field, in bytes.
        metadata_len: usize,
        /// Bytes from there to the buffer's end.
        left: usize,
    },
}

/// The events in `buffer`, in order. Ends after the first error.
pub(crate) fn events(buffer: &[u8]) -> impl Iterator<Item = Result<RawEvent, ParseError>> + '_ {
    let mut offset = 0;
    let mut failed = false;
    std::iter::from_fn(move || {
        let rest = buffer.get(offset..).unwrap_or_default();
        if failed || rest.is_empty() {
            return None;
        }
        match first(rest, offset) {
            Ok((event, event_len)) => {
                offset += event_len;
                Some(Ok(event))
            }
            Err(error) => {
                failed = true;
                Some(Err(error))
            }
        }
    })
}

/// The first event of `rest` and its length in bytes, at least [`METADATA_LEN`].
fn first(rest: &[u8], offset: usize) -> Result<(RawEvent, usize), ParseError> {
    let left = rest.len();
    let Some(bytes) = rest.first_chunk::<METADATA_LEN>() else {
        return Err(ParseError::Truncated { offset, left });
    };
    let [
        l0,
        l1,
        l2,
        l3,
        version,
        _,
        h0,
        h1,
        m @ ..,
        f0,
        f1,
        f2,
        f3,
        p0,
        p1,
        p2,
        p3,
    ] = *bytes;
    if version != METADATA_VERSION {
        return Err(ParseError::Version { offset, version });
    }
    let event_len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let metadata_len = usize::from(u16::from_ne_bytes([h0, h1]));
    if metadata_len < METADATA_LEN || event_len < metadata_len || event_len > left {
        return Err(ParseError::Length {
            offset,
            event_len,
            metadata_len,
            left,
        });
    }
    let event = RawEvent {
        mask: u64::from_ne_bytes(m),
        fd: i32::from_ne_bytes([f0, f1, f2, f3]),
        pid: i32::from_ne_bytes([p0, p1, p2, p3]),
    };
    Ok((event, event_len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(event_len: u32, version: u8, metadata_len: u16, event: RawEvent) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(event_len.to_ne_bytes());
        bytes.extend([version, 0]);
        bytes.extend(metadata_len.to_ne_bytes());
        bytes.extend(event.mask.to_ne_bytes());
        bytes.extend(event.fd.to_ne_bytes());
        bytes.extend(event.pid.to_ne_bytes());
        bytes
    }

    fn event(fd: i32) -> RawEvent {
        RawEvent {
            mask: libc::FAN_OPEN_PERM,
            fd,
            pid: 77,
        }
    }

    fn check(bytes: &[u8], expected: &[Result<RawEvent, ParseError>]) {
        assert_eq!(events(bytes).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(size_of::<libc::fanotify_event_metadata>(), METADATA_LEN);
        assert_eq!(libc::FANOTIFY_METADATA_VERSION, METADATA_VERSION);
        let offsets = [
            std::mem::offset_of!(libc::fanotify_event_metadata, vers),
            std::mem::offset_of!(libc::fanotify_event_metadata, metadata_len),
            std::mem::offset_of!(libc::fanotify_event_metadata, mask),
            std::mem::offset_of!(libc::fanotify_event_metadata, fd),
            std::mem::offset_of!(libc::fanotify_event_metadata, pid),
        ];
        assert_eq!(offsets, [4, 6, 8, 16, 20]);
    }

    #[test]
    fn no_bytes_no_events() {
        check(&[], &[]);
    }

    #[test]
    fn events_follow_each_other_and_extra_records_are_skipped() {
        let mut bytes = encode(24, 3, 24, event(4));
        bytes.extend(encode(32, 3, 24, event(5)));
        bytes.extend([0xff; 8]);
        bytes.extend(encode(24, 3, 24, event(-1)));
        check(&bytes, &[Ok(event(4)), Ok(event(5)), Ok(event(-1))]);
    }

    #[test]
    fn truncation_is_told_after_the_whole_events() {
        let mut bytes = encode(24, 3, 24, event(4));
        bytes.extend(&encode(24, 3, 24, event(5))[..23]);
        let truncated = ParseError::Truncated {
            offset: 24,
            left: 23,
        };
        check(&bytes, &[Ok(event(4)), Err(truncated)]);
    }

    #[test]
    fn another_version_is_refused() {
        let version = ParseError::Version {
            offset: 0,
            version: 4,
        };
        check(&encode(24, 4, 24, event(4)), &[Err(version)]);
    }

    #[test]
    fn lengths_that_contradict_are_refused() {
        for (event_len, metadata_len) in [
            (0, 24),
            (23, 24),
            (25, 24),
            (24, 23),
            (24, 25),
            (u32::MAX, 24),
        ] {
            let length = ParseError::Length {
                offset: 0,
                event_len: event_len as usize,
                metadata_len: usize::from(metadata_len),
                left: 24,
            };
            check(
                &encode(event_len, 3, metadata_len, event(4)),
                &[Err(length)],
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Any bytes: no panic, an end, and never more events than fit.
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let parsed: Vec<_> = events(&bytes).collect();
            prop_assert!(parsed.len() <= bytes.len() / METADATA_LEN + 1);
            let errors = parsed.iter().filter(|event| event.is_err()).count();
            prop_assert!(errors <= 1);
        }

        /// A valid stream with one byte overwritten and the end cut off: the events before the
        /// damage come out unharmed.
        #[test]
        fn damage_harms_nothing_before_it(
            numbers in proptest::collection::vec(any::<i32>(), 1..20),
            damage in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let whole: Vec<u8> =
                numbers.iter().flat_map(|&fd| encode(24, 3, 24, event(fd))).collect();
            let mut bytes = whole.clone();
            let damaged = damage.index(bytes.len());
            bytes[damaged] = byte;
            bytes.truncate(cut.index(whole.len() + 1));
            let unharmed = damaged.min(bytes.len()) / METADATA_LEN;
            let parsed: Vec<_> = events(&bytes).take(unharmed).collect();
            let expected: Vec<_> = numbers[..unharmed].iter().map(|&fd| Ok(event(fd))).collect();
            prop_assert_eq!(parsed, expected);
        }
    }
}
