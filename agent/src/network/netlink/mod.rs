//! Netlink, as far as a pod network needs it: one codec and one socket for routing (links, addresses, routes,
//! neighbours), conntrack and nftables' announcements. The messages are a handful and their layout is fixed by
//! the kernel, so this is smaller than the crates that know them all, and the agent's memory counts.
//!
//! It must never block the async threads: requests are answered by the kernel within the call; dumps of
//! tables that may be large are for `spawn_blocking`.

pub mod conntrack;
pub mod route;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCLUSIVE: u16 = 0x200;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;

const TYPE_NOOP: u16 = 1;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// The kernel answers at once; this only keeps a bug from holding a thread for ever.
const PATIENCE: TimeVal = TimeVal::new(10, 0);
const BUFFER: usize = 64 << 10;

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Make it; there must be none.
    Make,
    /// Make it, in place of one that is there.
    Put,
    /// Change or remove what is there.
    Plain,
    /// Ask for one.
    Get,
}

impl Mode {
    fn flags(self) -> u16 {
        REQUEST
            | match self {
                Mode::Make => ACK | CREATE | EXCLUSIVE,
                Mode::Put => ACK | CREATE | REPLACE,
                Mode::Plain => ACK,
                Mode::Get => 0,
            }
    }
}

/// A message being written: attributes, nested where `begin` and `end` say so.
#[derive(Debug)]
pub(crate) struct Message {
    kind: u16,
    bytes: Vec<u8>,
}

impl Message {
    /// With the fixed part that its kind begins with.
    pub fn new(kind: u16, fixed: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(fixed);
        Message { kind, bytes }
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        self.bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub fn number(&mut self, kind: u16, value: u32) -> &mut Message {
        self.put(kind, &value.to_ne_bytes())
    }

    pub fn text(&mut self, kind: u16, value: &str) -> &mut Message {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub fn begin(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.put(kind | NESTED, &[]);
        at
    }

    pub fn end(&mut self, at: usize) -> &mut Message {
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub kind: u16,
    pub body: &'a [u8],
}

impl<'a> Received<'a> {
    /// The attributes after a fixed part of this length.
    pub fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes(self.body.get(fixed..).unwrap_or_default())
    }
}

/// Attributes in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    pub fn number(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }

    pub fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }
}

/// The messages of a buffer.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u32, Received<'_>)> {
    std::iter::from_fn(move || {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (length, sequence) = (word(0)? as usize, word(8)?);
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, Received { kind, body }))
    })
}

/// A netlink socket for requests.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub fn open(protocol: SockProtocol) -> io::Result<Socket> {
        let fd = open(protocol, 0, SockFlag::empty())?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &PATIENCE)?;
        Ok(Socket { fd, sequence: 0, buffer: Vec::new() })
    }

    /// Does a thing; an error is the kernel's.
    pub fn request(&mut self, message: Message, mode: Mode) -> Result<(), Errno> {
        self.talk(message, mode.flags(), &mut |_| {})
    }

    /// Asks for one thing.
    pub fn get<T>(
        &mut self,
        message: Message,
        take: impl Fn(Received<'_>) -> Option<T>,
    ) -> Result<Option<T>, Errno> {
        let mut found = None;
        self.talk(message, Mode::Get.flags(), &mut |received| found = take(received))?;
        Ok(found)
    }

    /// Asks for all.
    pub fn dump(&mut self, message: Message, mut each: impl FnMut(Received<'_>)) -> Result<(), Errno> {
        // One that was changed meanwhile is incomplete; the change is announced, and so it is asked again.
        self.talk(message, REQUEST | DUMP, &mut each)
    }

    fn talk(
        &mut self,
        mut message: Message,
        flags: u16,
        each: &mut dyn FnMut(Received<'_>),
    ) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = message.bytes.len() as u32;
        message.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        message.bytes[4..6].copy_from_slice(&message.kind.to_ne_bytes());
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        message.bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(self.fd.as_raw_fd(), &message.bytes, MsgFlags::empty())?;
        // Only for as long as it is needed: most of the time nothing is asked.
        self.buffer.resize(BUFFER, 0);
        let outcome = self.answers(flags, each);
        self.buffer = Vec::new();
        outcome
    }

    fn answers(&mut self, flags: u16, each: &mut dyn FnMut(Received<'_>)) -> Result<(), Errno> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for (sequence, received) in messages(&self.buffer[..length]) {
                if sequence != self.sequence {
                    continue;
                }
                match received.kind {
                    TYPE_NOOP => {}
                    TYPE_DONE => return Ok(()),
                    TYPE_ERROR => {
                        let code = received.body.get(..4).and_then(|code| code.try_into().ok());
                        return match code.map(i32::from_ne_bytes) {
                            Some(0) => Ok(()),
                            Some(code) => Err(Errno::from_raw(-code)),
                            None => Err(Errno::EBADMSG),
                        };
                    }
                    _ => {
                        each(received);
                        if flags & (ACK | DUMP) == 0 {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// What the kernel announces.
#[derive(Debug)]
pub(crate) struct Announcements {
    fd: tokio::io::unix::AsyncFd<OwnedFd>,
}

impl Announcements {
    /// Of these groups (as a mask of the first 32).
    pub fn subscribe(protocol: SockProtocol, groups: u32) -> io::Result<Announcements> {
        let fd = open(protocol, groups, SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: the descriptor is owned by the AsyncFd, and is what it was for as long as that lives.
        #[allow(unsafe_code)]
        let fd = unsafe { tokio::io::unix::AsyncFd::register(fd)? };
        Ok(Announcements { fd })
    }

    /// The next ones. None: there were more than could be kept, so anything may have changed.
    pub async fn next(&self, buffer: &mut Vec<u8>) -> io::Result<Option<()>> {
        buffer.resize(BUFFER, 0);
        loop {
            let mut ready = self.fd.readable().await?;
            let read = |fd: &tokio::io::unix::AsyncFd<OwnedFd>| {
                recv(fd.as_raw_fd(), buffer, MsgFlags::empty()).map_err(io::Error::from)
            };
            match ready.try_io(read) {
                Err(_) => {}
                Ok(Ok(length)) => {
                    buffer.truncate(length);
                    return Ok(Some(()));
                }
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                    buffer.clear();
                    return Ok(None);
                }
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// What is there already, without waiting; false: nothing, or more than could be kept.
    pub fn at_hand(&self, buffer: &mut Vec<u8>) -> bool {
        buffer.resize(BUFFER, 0);
        let read = recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT);
        buffer.truncate(read.unwrap_or(0));
        read.is_ok()
    }
}

fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut message = Message::new(16, &[7; 4]);
        message.text(1, "eth0");
        let nest = message.begin(2);
        message.number(3, 1500).end(nest);
        let received = Received { kind: 16, body: &message.bytes[HEADER..] };
        let all = received.attributes(4);
        assert_eq!(all.get(1), Some(&b"eth0\0"[..]));
        assert_eq!(all.nested(2).unwrap().number(3), Some(1500));
        assert_eq!(all.get(9), None);
    }

    proptest! {
        #[test]
        fn nothing_received_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for (_, received) in messages(&bytes) {
                for (_, value) in received.attributes(4) {
                    Attributes(value).for_each(drop);
                }
            }
            Attributes(&bytes).for_each(drop);
        }
    }
}
