//! Netlink: messages to the kernel's network stack and its answers (netlink(7)).
//!
//! ```text
//! ┌───────────── 16 bytes ─────────────┐┌ family's struct ┐┌ attributes ────────────────┐
//! │ length · type · flags · seq · port ││ ifinfomsg, …    ││ length · type · value · pad │ …
//! └────────────────────────────────────┘└─────────────────┘└─────────────────────────────┘
//! ```
//!
//! [`Socket`] sends requests and collects answers, with the kernel's message (extended acknowledgement) in errors. The
//! message families are in [`crate::rtnetlink`], [`crate::nft`] and [`crate::conntrack`].
//!
//! A socket stays in the network namespace in which it was opened, even if its owner leaves that.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::netlink as wire;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt,
};
use types::{Context, Error, Result};

/// Bytes. A dump's datagrams have at most 32 KiB, rounded up to pages.
const ANSWER_LEN_MAX: usize = 64 * 1024;

/// Bytes. Enough for some thousands of rules.
const SEND_BUFFER_LEN: usize = 4 << 20;

/// The kernel answers at once, unless it waits for its own locks.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// How often a dump is retried that changes while it is read.
const DUMPS_MAX: usize = 100;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_MULTI: u16 = 0x2;
const NLM_F_ACK: u16 = 0x4;
/// In an answer to a dump: entries changed meanwhile, so that some are missing or appear twice.
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// In an error: the request is not repeated; attributes with the kernel's message follow.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Flag of an attribute's type: it contains attributes.
pub(crate) const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A request under construction.
#[derive(Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of this type that the kernel acknowledges.
    pub fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Message { bytes }
    }

    /// Appends the fixed structure of the message's family.
    #[must_use]
    pub fn with(mut self, family_struct: &[u8]) -> Message {
        self.bytes.extend_from_slice(family_struct);
        self.pad();
        self
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("attributes are written by this crate and are small");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// In network byte order, which nfnetlink uses for all numbers.
    pub fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// With the final zero that the kernel expects.
    pub fn put_str(&mut self, kind: u16, text: &str) {
        let mut value = Vec::with_capacity(text.len() + 1);
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.put(kind, &value);
    }

    /// An attribute that contains attributes.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Message)) {
        self.nest_with(kind, &[], inside);
    }

    /// An attribute with a fixed structure followed by attributes.
    pub fn nest_with(&mut self, kind: u16, family_struct: &[u8], inside: impl FnOnce(&mut Message)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(family_struct);
        self.pad();
        inside(self);
        let len = u16::try_from(self.bytes.len() - start)
            .expect("attributes are written by this crate and are small");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(len, 0);
    }

    /// Returns the resulting flags.
    fn add_flags(&mut self, more: u16) -> u16 {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | more;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        flags
    }

    /// The complete message, with its sequence number.
    fn seal(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("messages are written by this crate and are small");
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// The attributes of an answer: type and value, nested ones as bytes.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A netlink socket, and its sequence number.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn open(protocol: Protocol) -> Result<Socket> {
        let protocol = match protocol {
            // NETLINK_ROUTE is protocol 0, the default.
            Protocol::Route => None,
            Protocol::Netfilter => Some(wire::NETFILTER),
        };
        let open = || -> io::Result<OwnedFd> {
            let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            rustix::net::bind(&fd, &wire::SocketAddrNetlink::new(0, 0))?;
            // A transaction of many rules must fit into one datagram, whatever the machine's default buffer size.
            if sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER_LEN).is_err() {
                sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_LEN)?;
            }
            sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_LIMIT))?;
            set_extended_acknowledgement(&fd)?;
            Ok(fd)
        };
        Ok(Socket { fd: open().context(|| "open netlink socket")?, sequence: 0 })
    }

    /// Sends one request, and returns the bodies of its answers, without the acknowledgement. A dump that changed while
    /// it was read is repeated, so that it is consistent.
    pub fn request(&mut self, what: &str, message: Message) -> Result<Vec<Vec<u8>>> {
        let mut message = message;
        let is_dump = message.add_flags(NLM_F_ACK) & NLM_F_DUMP == NLM_F_DUMP;
        for _ in 0..DUMPS_MAX {
            self.sequence += 1;
            let sequence = self.sequence;
            self.send(what, &message.clone().seal(sequence))?;
            if let Some(answers) = self.receive(what, sequence..=sequence, is_dump)? {
                return Ok(answers);
            }
        }
        Err(Error::unavailable(format!(
            "{what}: it changed each of the {DUMPS_MAX} times that it was read; try again"
        )))
    }

    /// Sends several messages as one datagram (an nfnetlink batch), and waits until all are applied, or none. `first`
    /// and `last` frame the batch.
    ///
    /// Only the last of `inner` is acknowledged: acknowledgements take space in the socket's buffer, enough for 250.
    /// Errors are always reported: those of a message with its sequence number, those of the whole batch with that of
    /// `first`.
    pub(crate) fn transaction(
        &mut self,
        what: &str,
        first: Message,
        mut inner: Vec<Message>,
        last: Message,
    ) -> Result<()> {
        let Some(acknowledged) = inner.last_mut() else { return Ok(()) };
        acknowledged.add_flags(NLM_F_ACK);
        let head = self.sequence + 1;
        let mut datagram = Vec::new();
        for message in [first].into_iter().chain(inner).chain([last]) {
            self.sequence += 1;
            datagram.extend_from_slice(&message.seal(self.sequence));
        }
        self.send(what, &datagram)?;
        self.receive(what, head..=self.sequence, false).map(drop)
    }

    fn send(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let sent = send(&self.fd, bytes, SendFlags::empty()).map_err(io::Error::from).context(|| what)?;
        assert_eq!(sent, bytes.len(), "netlink takes whole datagrams");
        Ok(())
    }

    /// None for a dump that changed meanwhile.
    fn receive(
        &self,
        what: &str,
        mine: std::ops::RangeInclusive<u32>,
        is_dump: bool,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let mut answers = Vec::new();
        let mut is_whole = true;
        let mut buffer = vec![0; ANSWER_LEN_MAX];
        loop {
            // With a receive timeout, an interrupted call is not restarted (signal(7)).
            let received = retry_on_intr(|| recv(&self.fd, &mut buffer[..], RecvFlags::empty()));
            let (len, _) =
                received.map_err(io::Error::from).context(|| format!("{what}: read the kernel's answer"))?;
            let mut rest = &buffer[..len];
            while let Some((header, body, next)) = split(rest) {
                rest = next;
                // Left over from an earlier request that failed half way.
                if !mine.contains(&header.sequence) {
                    continue;
                }
                is_whole &= !is_dump || header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    NLMSG_ERROR => match error(what, body, behind_request(header.flags, body)) {
                        Some(error) => return Err(error),
                        None if is_dump => {}
                        None => return Ok(Some(answers)),
                    },
                    // A dump that fails half way reports its error at the end.
                    NLMSG_DONE => match error(what, body, body.get(4..)) {
                        Some(error) => return Err(error),
                        None => return Ok(is_whole.then_some(answers)),
                    },
                    _ => {
                        answers.push(body.to_vec());
                        if header.flags & NLM_F_MULTI == 0 && is_dump {
                            return Ok(Some(answers));
                        }
                    }
                }
            }
        }
    }
}

/// A protocol of the netlink family.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Route,
    Netfilter,
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message of a datagram, its body, and what follows it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = usize::try_from(number(0)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let header = Header { kind, flags, sequence: number(8)? };
    let body = bytes.get(16..len)?;
    Some((header, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error that a body begins with, with the kernel's message if `attributes` have one; None if its number is 0.
fn error(what: &str, body: &[u8], attributes: Option<&[u8]>) -> Option<Error> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number == 0 {
        return None;
    }
    let cause = io::Error::from_raw_os_error(-number);
    let mut message = what.to_owned();
    if let Some(words) = attributes.and_then(|attributes| attribute(attributes, NLMSGERR_ATTR_MSG)) {
        message = format!("{what}: the kernel says {:?}", text(words));
    }
    Some(Error::new(cause.kind().into(), message).with_source(cause))
}

/// The attributes of an `NLMSG_ERROR`, which follow the failed request, or its header.
fn behind_request(flags: u16, body: &[u8]) -> Option<&[u8]> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let header_len = 16;
    let request_len = if flags & NLM_F_CAPPED != 0 {
        header_len
    } else {
        body.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(header_len, u32::from_ne_bytes)
    };
    let request_len = usize::try_from(request_len).ok()?.checked_next_multiple_of(4)?;
    body.get(request_len.checked_add(4)?..)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[expect(unsafe_code, reason = "rustix has no setter for netlink options")]
fn set_extended_acknowledgement(fd: &OwnedFd) -> io::Result<()> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        let len = libc::socklen_t::try_from(size_of_val(&on)).expect("four");
        // SAFETY: the pointer and length describe `on`, which lives across the call.
        let result = unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), len)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The error number of an error that [`Socket::request`] returned.
pub(crate) fn errno_of(error: &Error) -> Option<i32> {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.and_then(io::Error::raw_os_error)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::net::socketpair;
    use types::ErrorKind;

    use super::*;

    const RTM_NEWLINK: u16 = 16;
    const RTM_GETLINK: u16 = 18;

    /// A socket whose peer answers dumps: `interrupted` of them are marked as changed. They end with `end`.
    fn kernel(interrupted: usize, end: Vec<u8>) -> (Socket, std::thread::JoinHandle<usize>) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let thread = std::thread::spawn(move || {
            let mut asked = 0;
            let mut buffer = [0; 256];
            while let Ok((len @ 1.., _)) = recv(&theirs, &mut buffer[..], RecvFlags::empty()) {
                let (header, _, _) = split(&buffer[..len]).unwrap();
                let cut = asked < interrupted;
                let answer = |kind: u16, flags: u16, body: &[u8]| {
                    let mut message = Message::new(kind, NLM_F_MULTI | flags).with(body);
                    message.bytes[6..8].copy_from_slice(&(NLM_F_MULTI | flags).to_ne_bytes());
                    message.seal(header.sequence)
                };
                let mut datagram = answer(RTM_NEWLINK, 0, b"one.");
                if cut {
                    datagram.extend(answer(RTM_NEWLINK, NLM_F_DUMP_INTR, b"skip"));
                } else {
                    datagram.extend(answer(RTM_NEWLINK, 0, b"two."));
                }
                send(&theirs, &datagram, SendFlags::empty()).unwrap();
                send(&theirs, &answer(NLMSG_DONE, NLM_F_ACK_TLVS, &end), SendFlags::empty()).unwrap();
                asked += 1;
            }
            asked
        });
        (Socket { fd: ours, sequence: 0 }, thread)
    }

    #[test]
    fn a_list_that_changed_while_it_was_read_is_read_again() {
        let (mut socket, kernel) = kernel(2, vec![0; 4]);
        let answers = socket.request("list", Message::new(RTM_GETLINK, NLM_F_DUMP)).unwrap();
        assert_eq!(answers, [b"one.", b"two."]);
        drop(socket);
        assert_eq!(kernel.join().unwrap(), 3);
    }

    #[test]
    fn a_list_that_fails_on_its_way_is_no_list() {
        let mut end = Message { bytes: (-Errno::NOBUFS.raw_os_error()).to_ne_bytes().to_vec() };
        end.put_str(NLMSGERR_ATTR_MSG, "no room");
        let (mut socket, kernel) = kernel(0, end.bytes);
        let error =
            socket.request("list links", Message::new(RTM_GETLINK, NLM_F_DUMP)).unwrap_err().to_string();
        assert!(error.contains("list links") && error.contains("no room"), "{error}");
        drop(socket);
        assert_eq!(kernel.join().unwrap(), 1);
    }

    /// As the kernel does for an unknown subsystem, or if it cannot commit the batch.
    #[test]
    fn an_error_of_a_whole_batch_is_read_from_its_first_message() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut socket = Socket { fd: ours, sequence: 6 };
        let answer = |number: Errno, sequence| {
            let number = (-number.raw_os_error()).to_ne_bytes();
            let message = Message::new(NLMSG_ERROR, 0).with(&number).seal(sequence);
            send(&theirs, &message, SendFlags::empty()).unwrap();
        };
        let mut batch = || {
            let message = |kind| Message::new(kind, 0);
            socket.transaction("make rules", message(16), vec![message(20), message(20)], message(17))
        };
        answer(Errno::OPNOTSUPP, 7);
        let error = batch().unwrap_err().to_string();
        assert!(error.contains("make rules"), "{error}");
        // The second is of a message within the batch; that of an earlier batch is ignored.
        answer(Errno::NOENT, 9);
        answer(Errno::NOENT, 12);
        assert_eq!(batch().unwrap_err().kind(), ErrorKind::NotFound);
        let flags = |sent: &[u8]| {
            let mut rest = sent;
            let next = || split(rest).map(|(header, _, next)| (rest = next, header.flags).1);
            std::iter::from_fn(next).collect::<Vec<u16>>()
        };
        let mut buffer = [0; 256];
        let (len, _) = recv(&theirs, &mut buffer[..], RecvFlags::empty()).unwrap();
        let asked: Vec<bool> = flags(&buffer[..len]).iter().map(|flags| flags & NLM_F_ACK != 0).collect();
        assert_eq!(asked, [false, false, true, false], "one answer for all");
    }

    #[test]
    fn a_list_that_always_changes_is_given_up() {
        let (mut socket, kernel) = kernel(usize::MAX, vec![0; 4]);
        let error = socket.request("list links", Message::new(RTM_GETLINK, NLM_F_DUMP)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("list links"), "{error}");
        drop(socket);
        assert_eq!(kernel.join().unwrap(), DUMPS_MAX);
    }
}
