//! Three hosts: `a` and `b` on one segment, `c` behind a router, which is also the rest of the world.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth_agent::network::dns::{self, Resolvers};
use berth_agent::network::{HostPorts, Known, Routes, Services};
use berth_agent_core::network::zone;
use berth_proto::{
    Endpoint, EndpointPort, Endpoints, NetworkUpdate, Peer, Service, ServicePort, ServiceRef, Welcome,
};
use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::host::run;

/// The rest of the world, and whom the hosts ask for its names.
pub const OUTSIDE: &str = "203.0.113.1";
/// What should be at once may take this long on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Runs a test in namespaces of its own, on plain threads.
pub fn in_a_lab(test: impl FnOnce(&mut Lab) + Send) {
    crate::host::on_a_host(|| async {
        tokio::task::block_in_place(|| {
            // Where namespaces have their names; nobody else sees it.
            run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
            std::fs::create_dir("/run/netns").unwrap();
            let mut lab = Lab::start();
            test(&mut lab);
        });
    });
}

pub struct Lab {
    pub hosts: Vec<LabHost>,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

pub struct LabHost {
    pub name: &'static str,
    pub ip: IpAddr,
    pub range: u8,
    pub known: Known,
    pub host_ports: HostPorts,
    pub mtu: Arc<watch::Sender<Option<u32>>>,
    shutdown: CancellationToken,
    agent: Option<JoinHandle<()>>,
}

/// A namespace that has a name: a host, a pod, or `world`.
pub fn namespace(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Does something in a namespace, on a thread of its own.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(namespace(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    std::thread::scope(|scope| {
        let inside = move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A command line in a namespace; its output if it succeeded.
pub fn at(name: &str, line: &str) -> String {
    let mut words = vec!["netns", "exec", name];
    words.extend(line.split(' '));
    run("ip", &words)
}

/// As a container: with this resolv.conf.
pub fn with_resolv(name: &str, resolv: &str, script: &str) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), resolv).unwrap();
    let script = format!("mount --bind {} /etc/resolv.conf && {script}", file.path().display());
    let net = format!("--net={}", namespace(name).display());
    let mut command = Command::new("nsenter");
    command.args([&net, "unshare", "--mount", "--propagation", "private", "sh", "-c", &script]);
    command.output().unwrap()
}

/// Waits until it is so.
pub fn soon(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

impl Lab {
    fn start() -> Lab {
        make("world");
        for segment in 0..2 {
            at("world", &format!("ip link add seg{segment} type bridge"));
            at("world", &format!("ip addr add 10.99.{segment}.1/24 dev seg{segment}"));
            at("world", &format!("ip link set seg{segment} up"));
        }
        at("world", &format!("ip addr add {OUTSIDE}/32 dev lo"));
        let mut lab = Lab { hosts: vec![], stop: Arc::default(), servers: vec![] };
        for (n, (name, segment)) in [("a", 0), ("b", 0), ("c", 1)].into_iter().enumerate() {
            let n = n as u8;
            make(name);
            run(
                "ip",
                &[
                    "link",
                    "add",
                    &format!("to-{name}"),
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    name,
                ],
            );
            run("ip", &["link", "set", &format!("to-{name}"), "netns", "world"]);
            at("world", &format!("ip link set to-{name} master seg{segment} up"));
            let ip: IpAddr = [10, 99, segment, 11 + n].into();
            at(name, &format!("ip addr add {ip}/24 dev eth0"));
            at(name, "ip link set eth0 up");
            at(name, &format!("ip route add default via 10.99.{segment}.1"));
            lab.hosts.push(LabHost::start(name, ip, n));
        }
        let peers = lab.hosts.iter().map(LabHost::peer).collect();
        lab.say(NetworkUpdate { reset: true, complete: true, peers, ..NetworkUpdate::default() });
        for host in &lab.hosts {
            soon("routes and rules", || {
                host.look("ip -4 route show proto 190").lines().count() == 4
                    && at(host.name, "nft list tables").contains("inet berth")
            });
        }
        lab
    }

    pub fn host(&self, name: &str) -> &LabHost {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    /// To every host.
    pub fn say(&self, update: NetworkUpdate) {
        for host in &self.hosts {
            host.known.apply(update.clone());
        }
    }

    /// A pod on a host, as CNI's ptp would connect it, with a server that tells its name and who asks.
    pub fn pod(&mut self, host: &str, last: u8) -> Pod {
        let (range, mtu) = (self.host(host).range, *self.host(host).mtu.borrow());
        let name = format!("{host}-{last}");
        let (ip, gateway) = (Ipv4Addr::new(10, 42, range, last), Ipv4Addr::new(10, 42, range, 1));
        make(&name);
        let outer = format!("veth-{name}");
        let mtu = format!("{}", mtu.expect("known once there are routes"));
        let peer = ["peer", "name", "eth0", "mtu", &mtu, "netns", &name];
        run("ip", &[&["-n", host, "link", "add", &outer, "mtu", &mtu, "type", "veth"][..], &peer].concat());
        at(host, &format!("ip addr add {gateway}/32 dev {outer}"));
        at(host, &format!("ip link set {outer} up"));
        at(host, &format!("ip route add {ip}/32 dev {outer}"));
        at(&name, &format!("ip addr add {ip}/32 dev eth0"));
        at(&name, "ip link set eth0 up");
        at(&name, &format!("ip route add {gateway}/32 dev eth0"));
        at(&name, &format!("ip route add default via {gateway}"));
        self.serve(&name, 8080);
        Pod { name, ip, host: host.to_owned() }
    }

    /// A server in a namespace: whoever connects is told its name and its own address, and then hears itself.
    pub fn serve(&mut self, name: &str, port: u16) {
        let (tcp, udp) = within(name, || {
            let any = SocketAddr::from(([0, 0, 0, 0], port));
            (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
        });
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let (stop, name) = (self.stop.clone(), name.to_owned());
        self.servers.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((stream, from)) = tcp.accept() {
                    let greeting = format!("{name} {}\n", from.ip());
                    std::thread::spawn(move || echo(stream, &greeting));
                }
                if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{name} {}\n", from.ip()).as_bytes(), from);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
    }
}

fn make(name: &str) {
    run("ip", &["netns", "add", name]);
    at(name, "ip link set lo up");
    within(name, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
}

fn echo(mut stream: TcpStream, greeting: &str) {
    stream.set_nonblocking(false).unwrap();
    if stream.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    let mut buffer = [0; 65536];
    while let Ok(1..) = stream.read(&mut buffer).and_then(|n| stream.write_all(&buffer[..n]).map(|()| n)) {}
}

impl LabHost {
    fn start(name: &'static str, ip: IpAddr, range: u8) -> LabHost {
        let host = LabHost {
            name,
            ip,
            range,
            known: Known::empty(),
            host_ports: HostPorts::default(),
            mtu: Arc::default(),
            shutdown: CancellationToken::new(),
            agent: None,
        };
        host.known.welcome(&Welcome {
            pod_cidr: host.range(),
            cluster_domain: "cluster.local".into(),
            service_cidr: "10.43.0.0/16".into(),
            ..Welcome::default()
        });
        host.with_agent()
    }

    fn range(&self) -> String {
        format!("10.42.{}.0/24", self.range)
    }

    fn with_agent(mut self) -> LabHost {
        let (known, host_ports, shutdown) =
            (self.known.clone(), self.host_ports.clone(), self.shutdown.clone());
        let routes = Routes {
            known: known.clone(),
            node: self.name.into(),
            host_ips: vec![self.ip],
            mtu: self.mtu.clone(),
        };
        let nft = Services::find_nft();
        let services = Services { known: known.clone(), node: self.name.into(), host_ports, nft };
        let resolvers = Resolvers::fixed(vec![SocketAddr::new(OUTSIDE.parse().unwrap(), 53)]);
        let names = dns::Server::new(known, resolvers);
        let namespace = File::open(namespace(self.name)).unwrap();
        self.agent = Some(std::thread::spawn(move || {
            // Before the runtime: its threads are then born here.
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::join!(
                    routes.run(shutdown.clone()),
                    services.run(shutdown.clone()),
                    names.run((zone::SERVER, dns::PORT).into(), shutdown.clone()),
                );
            });
        }));
        self
    }

    pub fn peer(&self) -> Peer {
        Peer {
            node_name: self.name.into(),
            pod_cidrs: vec![self.range()],
            internal_ips: vec![self.ip.to_string()],
        }
    }

    /// What a command on it says.
    pub fn look(&self, line: &str) -> String {
        at(self.name, line)
    }
}

impl Drop for LabHost {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(agent) = self.agent.take() {
            let _ = agent.join();
        }
    }
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub ip: Ipv4Addr,
    pub host: String,
}

impl Pod {
    /// As something behind a service.
    pub fn endpoint(&self, ready: bool) -> Endpoint {
        let port =
            |protocol: &str| EndpointPort { name: "main".into(), protocol: protocol.into(), port: 8080 };
        Endpoint {
            id: self.name.clone(),
            addresses: vec![self.ip.to_string()],
            hostname: self.name.clone(),
            node_name: self.host.clone(),
            ready,
            serving: ready,
            terminating: false,
            ports: vec![port("TCP"), port("UDP")],
        }
    }

    /// It ends: its address is nobody's.
    pub fn end(&self) {
        run("ip", &["-n", &self.host, "link", "del", &format!("veth-{}", self.name)]);
    }
}

/// A service `web` at 10.43.0.10, port 80.
pub fn web() -> Service {
    let port = |protocol: &str| ServicePort {
        name: "main".into(),
        protocol: protocol.into(),
        port: 80,
        node_port: 30080,
    };
    Service {
        service: Some(ServiceRef { namespace: "default".into(), name: "web".into() }),
        cluster_ips: vec!["10.43.0.10".into()],
        ports: vec![port("TCP"), port("UDP")],
        ..Service::default()
    }
}

/// That, with these behind it and those not any more.
pub fn behind(service: &Service, pods: Vec<Endpoint>, removed: &[&Pod]) -> NetworkUpdate {
    NetworkUpdate {
        services: vec![service.clone()],
        endpoints: vec![Endpoints {
            service: service.service.clone(),
            endpoints: pods,
            removed: removed.iter().map(|pod| pod.name.clone()).collect(),
        }],
        ..NetworkUpdate::default()
    }
}

/// Connects from a namespace.
pub fn connect(from: &str, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    within(from, move || {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    })
}

/// Who answers, and whom it takes the asker for: `(name, address)`.
pub fn ask(from: &str, to: &str) -> std::io::Result<(String, String)> {
    let mut line = String::new();
    BufReader::new(connect(from, to)?).read_line(&mut line)?;
    words(&line)
}

/// The same by a datagram from one socket, so that it is one conversation.
pub fn datagram(socket: &UdpSocket, to: &str) -> std::io::Result<(String, String)> {
    let mut buffer = [0; 2048];
    socket.send_to(b"?", to)?;
    let (length, _) = socket.recv_from(&mut buffer)?;
    words(&String::from_utf8_lossy(&buffer[..length]))
}

pub fn socket(from: &str) -> UdpSocket {
    within(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    })
}

fn words(line: &str) -> std::io::Result<(String, String)> {
    let (name, address) = line.trim().split_once(' ').ok_or_else(|| std::io::Error::other("said nothing"))?;
    Ok((name.into(), address.into()))
}
