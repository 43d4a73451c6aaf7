//! Passing of descriptors between processes over a unix socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors of one message: more than there are cgroup hierarchies.
const FDS_MAX: usize = 32;

/// Sends bytes with a descriptor.
pub fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    send_with_fds(socket, bytes, &[fd])
}

/// Sends bytes with any number of descriptors. `InvalidInput` if they are too many.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "there is space for so many");
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message, up to `len_max` bytes, and its descriptor. Empty bytes mean that the peer has closed the
/// socket.
pub fn receive_with_fd(socket: BorrowedFd<'_>, len_max: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; len_max];
    let (len, fds) = receive_with_fds(socket, &mut bytes)?;
    bytes.truncate(len);
    Ok((bytes, fds.into_iter().next()))
}

/// Receives one message into `bytes`: its length, and its descriptors. A length of 0 means that the peer has closed the
/// socket. Fails if the kernel could not pass every descriptor.
pub fn receive_with_fds(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    receive(socket, bytes).map(|received| (received.len, received.fds))
}

/// One received message.
pub struct Received {
    /// Bytes. 0 means that the peer has closed the socket.
    pub len: usize,
    pub fds: Vec<OwnedFd>,
    /// The sending process, if the socket asks for it: see [`ask_for_senders`].
    pub sender: Option<u32>,
}

/// Has the kernel add the sender's pid to each message (unix(7), `SO_PASSCRED`). Only root of the initial user
/// namespace can name another process, which it must see.
pub fn ask_for_senders(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, true)?)
}

/// As [`receive_with_fds`], with the sender.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            // Reported once for a peer that died with unread messages. Its earlier messages can still be read.
            Err(rustix::io::Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    // Received descriptors are closed if this fails.
    let (mut fds, mut sender) = (Vec::new(), None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(arrived) => fds.extend(arrived),
            RecvAncillaryMessage::ScmCredentials(of) => {
                sender = of.pid.as_raw_nonzero().get().try_into().ok();
            }
            _ => {}
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "descriptors were lost on the way: too many are open (ulimit -n), or refused",
        ));
    }
    Ok(Received { len: received.bytes, fds, sender })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn messages_of_a_peer_that_died_with_unread_input_arrive() {
        for kind in [SocketType::SEQPACKET, SocketType::STREAM] {
            let (one, other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            send_with_fd(one.as_fd(), b"unread", null.as_fd()).unwrap();
            send_with_fds(other.as_fd(), b"words", &[null.as_fd(), null.as_fd()]).unwrap();
            drop(other);
            let mut bytes = [0; 16];
            let (len, fds) = receive_with_fds(one.as_fd(), &mut bytes).unwrap();
            assert_eq!((&bytes[..len], fds.len()), (&b"words"[..], 2));
            assert_eq!(receive_with_fds(one.as_fd(), &mut bytes).unwrap().0, 0);
        }
    }

    #[test]
    fn more_descriptors_than_there_is_space_for_are_refused() {
        let (one, _other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let many = [one.as_fd(); FDS_MAX + 1];
        assert_eq!(send_with_fds(one.as_fd(), b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn descriptors_that_are_lost_on_the_way_are_an_error() {
        for kind in [SocketType::SEQPACKET, SocketType::STREAM] {
            let (one, other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX * 2))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let many = [one.as_fd(); FDS_MAX * 2];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
            sendmsg(&one, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
            assert!(receive_with_fds(other.as_fd(), &mut [0; 16]).is_err());
        }
    }
}
