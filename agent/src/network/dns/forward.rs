//! Asks the host's resolvers, in their order: the next one when one is silent or cannot. Every question has a
//! port and an id of its own that nobody can guess; what else arrives there is not taken.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_agent_core::network::wire::{Answer, Query, code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::cache::Cache;
use super::resolvers::Resolvers;

/// Questions under way at once; more are told that it cannot be done now.
const UNDER_WAY: usize = 256;
/// One resolver is given this long, and all together this long: less than the five seconds for which a C library waits.
const ONE: Duration = Duration::from_millis(1500);
const ALL: Duration = Duration::from_millis(4500);
const ANSWER: usize = 4096;

pub(super) struct Forward {
    resolvers: Resolvers,
    cache: Mutex<Cache>,
    room: Arc<Semaphore>,
}

impl Forward {
    pub fn new(resolvers: Resolvers) -> Forward {
        Forward { resolvers, cache: Mutex::default(), room: Arc::new(Semaphore::new(UNDER_WAY)) }
    }

    /// Room for one more question; none when there are too many.
    pub fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    /// The answer and its age in seconds. None: nobody answers.
    pub async fn ask(&self, query: &Query, tcp: bool) -> Option<(Arc<Answer>, u32)> {
        let key = (query.name.lower(), query.kind, query.edns.is_some_and(|edns| edns.dnssec));
        let cached = self.cache().get(&key, Instant::now());
        if cached.is_some() {
            return cached;
        }
        let answer = Arc::new(tokio::time::timeout(ALL, self.ask_all(query, tcp)).await.ok().flatten()?);
        let positive = answer.code() == code::NO_ERROR && !answer.empty();
        self.cache().put(key, answer.clone(), positive, Instant::now());
        Some((answer, 0))
    }

    /// Twice around: a datagram may be lost.
    async fn ask_all(&self, query: &Query, tcp: bool) -> Option<Answer> {
        let servers = self.resolvers.servers();
        let mut last = None;
        for server in servers.iter().chain(&servers) {
            let id = random();
            let asked = async {
                match tcp {
                    true => over_tcp(*server, query, id).await,
                    false => over_udp(*server, query, id).await,
                }
            };
            match tokio::time::timeout(ONE, asked).await {
                Ok(Ok(answer)) if matches!(answer.code(), code::NO_ERROR | code::NO_NAME) => {
                    return Some(answer);
                }
                // It cannot say; another may.
                Ok(Ok(answer)) => last = Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver"),
                Err(_) => tracing::debug!(%server, "a resolver does not answer"),
            }
        }
        last
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn over_udp(server: SocketAddr, query: &Query, id: u16) -> io::Result<Answer> {
    let own: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    // Only its answers arrive, and its ICMP errors.
    socket.connect(server).await?;
    socket.send(&query.write(id)).await?;
    let mut buffer = vec![0; ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = Answer::read(buffer[..length].to_vec(), query, id) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &Query, id: u16) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let question = query.write(id);
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(&question);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Answer::read(answer, query, id).ok_or_else(|| io::Error::other("an answer to something else"))
}

fn random() -> u16 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    u16::from_ne_bytes([bytes[0], bytes[1]])
}
