//! Asking an agent for a name, as its pods do, and how long a change takes to be answered on every host.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::cluster::Cluster;
use crate::host::Host;
use crate::proxy::Proxy;
use crate::wait;

/// Where every agent answers, on its own host.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 53, 53), 53);
/// Types of records.
pub const ADDRESS: u16 = 1;
pub const TEXT: u16 = 16;
/// An answer from the same host takes less.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between questions while a change is waited for: what a measurement is precise to.
const PAUSE: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(60);

/// Asks one host's agent.
pub struct Asker {
    socket: UdpSocket,
    /// Whose network it is in.
    process: i32,
}

/// Makes a socket in the network of a process. It belongs to the namespace of the thread that makes it: only that
/// thread goes inside.
fn in_network_of<T: Send + 'static>(
    process: i32,
    make: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let namespace = File::open(format!("/proc/{process}/ns/net"))?;
    let made = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        make()
    });
    made.join().map_err(|_| anyhow::anyhow!("the connecting thread panicked"))?
}

impl Asker {
    /// On this host, whichever thread asks then.
    pub fn on(host: &Host) -> Result<Asker> {
        Asker::in_network_of(host.holder()?)
    }

    /// From a pod.
    pub fn within(cluster: &Cluster, pod: &str) -> Result<Asker> {
        Asker::in_network_of(cluster.process_of(pod)?)
    }

    fn in_network_of(process: i32) -> Result<Asker> {
        let socket = in_network_of(process, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(SERVER)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })?;
        Ok(Asker { socket, process })
    }

    /// How many answers there are of a type, whether there would be more than a datagram holds, and how long the
    /// message is: over TCP or not, as a client that says nothing of its abilities.
    pub fn count(&self, name: &str, kind: u16, tcp: bool) -> Result<(u16, bool, usize)> {
        let question = question(name, kind);
        let answer = match tcp {
            true => over_tcp(self.process, question)?,
            false => {
                self.socket.send(&question)?;
                let mut buffer = vec![0; 4096];
                let length =
                    self.socket.recv(&mut buffer).with_context(|| format!("no answer for {name}"))?;
                buffer[..length].to_vec()
            }
        };
        let header = answer.get(..12).with_context(|| format!("not an answer: {answer:?}"))?;
        Ok((u16::from_be_bytes([header[6], header[7]]), header[2] & 2 != 0, answer.len()))
    }

    /// The address of a whole name; None: there is no such name.
    pub fn ask(&self, name: &str) -> Result<Option<Ipv4Addr>> {
        self.socket.send(&question(name, ADDRESS))?;
        let mut buffer = [0; 1500];
        let length = self.socket.recv(&mut buffer).with_context(|| format!("no answer for {name}"))?;
        first_address(&buffer[..length])
    }
}

fn over_tcp(process: i32, question: Vec<u8>) -> Result<Vec<u8>> {
    in_network_of(process, move || {
        let mut stream = TcpStream::connect(SERVER)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut framed = u16::try_from(question.len())?.to_be_bytes().to_vec();
        framed.extend(question);
        stream.write_all(&framed)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    })
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    // An id, one question, recursion desired.
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    // The root; the type; IN.
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message
}

/// The address of an answer that has only one record, its last bytes.
fn first_address(answer: &[u8]) -> Result<Option<Ipv4Addr>> {
    let (Some(header), Some(last)) = (answer.get(..12), answer.last_chunk::<4>()) else {
        bail!("not an answer: {answer:?}")
    };
    match (header[3] & 0xf, u16::from_be_bytes([header[6], header[7]])) {
        (0, 1) => Ok(Some(Ipv4Addr::from(*last))),
        (0 | 3, 0) => Ok(None),
        (code, answers) => bail!("code {code} with {answers} answers"),
    }
}

/// Makes this many pods, one after the other, and asks on every host at once: how long it took each host from the
/// API's being asked to the first answer with the pod's name. The pods never run: the name is there before.
pub fn delivered(cluster: &Cluster, pods: usize) -> Result<Vec<Duration>> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "named"},
        "spec": {"clusterIP": "None", "selector": {"app": "named"}, "ports": [{"port": 80}]},
    });
    cluster.kubectl.apply(&service.to_string())?;
    let proxy = Proxy::start(&cluster.kubectl)?;
    let askers = cluster.hosts.iter().map(Asker::on).collect::<Result<Vec<Asker>>>()?;
    let mut took = Vec::new();
    for n in 0..pods {
        let name = format!("named-{n}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "named"}},
            "spec": {
                "hostname": name, "subdomain": "named", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "nowhere.invalid/none:1", "imagePullPolicy": "Never"}],
            },
        });
        let whole = format!("{name}.named.default.svc.cluster.local");
        let begun = Instant::now();
        let each = std::thread::scope(|scope| {
            let asking: Vec<_> =
                askers.iter().map(|asker| scope.spawn(|| answered(asker, &whole, begun))).collect();
            proxy.post("/api/v1/namespaces/default/pods", &pod)?;
            asking
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("an asking thread panicked"))?)
                .collect::<Result<Vec<Duration>>>()
        })?;
        took.extend(each);
    }
    cluster.kubectl.run("delete pods -l app=named --force --grace-period=0 --wait=false")?;
    cluster.kubectl.run("delete service named")?;
    // Gone from every host as well.
    for asker in &askers {
        wait::until_true("no such name", LIMIT, || {
            Ok(asker.ask("named.default.svc.cluster.local")?.is_none())
        })?;
    }
    Ok(took)
}

fn answered(asker: &Asker, name: &str, begun: Instant) -> Result<Duration> {
    while asker.ask(name)?.is_none() {
        if begun.elapsed() > LIMIT {
            bail!("{name} is not answered");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(begun.elapsed())
}
