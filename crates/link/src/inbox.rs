//! Plaintext to envelopes. No I/O.

use bytes::{Buf, Bytes, BytesMut};
use proto::{FrameError, HEADER_BYTES, v1};

/// Longest frame before both sides know each other: Hello, Welcome, Refused.
pub(crate) const GREETING_MAX_BYTES: usize = 16 * 1024;
/// An empty buffer larger than this is given back, so that idle sessions cost nothing.
const KEEP_BYTES: usize = 32 * 1024;

/// Bytes received and not yet taken as frames; at most one frame and one read.
#[derive(Debug)]
pub(crate) struct Inbox {
    plain: BytesMut,
    frame_bytes_max: usize,
}

impl Inbox {
    /// Takes greetings only, until [`Self::open`].
    pub(crate) fn new() -> Self {
        Self {
            plain: BytesMut::new(),
            frame_bytes_max: GREETING_MAX_BYTES,
        }
    }

    /// Takes frames of every length that the contract allows.
    pub(crate) fn open(&mut self) {
        self.frame_bytes_max = proto::FRAME_MAX_BYTES;
    }

    /// Where plaintext is appended.
    pub(crate) fn plain(&mut self) -> &mut BytesMut {
        &mut self.plain
    }

    /// The next whole envelope. It holds no more memory than it is long: what is decoded keeps
    /// slices of its frame, and a slice of this buffer would keep all of it.
    pub(crate) fn next(&mut self) -> Result<Option<v1::Envelope>, FrameError> {
        let Some(header) = self.plain.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*header) as usize;
        if len > self.frame_bytes_max {
            return Err(FrameError::TooLarge(len));
        }
        let end = HEADER_BYTES + len;
        let Some(body) = self.plain.get(HEADER_BYTES..end) else {
            return Ok(None);
        };
        let body = Bytes::copy_from_slice(body);
        self.plain.advance(end);
        if self.plain.is_empty() && self.plain.capacity() > KEEP_BYTES {
            self.plain = BytesMut::new();
        }
        proto::decode(body).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::envelope::Body;

    #[test]
    fn byte_by_byte() {
        let envelope = v1::Envelope {
            request_id: 7,
            body: Some(Body::Ping(v1::Ping { nonce: 9 })),
        };
        let frame = proto::encode(&envelope).unwrap();
        let mut inbox = Inbox::new();
        for byte in &frame {
            assert_eq!(inbox.next().unwrap(), None);
            inbox.plain().extend_from_slice(&[*byte]);
        }
        assert_eq!(inbox.next().unwrap(), Some(envelope));
    }

    #[test]
    fn long_frames_pass_only_after_the_greeting() {
        let envelope = v1::Envelope {
            request_id: 1,
            body: Some(Body::Data(v1::Data {
                offset: 0,
                bytes: vec![1; GREETING_MAX_BYTES].into(),
                ..v1::Data::default()
            })),
        };
        let frame = proto::encode(&envelope).unwrap();
        let mut inbox = Inbox::new();
        inbox.plain().extend_from_slice(&frame);
        assert!(matches!(inbox.next(), Err(FrameError::TooLarge(_))));
        inbox.open();
        assert_eq!(inbox.next().unwrap(), Some(envelope));
        assert_eq!(inbox.next().unwrap(), None);
    }
}
