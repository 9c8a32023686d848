//! Answers its pods' questions: names of the cluster out of the host's view, at once; all others are asked of
//! the host's own resolvers, with a bounded cache and a bounded number under way.
//!
//! ```text
//! UDP ─┐                          ┌─ zone (core): a name of the cluster ───────────▶ answer
//!      ├─▶ read ─▶ look it up ────┤
//! TCP ─┘                          └─ forward: cache ─▶ the host's resolvers ───────▶ answer
//! ```
//! It must never ask itself, never let one question hold up another, and never need the controller.

mod cache;
mod forward;
mod resolvers;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use berth_agent_core::network::wire::{Bad, LARGEST, Name, Query, Record, Reply, code, kind};
use berth_agent_core::network::zone::{self, Found};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Known;
use forward::Forward;
pub use resolvers::Resolvers;

/// The port of DNS.
pub const PORT: u16 = 53;
/// The longest message over UDP that can be a question worth an answer.
const QUESTION: usize = 4096;
/// TCP connections at once; one more waits.
const CONNECTIONS: usize = 64;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// An alias of an alias of... is followed so far.
const ALIASES: usize = 8;
/// Between attempts to listen.
const AGAIN: Duration = Duration::from_secs(2);

/// The server. A cheap handle.
#[derive(Clone)]
pub struct Server {
    known: Known,
    forward: Arc<Forward>,
}

impl Server {
    /// `resolvers`: who is asked for what is not of the cluster.
    pub fn new(known: Known, resolvers: Resolvers) -> Server {
        Server { known, forward: Arc::new(Forward::new(resolvers)) }
    }

    /// Answers at this address until `shutdown`, from the moment it can be listened on.
    pub async fn run(self, address: SocketAddr, shutdown: CancellationToken) {
        let mut told = String::new();
        let bound = loop {
            match bind(address) {
                Ok(bound) => break bound,
                Err(error) => {
                    let cause = error.to_string();
                    if cause != told {
                        tracing::warn!(%address, cause, "pods' names cannot be answered yet");
                        told = cause;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = shutdown.cancelled() => return,
            }
        };
        tracing::info!(%address, "answering pods' names");
        let (udp, tcp) = bound;
        tokio::select! {
            () = self.datagrams(Arc::new(udp)) => {}
            () = self.connections(tcp) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn datagrams(&self, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; QUESTION];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP answer to something sent before; the socket is well.
                Err(error) => {
                    tracing::debug!(%error, "receiving a question");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let query = match Query::read(&buffer[..length]) {
                Ok(query) => query,
                Err(Bad::Silence) => continue,
                Err(Bad::Answer(answer)) => {
                    let _ = socket.try_send_to(&answer, from);
                    continue;
                }
            };
            let limit = query.udp_limit();
            match self.at_once(&query) {
                // What the socket does not take now is asked again, as with any datagram.
                Outcome::Reply(reply) => {
                    let _ = socket.try_send_to(&query.reply(&reply, limit), from);
                }
                later => {
                    let Some(permit) = self.forward.admit() else {
                        let busy = query.reply(&Reply::code(code::SERVER_FAILURE), limit);
                        let _ = socket.try_send_to(&busy, from);
                        continue;
                    };
                    let (server, socket) = (self.clone(), socket.clone());
                    tokio::spawn(async move {
                        let answer = server.finish(&query, later, limit, false).await;
                        let _ = socket.send_to(&answer, from).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn connections(&self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        // The asker's end, or silence: either way it is over.
                        let _ = server.connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, say: not in a tight circle.
                    tracing::debug!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut question = Vec::new();
        loop {
            tokio::time::timeout(IDLE, async {
                let length = stream.read_u16().await?;
                question.resize(usize::from(length), 0);
                stream.read_exact(&mut question).await
            })
            .await??;
            let answer = match Query::read(&question) {
                Ok(query) => match self.at_once(&query) {
                    Outcome::Reply(reply) => query.reply(&reply, LARGEST),
                    later => match self.forward.admit() {
                        Some(_permit) => self.finish(&query, later, LARGEST, true).await,
                        None => query.reply(&Reply::code(code::SERVER_FAILURE), LARGEST),
                    },
                },
                Err(Bad::Silence) => return Ok(()),
                Err(Bad::Answer(answer)) => answer,
            };
            // The length and the message in one segment.
            let mut framed = Vec::with_capacity(2 + answer.len());
            framed.extend_from_slice(&(answer.len() as u16).to_be_bytes());
            framed.extend_from_slice(&answer);
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// What can be said without asking anyone.
    fn at_once(&self, query: &Query) -> Outcome {
        match self.known.look(|view| zone::lookup(view, query)) {
            Found::Here(reply) => Outcome::Reply(reply),
            Found::Elsewhere => Outcome::Forward,
            Found::Alias(record, target) => self.follow(query, record, target),
        }
    }

    /// An alias that leads to the cluster's own names is answered like them.
    fn follow(&self, query: &Query, record: Record, mut target: Name) -> Outcome {
        let mut answers = vec![record];
        if query.kind == kind::CNAME {
            return Outcome::Reply(Reply { authoritative: true, answers, ..Reply::default() });
        }
        for _ in 0..ALIASES {
            let next = query.about(target.clone());
            match self.known.look(|view| zone::lookup(view, &next)) {
                Found::Here(reply) => {
                    answers.extend(reply.answers);
                    return Outcome::Reply(Reply { answers, ..reply });
                }
                Found::Elsewhere => return Outcome::Behind(answers, target),
                Found::Alias(record, further) => {
                    answers.push(record);
                    target = further;
                }
            }
        }
        Outcome::Reply(Reply::code(code::SERVER_FAILURE))
    }

    async fn finish(&self, query: &Query, outcome: Outcome, limit: usize, tcp: bool) -> Vec<u8> {
        let failed = || Reply::code(code::SERVER_FAILURE);
        match outcome {
            Outcome::Reply(reply) => query.reply(&reply, limit),
            Outcome::Forward => match self.forward.ask(query, tcp).await {
                Some((answer, age)) => query.pass_on(&answer, age, limit),
                None => query.reply(&failed(), limit),
            },
            Outcome::Behind(mut answers, target) => {
                let asked = query.about(target);
                // Over TCP where need be: its size is no matter between here and there.
                let mut found = self.forward.ask(&asked, tcp).await;
                if found.as_ref().is_some_and(|(answer, _)| answer.truncated()) {
                    found = self.forward.ask(&asked, true).await;
                }
                let reply = match found {
                    Some((answer, age)) => {
                        let old = |record: Record| Record { ttl: record.ttl.saturating_sub(age), ..record };
                        answers.extend(answer.records().into_iter().map(old));
                        Reply { code: answer.code(), answers, ..Reply::default() }
                    }
                    None => failed(),
                };
                query.reply(&reply, limit)
            }
        }
    }
}

enum Outcome {
    Reply(Reply),
    Forward,
    /// These aliases, and behind them a name of elsewhere.
    Behind(Vec<Record>, Name),
}

/// Both, or neither. The address need not be there yet, and may go and come back.
fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    use nix::sys::socket::{setsockopt, sockopt};
    let tcp = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tcp.set_reuseaddr(true)?;
    setsockopt(&tcp, sockopt::IpFreebind, &true)?;
    tcp.bind(address)?;
    let family = match address.ip() {
        IpAddr::V4(_) => nix::sys::socket::AddressFamily::Inet,
        IpAddr::V6(_) => nix::sys::socket::AddressFamily::Inet6,
    };
    use nix::sys::socket::{SockFlag, SockType, SockaddrStorage};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let udp = nix::sys::socket::socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&udp, sockopt::IpFreebind, &true)?;
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&udp), &SockaddrStorage::from(address))?;
    Ok((UdpSocket::from_std(udp.into())?, tcp.listen(128)?))
}
