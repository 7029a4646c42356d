//! One message per packet over SOCK_SEQPACKET, with at most one descriptor along.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use proto::ENGINE_PACKET_MAX_BYTES;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};

/// The `job_id` of a worker's first report, which says that it is confined and waits.
pub(crate) const HELLO_JOB_ID: u64 = u64::MAX;
/// Bytes of a detection's name, of an error and of a detail; the rest is cut off.
pub(crate) const TEXT_MAX_BYTES: usize = 512;
/// Components of a path inside a container.
pub(crate) const PATH_COMPONENTS_MAX: usize = 64;
/// Bytes of one of them; the rest is cut off.
pub(crate) const PATH_COMPONENT_MAX_BYTES: usize = 1024;

/// A packet that came in: how much of the buffer it fills, and its descriptor.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) len: usize,
    pub(crate) fd: Option<OwnedFd>,
}

/// A connected pair, close-on-exec, big enough for the largest packet.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for end in [&a, &b] {
        // A packet must fit whole into the sender's buffer; the kernel's default would do for
        // 192 KiB, but an administrator may have lowered it.
        sockopt::set_socket_send_buffer_size(end, 2 * ENGINE_PACKET_MAX_BYTES)?;
    }
    Ok((a, b))
}

/// Sends one message. `EPIPE` where the other end is gone, `EMSGSIZE` where it is too large.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Message,
    fd: Option<BorrowedFd<'_>>,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    if message.encoded_len() > ENGINE_PACKET_MAX_BYTES {
        return Err(rustix::io::Errno::MSGSIZE.into());
    }
    buffer.clear();
    message
        .encode(buffer)
        .map_err(|_| io::Error::from(rustix::io::Errno::MSGSIZE))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let iov = [IoSlice::new(buffer)];
    sendmsg(socket, &iov, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; `None` at the end of the stream. A packet that was cut off (larger than
/// the buffer, or with more than one descriptor) is `InvalidData`.
pub(crate) fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(buffer)];
    let received = recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            // Extra descriptors are closed by being dropped.
            fd = fds.last().or(fd);
        }
    }
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if received.flags.intersects(cut) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet cut off"));
    }
    // No message of ours is empty on the wire, and a closed SEQPACKET socket reads as empty.
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some(Received {
        len: received.bytes,
        fd,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1;

    #[test]
    fn message_and_descriptor_arrive() {
        let (a, b) = pair().expect("socketpair");
        let (c, _d) = pair().expect("socketpair");
        let message = v1::WorkerExited {
            pid: 7,
            ..Default::default()
        };
        let mut buffer = Vec::new();
        send(a.as_fd(), &message, Some(c.as_fd()), &mut buffer).expect("send");
        let mut buffer = vec![0; 1024];
        let packet = recv(&b, &mut buffer).expect("recv").expect("a packet");
        assert!(packet.fd.is_some());
        assert_eq!(v1::WorkerExited::decode(&buffer[..packet.len]), Ok(message));
        drop(a);
        assert!(recv(&b, &mut buffer).expect("recv").is_none());
    }

    #[test]
    fn a_packet_larger_than_the_buffer_is_refused() {
        let (a, b) = pair().expect("socketpair");
        let message = v1::EngineFailed {
            errors: vec!["x".repeat(100)],
        };
        send(a.as_fd(), &message, None, &mut Vec::new()).expect("send");
        let error = recv(&b, &mut [0; 10]).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_largest_packet_fits_and_a_larger_one_is_refused() {
        let (a, b) = pair().expect("socketpair");
        let room = ENGINE_PACKET_MAX_BYTES - 4;
        let mut message = v1::EngineFailed {
            errors: vec!["x".repeat(room)],
        };
        assert_eq!(message.encoded_len(), ENGINE_PACKET_MAX_BYTES);
        send(a.as_fd(), &message, None, &mut Vec::new()).expect("send");
        let mut buffer = vec![0; ENGINE_PACKET_MAX_BYTES];
        let packet = recv(&b, &mut buffer).expect("recv").expect("a packet");
        assert_eq!(packet.len, ENGINE_PACKET_MAX_BYTES);
        message.errors[0].push('x');
        assert!(send(a.as_fd(), &message, None, &mut Vec::new()).is_err());
    }
}
