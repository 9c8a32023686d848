//! Keeps the agent's nftables table as `core::network::rules` says, each change one transaction of `nft`, and
//! forgets connections to pods that are gone.
//!
//! Whoever flushes the table (`nft flush ruleset`, as a reload of nftables.service does) has it made anew: the
//! kernel announces that. It must never touch another table.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use berth_agent_core::network::rules::{self, Protocol, Rules, TABLE};
use nix::sys::socket::SockProtocol;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::netlink::conntrack::{Connection, Conntrack};
use super::netlink::{Announcements, messages};
use super::{HostPorts, Known};

/// A transaction of thousands of rules takes a second.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between attempts while it cannot be done.
const SOONEST: Duration = Duration::from_millis(500);
const LATEST: Duration = Duration::from_secs(30);
/// Whoever flushes it may do more: what comes within this time is put right at once.
const FLOCK: Duration = Duration::from_millis(50);
/// The group in which the kernel announces changes of tables (NFNLGRP_NFTABLES).
const GROUP: u32 = 1 << 6;
/// The subsystem nftables, and its word that a transaction is complete.
const SUBSYSTEM: u16 = 10 << 8;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;

/// Keeps it.
pub struct Services {
    pub known: Known,
    /// This host's name.
    pub node: String,
    pub host_ports: HostPorts,
    /// The program.
    pub nft: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0} cannot be run ({1}): install nftables")]
    NoProgram(String, io::Error),
    #[error("nft: {0}")]
    Refused(String),
    #[error("nft did not end within {} s", DEADLINE.as_secs())]
    Slow,
}

impl Services {
    /// Where nft is: in the path, or where distributions have it.
    pub fn find_nft() -> PathBuf {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        places.map(|place| place.join("nft")).find(|nft| nft.is_file()).unwrap_or_else(|| "nft".into())
    }

    /// Keeps it until `shutdown`. It stays when the agent ends: the pods run on.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.keep() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn keep(&self) {
        let (mut peers, mut services) = (self.known.peers(), self.known.services());
        let mut ports = self.host_ports.changed();
        let mut announced = None;
        let mut buffer = Vec::new();
        let mut applied: Option<Rules> = None;
        let mut first = true;
        let mut told = String::new();
        let mut pause = SOONEST;
        let no_conntrack = Conntrack::open().err();
        if let Some(error) = &no_conntrack {
            // What is gone is refused by rule as soon as a packet comes for it.
            tracing::warn!(%error, "connections to pods that are gone cannot be forgotten: this kernel lacks ctnetlink");
        }
        loop {
            if announced.is_none() {
                announced = Announcements::subscribe(SockProtocol::NetlinkNetFilter, GROUP)
                    .inspect_err(|error| tracing::warn!(%error, "changes of the table are not seen"))
                    .ok();
            }
            for told in [&mut peers, &mut services, &mut ports] {
                told.borrow_and_update();
            }
            let host_ports = self.host_ports.all();
            let wanted = self.known.look(|view| rules::rules(view, &self.node, &host_ports));
            let outcome = match wanted.script(applied.as_ref()) {
                Some(script) => self.nft(script).await,
                None => Ok(()),
            };
            let failed = match outcome {
                Ok(()) => {
                    let lost = applied.as_ref().is_none_or(|before| wanted.lost(before));
                    if lost && no_conntrack.is_none() {
                        forget(wanted.clone()).await;
                    }
                    if std::mem::take(&mut first) || !told.is_empty() {
                        tracing::info!("service rules are in force");
                    }
                    applied = Some(wanted);
                    told.clear();
                    pause = SOONEST;
                    false
                }
                Err(trouble) => {
                    // Whatever is there by now: the next attempt makes it anew.
                    applied = None;
                    let trouble = trouble.to_string();
                    if trouble != told {
                        tracing::warn!(trouble, "Services do not work here as they should");
                        told = trouble;
                    }
                    pause = (pause * 2).min(LATEST);
                    true
                }
            };
            // What was announced of our own doing; of others' only if there is more than that.
            let mut own = Seen::default();
            if let Some(announced) = &announced {
                while announced.at_hand(&mut buffer) {
                    own.read(&buffer);
                }
            }
            if own.foreign > 1 {
                applied = None;
                continue;
            }
            let disturbed = async {
                let Some(announced) = &announced else { return std::future::pending().await };
                let mut seen = Seen::default();
                loop {
                    match announced.next(&mut buffer).await {
                        Ok(Some(())) => {
                            seen.read(&buffer);
                            if seen.foreign > 0 {
                                return Ok(());
                            }
                        }
                        Ok(None) => return Ok(()),
                        Err(error) => return Err::<(), io::Error>(error),
                    }
                }
            };
            tokio::select! {
                changed = any(&mut peers, &mut services, &mut ports) => if changed.is_err() { return },
                outcome = disturbed => {
                    if outcome.is_err() {
                        announced = None;
                    }
                    tracing::warn!("somebody has changed the table inet {TABLE}: it is made anew");
                    applied = None;
                    tokio::time::sleep(FLOCK).await;
                    if let Some(announced) = &announced {
                        while announced.at_hand(&mut buffer) {}
                    }
                }
                () = tokio::time::sleep(pause), if failed => {}
            }
        }
    }

    async fn nft(&self, script: String) -> Result<(), Trouble> {
        let missing = |error| Trouble::NoProgram(self.nft.display().to_string(), error);
        let mut child = tokio::process::Command::new(&self.nft)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(missing)?;
        let stdin = child.stdin.take();
        let work = async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // One that does not read its input says why.
                    let _ = stdin.write_all(script.as_bytes()).await;
                }
            };
            let ((), output) = tokio::join!(feed, child.wait_with_output());
            output
        };
        let output = tokio::time::timeout(DEADLINE, work).await.map_err(|_| Trouble::Slow)?;
        let output = output.map_err(|error| Trouble::Refused(error.to_string()))?;
        if output.status.success() {
            tracing::debug!(%script, "service rules changed");
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        // The first complaint; the others follow from it.
        Err(Trouble::Refused(words.lines().take(2).collect::<Vec<_>>().join(" ")))
    }
}

async fn any(
    peers: &mut watch::Receiver<u64>,
    services: &mut watch::Receiver<u64>,
    ports: &mut watch::Receiver<u64>,
) -> Result<(), watch::error::RecvError> {
    tokio::select! {
        changed = peers.changed() => changed,
        changed = services.changed() => changed,
        changed = ports.changed() => changed,
    }
}

/// Forgets connections to whoever is behind their front no more: the next packet finds another, or is refused.
async fn forget(rules: Rules) {
    let work = move || -> io::Result<usize> {
        let mut conntrack = Conntrack::open()?;
        let mut stale: Vec<Connection> = Vec::new();
        conntrack.each(|connection| {
            let (original, reply) = (&connection.original, &connection.reply);
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            let protocol = protocol.into_iter().find(|p| p.number() == original.protocol);
            if let Some(protocol) = protocol.filter(|_| connection.translated)
                && rules.stale(
                    protocol,
                    (original.destination, original.destination_port),
                    (reply.source, reply.source_port),
                )
            {
                stale.push(connection);
            }
        })?;
        for connection in &stale {
            conntrack.forget(connection)?;
        }
        Ok(stale.len())
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(0)) => {}
        Ok(Ok(connections)) => tracing::debug!(connections, "forgot connections to pods that are gone"),
        Ok(Err(error)) => tracing::warn!(%error, "connections to pods that are gone are not forgotten"),
        Err(panic) => tracing::error!(%panic, "a bug in the agent"),
    }
}

/// What has been announced: how many transactions touched our table.
#[derive(Default)]
struct Seen {
    touched: bool,
    foreign: usize,
}

impl Seen {
    fn read(&mut self, bytes: &[u8]) {
        for (_, message) in messages(bytes) {
            if message.kind == NEW_GENERATION {
                self.foreign += usize::from(std::mem::take(&mut self.touched));
            } else if message.kind & 0xff00 == SUBSYSTEM {
                // The table's name is the first attribute of all of them.
                let table = message.attributes(4).get(1).unwrap_or_default();
                self.touched |= table.strip_suffix(b"\0") == Some(TABLE.as_bytes());
            }
        }
    }
}
