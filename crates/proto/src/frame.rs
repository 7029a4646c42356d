//! Frames: a 4-byte big-endian length, then that many bytes of one protobuf message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Most bytes of one message. Bounds what a peer can make us hold.
pub const FRAME_MAX_BYTES: usize = 1 << 20;
/// Bytes before each message.
pub const HEADER_BYTES: usize = 4;

/// A frame that ends the connection.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_MAX_BYTES`].
    #[error("frame of {0} bytes; at most {FRAME_MAX_BYTES} are allowed")]
    TooLarge(usize),
    /// Not the message it should be.
    #[error("frame does not decode")]
    Malformed(#[source] prost::DecodeError),
}

/// Appends one framed message to `out`.
///
/// # Errors
/// [`FrameError::TooLarge`] where the message is too long; `out` is unchanged.
pub fn encode_into(message: &impl Message, out: &mut BytesMut) -> Result<(), FrameError> {
    let len = message.encoded_len();
    if len > FRAME_MAX_BYTES {
        return Err(FrameError::TooLarge(len));
    }
    out.reserve(HEADER_BYTES + len);
    out.put_u32(len as u32);
    message.encode_raw(out);
    Ok(())
}

/// One framed message.
///
/// # Errors
/// [`FrameError::TooLarge`] where the message is too long.
pub fn encode(message: &impl Message) -> Result<Bytes, FrameError> {
    let mut out = BytesMut::new();
    encode_into(message, &mut out)?;
    Ok(out.freeze())
}

/// Takes the body of the first whole frame off the front of `buffer`; `None` where more bytes
/// are needed (at least as many as a frame is long are then reserved).
///
/// # Errors
/// [`FrameError::TooLarge`] as soon as the length says so, before any of the body is held.
pub fn split(buffer: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*header) as usize;
    if len > FRAME_MAX_BYTES {
        return Err(FrameError::TooLarge(len));
    }
    if buffer.len() < HEADER_BYTES + len {
        buffer.reserve(HEADER_BYTES + len - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    Ok(Some(buffer.split_to(len).freeze()))
}

/// Decodes the body of a frame.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode<M: Message + Default>(body: Bytes) -> Result<M, FrameError> {
    M::decode(body).map_err(FrameError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Ping;

    #[test]
    fn byte_by_byte() {
        let whole = encode(&Ping { nonce: 7 }).unwrap();
        let mut buffer = BytesMut::new();
        for (i, byte) in whole.iter().enumerate() {
            assert!(split(&mut buffer).unwrap().is_none(), "at {i}");
            buffer.put_u8(*byte);
        }
        let body = split(&mut buffer).unwrap().unwrap();
        assert_eq!(decode::<Ping>(body).unwrap(), Ping { nonce: 7 });
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_long_frame_is_refused_by_its_header() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(split(&mut buffer), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn junk_does_not_decode() {
        assert!(decode::<Ping>(Bytes::from_static(&[0xff])).is_err());
    }
}
