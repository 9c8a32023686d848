//! Connections that are translated: which there are, and forgetting those whose other end is gone.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;

use super::route::{ip, octets};
use super::{Attributes, Message, Mode, Received, Socket};

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// TCP 6, UDP 17, SCTP 132.
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A connection as the kernel tracks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// As it was begun.
    pub original: Tuple,
    /// As its answers come: from whom it was translated to.
    pub reply: Tuple,
    pub translated: bool,
    zone: u16,
}

/// Requests to conntrack.
#[derive(Debug)]
pub(crate) struct Conntrack(Socket);

impl Conntrack {
    /// An error means that the kernel has no ctnetlink.
    pub fn open() -> std::io::Result<Conntrack> {
        let mut conntrack = Conntrack(Socket::open(SockProtocol::NetlinkNetFilter)?);
        // The socket is there even where the subsystem is not: asking for what cannot exist tells.
        let nobody = Tuple {
            source: IpAddr::from([0; 4]),
            destination: IpAddr::from([0; 4]),
            protocol: libc::IPPROTO_UDP as u8,
            source_port: 0,
            destination_port: 0,
        };
        match conntrack.0.request(of(GET, &nobody, 0), Mode::Plain) {
            Ok(()) | Err(Errno::ENOENT) => Ok(conntrack),
            Err(error) => Err(error.into()),
        }
    }

    /// Every connection with ports. May be many: not on an async thread.
    pub fn each(&mut self, mut take: impl FnMut(Connection)) -> Result<(), Errno> {
        self.0.dump(Message::new(GET, &[libc::AF_UNSPEC as u8, 0, 0, 0]), |received| {
            if received.kind == NEW
                && let Some(connection) = connection(received)
            {
                take(connection);
            }
        })
    }

    /// Forgets it; fine if it is gone.
    pub fn forget(&mut self, connection: &Connection) -> Result<(), Errno> {
        match self.0.request(of(DELETE, &connection.original, connection.zone), Mode::Plain) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn of(kind: u16, tuple: &Tuple, zone: u16) -> Message {
    let v4 = tuple.source.is_ipv4();
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = Message::new(kind, &[family as u8, 0, 0, 0]);
    let whole = message.begin(TUPLE_ORIGINAL);
    let addresses = message.begin(TUPLE_IP);
    let (source, destination) = if v4 { (1, 2) } else { (3, 4) };
    message.put(source, &octets(tuple.source)).put(destination, &octets(tuple.destination));
    message.end(addresses);
    let protocol = message.begin(TUPLE_PROTOCOL);
    message.put(1, &[tuple.protocol]);
    message.put(2, &tuple.source_port.to_be_bytes()).put(3, &tuple.destination_port.to_be_bytes());
    message.end(protocol).end(whole);
    if zone != 0 {
        message.put(ZONE, &zone.to_be_bytes());
    }
    message
}

fn connection(received: Received<'_>) -> Option<Connection> {
    let attributes = received.attributes(4);
    let status = attributes.get(STATUS).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some(Connection {
        original: tuple(attributes.nested(TUPLE_ORIGINAL)?)?,
        reply: tuple(attributes.nested(TUPLE_REPLY)?)?,
        translated: status & DESTINATION_TRANSLATED != 0,
        zone: attributes.get(ZONE).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes),
    })
}

fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let addresses = attributes.nested(TUPLE_IP)?;
    let protocol = attributes.nested(TUPLE_PROTOCOL)?;
    let port = |kind| Some(u16::from_be_bytes(protocol.get(kind)?.try_into().ok()?));
    Some(Tuple {
        source: addresses.get(1).or_else(|| addresses.get(3)).and_then(ip)?,
        destination: addresses.get(2).or_else(|| addresses.get(4)).and_then(ip)?,
        protocol: *protocol.get(1)?.first()?,
        source_port: port(2)?,
        destination_port: port(3)?,
    })
}
