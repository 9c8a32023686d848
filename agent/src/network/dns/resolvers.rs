//! Who the host itself asks: resolv.conf, read again when it has changed. Where it names systemd-resolved's stub,
//! what stands behind the stub is asked. An agent's own address is never among them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use berth_agent_core::network::zone;
use tokio::time::Instant;

use super::PORT;

/// How often it is looked whether the file has changed, while questions come.
const LOOK: Duration = Duration::from_secs(1);
/// As the C library: more are not asked.
const MOST: usize = 3;
const STUB: &str = "127.0.0.53";

/// Who is asked, at the moment.
pub struct Resolvers {
    files: Files,
    now: Mutex<Now>,
}

enum Files {
    /// The host's, and what stands behind its stub.
    Of(PathBuf, PathBuf),
    Fixed,
}

#[derive(Default)]
struct Now {
    servers: Vec<SocketAddr>,
    stamp: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Resolvers {
    /// The host's.
    pub fn of_host() -> Resolvers {
        Resolvers::of("/etc/resolv.conf".into(), "/run/systemd/resolve/resolv.conf".into())
    }

    /// From these files: resolv.conf, and the one to read if that names the stub.
    pub fn of(file: PathBuf, behind_stub: PathBuf) -> Resolvers {
        Resolvers { files: Files::Of(file, behind_stub), now: Mutex::default() }
    }

    /// Always these.
    pub fn fixed(servers: Vec<SocketAddr>) -> Resolvers {
        Resolvers { files: Files::Fixed, now: Mutex::new(Now { servers, ..Now::default() }) }
    }

    /// In the order they are to be asked.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Files::Of(file, behind_stub) = &self.files
            && now.looked.is_none_or(|at| at.elapsed() >= LOOK)
        {
            now.looked = Some(Instant::now());
            let stamp =
                [file, behind_stub].into_iter().filter_map(|path| path.metadata().ok()?.modified().ok());
            let stamp = stamp.max();
            if now.stamp != stamp || stamp.is_none() {
                now.stamp = stamp;
                now.servers = read(file, behind_stub);
            }
        }
        now.servers.clone()
    }
}

fn read(file: &Path, behind_stub: &Path) -> Vec<SocketAddr> {
    // Small files of the host's own; milliseconds at worst.
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let mut servers = parse(&text(file));
    if servers.iter().any(|server| server.to_string() == STUB) {
        let behind = parse(&text(behind_stub));
        if !behind.is_empty() {
            servers = behind;
        }
    }
    servers.retain(|server| *server != IpAddr::from(zone::SERVER));
    servers.truncate(MOST);
    servers.into_iter().map(|server| SocketAddr::new(server, PORT)).collect()
}

fn parse(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_resolvers_are_asked_and_never_the_agent_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (file, behind) = (dir.path().join("resolv.conf"), dir.path().join("behind"));
        let servers = || -> Vec<String> {
            let resolvers = Resolvers::of(file.clone(), behind.clone());
            resolvers.servers().iter().map(ToString::to_string).collect()
        };
        assert!(servers().is_empty());
        let text =
            "# x\nnameserver 169.254.53.53\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver fd00::1\n";
        std::fs::write(&file, text).unwrap();
        assert_eq!(servers(), ["192.0.2.1:53", "[fd00::1]:53"]);
        std::fs::write(&file, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        assert_eq!(servers(), ["127.0.0.53:53"]);
        std::fs::write(&behind, "nameserver 192.0.2.9\nnameserver 169.254.53.53\n").unwrap();
        assert_eq!(servers(), ["192.0.2.9:53"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let resolvers = Resolvers::of(file.clone(), dir.path().join("none"));
        assert_eq!(resolvers.servers().len(), 1);
        std::fs::write(&file, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        let wait = async {
            while resolvers.servers().len() != 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    }
}
