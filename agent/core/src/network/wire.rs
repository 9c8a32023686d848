//! DNS messages as they are on the wire (RFC 1035, 2782, 6891): reading questions, writing answers, and what
//! a forwarder must know of answers that are not its own. Messages that are passed on stay the bytes they are.
//!
//! Everything here reads what strangers wrote: it must never panic, never loop, never grow beyond a message.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A message's header.
pub const HEADER: usize = 12;
/// Over UDP to someone who does not say how much it takes.
pub const PLAIN_UDP: usize = 512;
/// Over UDP at most: what passes every network unfragmented.
pub const LARGEST_UDP: usize = 1232;
/// Over TCP.
pub const LARGEST: usize = 65535;

/// Record types.
pub mod kind {
    #![allow(missing_docs)]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const ANY: u16 = 255;
}

/// Response codes.
pub mod code {
    #![allow(missing_docs)]
    pub const NO_ERROR: u16 = 0;
    pub const FORMAT: u16 = 1;
    pub const SERVER_FAILURE: u16 = 2;
    pub const NO_NAME: u16 = 3;
    pub const NOT_IMPLEMENTED: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BAD_VERSION: u16 = 16;
}

const CLASS_IN: u16 = 1;
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;
/// A name that points this often is no name.
const JUMPS: usize = 64;

/// A name: length-prefixed labels up to the root, as on the wire without pointers; at most 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// Of a name with dots; none if a label or all of it is too long. Without its last dot it is the same.
    pub fn of(text: &str) -> Option<Name> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
            wire.push(length);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        (wire.len() <= 255).then_some(Name(wire))
    }

    /// Its labels, the most specific first.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first()?;
            let (label, after) = after.split_at_checked(usize::from(*length))?;
            rest = after;
            (!label.is_empty()).then_some(label)
        })
    }

    /// In small letters, as names are compared.
    pub fn lower(&self) -> Name {
        // Lengths are below 64 and so no letters.
        Name(self.0.to_ascii_lowercase())
    }

    fn read(message: &[u8], mut at: usize) -> Option<(Name, usize)> {
        let mut wire = Vec::new();
        let mut end = None;
        for _ in 0..JUMPS {
            loop {
                let length = *message.get(at)?;
                match length & 0xc0 {
                    0 => {
                        let label = message.get(at..=at + usize::from(length))?;
                        wire.extend_from_slice(label);
                        at += label.len();
                        if wire.len() > 255 {
                            return None;
                        }
                        if length == 0 {
                            return Some((Name(wire), end.unwrap_or(at)));
                        }
                    }
                    0xc0 => {
                        let to = usize::from(u16::from_be_bytes([length & 0x3f, *message.get(at + 1)?]));
                        end.get_or_insert(at + 2);
                        at = to;
                        break;
                    }
                    _ => return None,
                }
            }
        }
        None
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", String::from_utf8_lossy(label))?;
        }
        if self.0.len() == 1 { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    pub name: Name,
    pub kind: u16,
    flags: u16,
    pub edns: Option<Edns>,
}

/// What the asker says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// How much it takes over UDP.
    pub size: u16,
    pub dnssec: bool,
}

/// Why a message gets no proper answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not worth an answer: no header, or an answer itself.
    Silence,
    /// This answer.
    Answer(Vec<u8>),
}

impl Query {
    /// A question of our own.
    pub fn new(id: u16, name: Name, kind: u16) -> Query {
        Query { id, name, kind, flags: RECURSION_DESIRED, edns: None }
    }

    /// The same question about another name.
    pub fn about(&self, name: Name) -> Query {
        Query { name, ..self.clone() }
    }

    /// Reads a question.
    pub fn read(message: &[u8]) -> Result<Query, Bad> {
        let (Some(id), Some(flags)) = (word(message, 0), word(message, 2)) else { return Err(Bad::Silence) };
        let counts = [4, 6, 8, 10].map(|at| word(message, at));
        let [Some(questions), Some(answers), Some(authority), Some(additional)] = counts else {
            return Err(Bad::Silence);
        };
        if flags & RESPONSE != 0 {
            return Err(Bad::Silence);
        }
        let refuse = |code: u16| Bad::Answer(header(id, flags, code, [0; 4]));
        if flags & OPCODE != 0 {
            return Err(refuse(code::NOT_IMPLEMENTED));
        }
        if questions != 1 || answers != 0 || authority != 0 {
            return Err(refuse(code::FORMAT));
        }
        let format = || refuse(code::FORMAT);
        let (name, at) = Name::read(message, HEADER).ok_or_else(format)?;
        let (kind, class) = word(message, at).zip(word(message, at + 2)).ok_or_else(format)?;
        let mut query = Query { id, name, kind, flags, edns: None };
        let mut at = at + 4;
        for _ in 0..additional {
            let record = Raw::read(message, at).ok_or_else(format)?;
            at = record.end;
            if record.kind == kind::OPT {
                let version = record.ttl.to_be_bytes()[1];
                query.edns = Some(Edns { size: record.class, dnssec: record.ttl & 0x8000 != 0 });
                if version != 0 {
                    return Err(Bad::Answer(query.reply(&Reply::code(code::BAD_VERSION), LARGEST_UDP)));
                }
            }
        }
        if class != CLASS_IN {
            return Err(Bad::Answer(query.reply(&Reply::code(code::REFUSED), LARGEST_UDP)));
        }
        Ok(query)
    }

    /// As a message, to be sent on with another id: small enough answers, and what the asker said of itself.
    pub fn write(&self, id: u16) -> Vec<u8> {
        let flags = RECURSION_DESIRED | (self.flags & CHECKING_DISABLED);
        let mut message = Vec::with_capacity(64);
        for number in [id, flags, 1, 0, 0, 1] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        self.question(&mut message);
        option(
            &mut message,
            Edns { size: LARGEST_UDP as u16, dnssec: self.edns.is_some_and(|e| e.dnssec) },
            0,
        );
        message
    }

    /// How large an answer over UDP may be.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| usize::from(edns.size).clamp(PLAIN_UDP, LARGEST_UDP))
    }

    fn question(&self, message: &mut Vec<u8>) {
        message.extend_from_slice(&self.name.0);
        message.extend_from_slice(&self.kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
    }

    /// The answer as a message of at most `limit` bytes. What does not fit is left out, and if that is more
    /// than extras, the answer says so.
    pub fn reply(&self, reply: &Reply, limit: usize) -> Vec<u8> {
        let mut message = header(self.id, self.flags, reply.code & 0xf, [1, 0, 0, 0]);
        if reply.authoritative {
            message[2] |= (AUTHORITATIVE >> 8) as u8;
        }
        self.question(&mut message);
        let limit = limit.saturating_sub(if self.edns.is_some() { 11 } else { 0 });
        let mut counts = [0u16; 3];
        let sections = [&reply.answers, &reply.authority, &reply.additional];
        'all: for (section, records) in sections.into_iter().enumerate() {
            for record in records {
                let before = message.len();
                record.write(&mut message, &self.name);
                if message.len() > limit || counts[section] == u16::MAX {
                    message.truncate(before);
                    if section < 2 {
                        message[2] |= (TRUNCATED >> 8) as u8;
                    }
                    break 'all;
                }
                counts[section] += 1;
            }
        }
        if let Some(edns) = self.edns {
            option(&mut message, Edns { size: LARGEST_UDP as u16, ..edns }, (reply.code >> 4) as u8);
            counts[2] += 1;
        }
        for (at, count) in [6, 8, 10].into_iter().zip(counts) {
            message[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        message
    }

    /// Another's answer, made ours: with this question's id and spelling, its times to live `age` seconds
    /// less, and if it is larger than `limit`, with only the word that it is.
    pub fn pass_on(&self, answer: &Answer, age: u32, limit: usize) -> Vec<u8> {
        if answer.bytes.len() > limit {
            let mut reply = self.reply(&Reply::code(answer.code()), limit);
            reply[2] |= (TRUNCATED >> 8) as u8;
            return reply;
        }
        let mut message = answer.bytes.clone();
        message[..2].copy_from_slice(&self.id.to_be_bytes());
        // The same name of the same length in the asker's own spelling.
        if let Some(place) = message.get_mut(HEADER..HEADER + self.name.0.len()) {
            place.copy_from_slice(&self.name.0);
        }
        for at in &answer.lives {
            let at = usize::from(*at);
            if let Some(ttl) = long(&message, at) {
                message[at..at + 4].copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
            }
        }
        // Who says nothing of itself is told nothing of us.
        if let (None, Some(option), Some(extras)) = (self.edns, answer.last_option, word(&message, 10)) {
            message.truncate(option);
            message[10..12].copy_from_slice(&extras.saturating_sub(1).to_be_bytes());
        }
        message
    }
}

/// What to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub authoritative: bool,
    pub answers: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
}

impl Reply {
    /// Nothing but this code.
    pub fn code(code: u16) -> Reply {
        Reply { code, ..Reply::default() }
    }
}

/// A record, of class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub name: Name,
    /// Seconds.
    pub ttl: u32,
    pub data: Data,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Data {
    Address(IpAddr),
    Alias(Name),
    Pointer(Name),
    Server(Name),
    Service { priority: u16, weight: u16, port: u16, target: Name },
    Authority { server: Name, mailbox: Name, serial: u32, minimum: u32 },
    Text(Vec<u8>),
}

impl Record {
    fn write(&self, message: &mut Vec<u8>, question: &Name) {
        if self.name == *question {
            message.extend_from_slice(&(0xc000 | HEADER as u16).to_be_bytes());
        } else {
            message.extend_from_slice(&self.name.0);
        }
        let mut data = Vec::new();
        let kind = match &self.data {
            Data::Address(IpAddr::V4(address)) => {
                data.extend_from_slice(&address.octets());
                kind::A
            }
            Data::Address(IpAddr::V6(address)) => {
                data.extend_from_slice(&address.octets());
                kind::AAAA
            }
            Data::Alias(name) => {
                data.extend_from_slice(&name.0);
                kind::CNAME
            }
            Data::Pointer(name) => {
                data.extend_from_slice(&name.0);
                kind::PTR
            }
            Data::Server(name) => {
                data.extend_from_slice(&name.0);
                kind::NS
            }
            Data::Service { priority, weight, port, target } => {
                for number in [priority, weight, port] {
                    data.extend_from_slice(&number.to_be_bytes());
                }
                data.extend_from_slice(&target.0);
                kind::SRV
            }
            Data::Authority { server, mailbox, serial, minimum } => {
                data.extend_from_slice(&server.0);
                data.extend_from_slice(&mailbox.0);
                // Refresh, retry, expire are for secondary servers, of which there are none.
                for number in [*serial, 7200, 1800, 86400, *minimum] {
                    data.extend_from_slice(&number.to_be_bytes());
                }
                kind::SOA
            }
            Data::Text(text) => {
                let text = &text[..text.len().min(255)];
                data.push(text.len() as u8);
                data.extend_from_slice(text);
                kind::TXT
            }
        };
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message.extend_from_slice(&self.ttl.to_be_bytes());
        message.extend_from_slice(&(data.len() as u16).to_be_bytes());
        message.extend_from_slice(&data);
    }
}

/// Another server's answer to a question of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    bytes: Vec<u8>,
    /// Where its times to live are.
    lives: Vec<u16>,
    /// Where its OPT record begins, if that is its last.
    last_option: Option<usize>,
    /// For how long it may be kept: the shortest of them (for "there is none": what its SOA says); 0: not.
    pub keep: u32,
}

impl Answer {
    /// Takes it if it is one to this question, asked with this id.
    pub fn read(bytes: Vec<u8>, query: &Query, id: u16) -> Option<Answer> {
        if word(&bytes, 0)? != id || word(&bytes, 2)? & (RESPONSE | OPCODE) != RESPONSE {
            return None;
        }
        let code = word(&bytes, 2)? & 0xf;
        if word(&bytes, 4)? != 1 {
            // Some say only that they cannot.
            let bare = code != code::NO_ERROR && word(&bytes, 4)? == 0;
            let bytes = query.reply(&Reply::code(code), LARGEST);
            return bare.then_some(Answer { bytes, lives: vec![], last_option: None, keep: 0 });
        }
        let (name, mut at) = Name::read(&bytes, HEADER)?;
        // A pointer would not leave room for the asker's own spelling.
        let whole = at == HEADER + name.0.len();
        if !whole || name.lower() != query.name.lower() || word(&bytes, at)? != query.kind {
            return None;
        }
        at += 4;
        let counts = [word(&bytes, 6)?, word(&bytes, 8)?, word(&bytes, 10)?];
        let mut lives = Vec::new();
        let (mut shortest, mut negative, mut last_option) = (u32::MAX, None, None);
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let record = Raw::read(&bytes, at)?;
                last_option = (record.kind == kind::OPT).then_some(at);
                at = record.end;
                if record.kind == kind::OPT {
                    continue;
                }
                lives.push(u16::try_from(record.life).ok()?);
                shortest = shortest.min(record.ttl);
                if section == 1 && record.kind == kind::SOA {
                    negative = long(&bytes, record.end.checked_sub(4)?);
                }
            }
        }
        let truncated = word(&bytes, 2)? & TRUNCATED != 0;
        let keep = match (code, counts[0]) {
            _ if truncated => 0,
            (code::NO_ERROR, 1..) => shortest,
            (code::NO_ERROR | code::NO_NAME, _) => negative.map_or(0, |minimum| minimum.min(shortest)),
            _ => 0,
        };
        Some(Answer { bytes, lives, last_option, keep })
    }

    /// Its response code.
    pub fn code(&self) -> u16 {
        word(&self.bytes, 2).unwrap_or(0) & 0xf
    }

    /// It says that there is nothing of the kind.
    pub fn empty(&self) -> bool {
        word(&self.bytes, 6).unwrap_or(0) == 0
    }

    /// There is more than it says: ask over TCP.
    pub fn truncated(&self) -> bool {
        word(&self.bytes, 2).unwrap_or(0) & TRUNCATED != 0
    }

    /// Bytes it takes to keep.
    pub fn size(&self) -> usize {
        self.bytes.len() + 2 * self.lives.len()
    }

    /// The addresses and aliases it gives, for what was asked on someone's behalf.
    pub fn records(&self) -> Vec<Record> {
        let read = || -> Option<Vec<Record>> {
            let (_, mut at) = Name::read(&self.bytes, HEADER)?;
            at += 4;
            let mut records = Vec::new();
            for _ in 0..word(&self.bytes, 6)? {
                let record = Raw::read(&self.bytes, at)?;
                let (name, _) = Name::read(&self.bytes, at)?;
                let data = self.bytes.get(record.data..record.end)?;
                at = record.end;
                let data = match record.kind {
                    kind::A => Data::Address(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
                    kind::AAAA => Data::Address(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
                    kind::CNAME => Data::Alias(Name::read(&self.bytes, record.data)?.0),
                    _ => continue,
                };
                records.push(Record { name, ttl: record.ttl, data });
            }
            Some(records)
        };
        read().unwrap_or_default()
    }
}

/// A record as it lies in a message.
struct Raw {
    kind: u16,
    class: u16,
    ttl: u32,
    life: usize,
    data: usize,
    end: usize,
}

impl Raw {
    fn read(message: &[u8], at: usize) -> Option<Raw> {
        let at = skip_name(message, at)?;
        let (kind, class) = (word(message, at)?, word(message, at + 2)?);
        let (ttl, length) = (long(message, at + 4)?, word(message, at + 8)?);
        let data = at + 10;
        let end = data + usize::from(length);
        (end <= message.len()).then_some(Raw { kind, class, ttl, life: at + 4, data, end })
    }
}

/// The end of a name, without following where it points.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length & 0xc0 {
            0 if length == 0 => return Some(at + 1),
            0 => at += 1 + usize::from(length),
            0xc0 => return Some(at + 2),
            _ => return None,
        }
    }
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn long(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// An answer's header, to a question with these flags.
fn header(id: u16, flags: u16, code: u16, counts: [u16; 4]) -> Vec<u8> {
    let kept = flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED);
    let mut message = Vec::with_capacity(128);
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&(kept | RESPONSE | RECURSION_AVAILABLE | code).to_be_bytes());
    for count in counts {
        message.extend_from_slice(&count.to_be_bytes());
    }
    message
}

/// The OPT record.
fn option(message: &mut Vec<u8>, edns: Edns, extended: u8) {
    message.push(0);
    message.extend_from_slice(&kind::OPT.to_be_bytes());
    message.extend_from_slice(&edns.size.to_be_bytes());
    message.extend_from_slice(&[extended, 0]);
    message.extend_from_slice(&(if edns.dnssec { 0x8000u16 } else { 0 }).to_be_bytes());
    message.extend_from_slice(&0u16.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, MessageType, ResponseCode};
    use hickory_proto::rr::RecordType;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::of(text).unwrap()
    }

    fn asked(text: &str, kind: u16, edns: Option<Edns>) -> Query {
        Query { edns, ..Query::new(7, name(text), kind) }
    }

    fn address(text: &str, last: u8) -> Record {
        Record { name: name(text), ttl: 5, data: Data::Address([10, 42, 0, last].into()) }
    }

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let edns = Edns { size: LARGEST_UDP as u16, dnssec: true };
        let query = asked("Web-0.nginx.default", kind::AAAA, Some(edns));
        let read = Query::read(&query.write(9)).unwrap();
        assert_eq!(read, Query { id: 9, ..query });
        assert_eq!(read.name.to_string(), "Web-0.nginx.default.");
        assert_eq!(read.name.lower(), name("web-0.NGINX.default").lower());
    }

    #[test]
    fn another_implementation_reads_what_is_written() {
        let target = name("web-0.nginx.default.svc.cluster.local");
        let asked = asked(
            "_http._tcp.nginx.default.svc.cluster.local",
            kind::SRV,
            Some(Edns { size: 4096, dnssec: false }),
        );
        let record = |data| Record { name: asked.name.clone(), ttl: 5, data };
        let reply = Reply {
            code: code::NO_ERROR,
            authoritative: true,
            answers: vec![
                record(Data::Service { priority: 0, weight: 50, port: 80, target: target.clone() }),
                record(Data::Alias(target.clone())),
                record(Data::Pointer(target.clone())),
                record(Data::Server(target.clone())),
                record(Data::Text(b"1.1.0".to_vec())),
                record(Data::Address("fd00::1".parse().unwrap())),
            ],
            authority: vec![record(Data::Authority {
                server: target.clone(),
                mailbox: name("hostmaster"),
                serial: 3,
                minimum: 0,
            })],
            additional: vec![Record { name: target, ttl: 5, data: Data::Address([10, 42, 0, 2].into()) }],
        };
        let message = Message::from_vec(&asked.reply(&reply, LARGEST_UDP)).unwrap();
        let kinds: Vec<RecordType> = message.answers.iter().map(|r| r.record_type()).collect();
        use RecordType::*;
        assert_eq!(kinds, [SRV, CNAME, PTR, NS, TXT, AAAA]);
        assert_eq!(message.answers[0].data.to_string(), "0 50 80 web-0.nginx.default.svc.cluster.local.");
        assert_eq!(message.authorities[0].record_type(), SOA);
        assert_eq!(message.additionals[0].data.to_string(), "10.42.0.2");
        assert_eq!(message.metadata.message_type, MessageType::Response);
        assert!(message.metadata.authoritative && message.metadata.recursion_available);
        assert_eq!(message.edns.unwrap().max_payload(), LARGEST_UDP as u16);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let query = asked("web", kind::A, None);
        let reply = Reply { answers: (0..200).map(|n| address("web", n)).collect(), ..Reply::default() };
        let message = Message::from_vec(&query.reply(&reply, query.udp_limit())).unwrap();
        assert!(message.metadata.truncation && message.answers.len() == (512 - 12 - 9) / 16);
        let whole = Message::from_vec(&query.reply(&reply, LARGEST)).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 200);
        // Extras may be missing without a word.
        let reply = Reply { answers: vec![], additional: reply.answers, ..Reply::default() };
        assert!(!Message::from_vec(&query.reply(&reply, 512)).unwrap().metadata.truncation);
        let edns = |size| asked("web", kind::A, Some(Edns { size, dnssec: false })).udp_limit();
        assert_eq!([edns(0), edns(1000), edns(65535)], [512, 1000, LARGEST_UDP]);
    }

    #[test]
    fn what_is_no_proper_question_gets_the_proper_answer() {
        let bad = |message: &[u8]| match Query::read(message).unwrap_err() {
            Bad::Silence => None,
            Bad::Answer(answer) => Some(Message::from_vec(&answer).unwrap().metadata.response_code),
        };
        let good = asked("web", kind::A, None).write(1);
        assert_eq!(bad(&good[..11]), None);
        let with = |at: usize, byte: u8| {
            let mut message = good.clone();
            message[at] = byte;
            message
        };
        assert_eq!(bad(&with(2, 0x80)), None, "an answer");
        assert_eq!(bad(&with(2, 0x28)), Some(ResponseCode::NotImp));
        assert_eq!(bad(&with(5, 2)), Some(ResponseCode::FormErr));
        assert_eq!(bad(&with(5, 0)), Some(ResponseCode::FormErr));
        assert_eq!(bad(&with(12, 0xc0)), Some(ResponseCode::FormErr), "a name that points nowhere");
        assert_eq!(bad(&with(20, 3)), Some(ResponseCode::Refused), "class CHAOS");
        let version = good.len() - 5;
        // 16 has two names.
        assert_eq!(bad(&with(version, 1)).map(u16::from), Some(code::BAD_VERSION));
    }

    fn upstream(
        query: &Query,
        id: u16,
        records: &[(u32, Data)],
        soa: Option<(u32, u32)>,
        code: u16,
    ) -> Vec<u8> {
        let record =
            |(ttl, data): &(u32, Data)| Record { name: query.name.clone(), ttl: *ttl, data: data.clone() };
        let soa = soa.map(|(ttl, minimum)| Record {
            name: name("example"),
            ttl,
            data: Data::Authority { server: name("a"), mailbox: name("b"), serial: 1, minimum },
        });
        let reply = Reply {
            code,
            answers: records.iter().map(record).collect(),
            authority: soa.into_iter().collect(),
            ..Reply::default()
        };
        Query { id, edns: Some(Edns { size: 1232, dnssec: false }), ..query.clone() }.reply(&reply, LARGEST)
    }

    #[test]
    fn anothers_answer_is_passed_on_older_and_in_the_askers_spelling() {
        let ours = Query::new(9, name("www.example"), kind::A);
        let data = |n| Data::Address([192, 0, 2, n].into());
        let answer =
            Answer::read(upstream(&ours, 77, &[(60, data(1)), (30, data(2))], None, 0), &ours, 77).unwrap();
        assert_eq!((answer.keep, answer.code()), (30, 0));
        let asked = Query::new(5, name("WWW.example"), kind::A);
        let passed = Message::from_vec(&asked.pass_on(&answer, 40, LARGEST_UDP)).unwrap();
        assert_eq!(passed.metadata.id, 5);
        assert_eq!(passed.queries[0].name().to_string(), "WWW.example.");
        let ttls: Vec<u32> = passed.answers.iter().map(|r| r.ttl).collect();
        assert_eq!(ttls, [20, 0]);
        assert!(passed.edns.is_none(), "who says nothing of itself is told nothing");
        assert_eq!(answer.records().len(), 2);
        let small = Message::from_vec(&asked.pass_on(&answer, 0, 40)).unwrap();
        assert!(small.metadata.truncation && small.answers.is_empty());
    }

    #[test]
    fn an_answer_to_something_else_is_not_taken() {
        let ours = Query::new(9, name("www.example"), kind::A);
        let other = Query::new(9, name("www.example.org"), kind::A);
        let bytes = upstream(&ours, 77, &[], None, 0);
        assert!(Answer::read(bytes.clone(), &ours, 78).is_none());
        assert!(Answer::read(bytes.clone(), &other, 77).is_none());
        assert!(Answer::read(bytes.clone(), &Query::new(9, name("www.example"), kind::AAAA), 77).is_none());
        assert!(Answer::read(ours.write(77), &ours, 77).is_none(), "no answer");
        assert!(Answer::read(bytes, &ours, 77).is_some());
    }

    #[test]
    fn that_there_is_none_is_kept_as_its_zone_says_and_trouble_is_not() {
        let ours = Query::new(9, name("www.example"), kind::A);
        let keep = |soa, code| Answer::read(upstream(&ours, 1, &[], soa, code), &ours, 1).unwrap().keep;
        assert_eq!(keep(Some((300, 20)), code::NO_NAME), 20);
        assert_eq!(keep(Some((10, 20)), code::NO_ERROR), 10);
        assert_eq!(keep(None, code::NO_NAME), 0);
        assert_eq!(keep(Some((10, 20)), code::SERVER_FAILURE), 0);
    }

    proptest! {
        #[test]
        fn nothing_read_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), patch in prop::collection::vec((0usize..200, any::<u8>()), 0..6)) {
            let ours = Query::new(9, name("www.example"), kind::A);
            let _ = Query::read(&bytes);
            let mut message = upstream(&ours, 1, &[(3, Data::Alias(name("a.b"))), (3, Data::Text(b"x".to_vec()))], Some((1, 1)), 0);
            for (at, byte) in patch {
                if let Some(place) = message.get_mut(at) {
                    *place = byte;
                }
            }
            let _ = Query::read(&message);
            if let Some(answer) = Answer::read(message, &ours, 1) {
                let _ = answer.records();
                let _ = ours.pass_on(&answer, 2, 512);
            }
        }

        #[test]
        fn an_answer_never_exceeds_its_limit(count in 0usize..120, limit in 64usize..1300) {
            let query = asked("web", kind::A, Some(Edns { size: 1232, dnssec: false }));
            let reply = Reply { answers: (0..count).map(|n| address("web", n as u8)).collect(), ..Reply::default() };
            let bytes = query.reply(&reply, limit);
            prop_assert!(bytes.len() <= limit);
            let message = Message::from_vec(&bytes).unwrap();
            prop_assert_eq!(message.metadata.truncation, message.answers.len() < count);
        }
    }
}
