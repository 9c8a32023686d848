//! Names, as real resolvers ask for them.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use berth_agent_core::network::wire::{Data, Query, Record, Reply, kind};
use berth_proto::{Endpoint, Service, ServiceRef};

use crate::lab::{OUTSIDE, behind, in_a_lab, soon, web, with_resolv, within};

/// As the agent writes it for ClusterFirst.
const RESOLV: &str = "search default.svc.cluster.local svc.cluster.local cluster.local lan\n\
                      nameserver 169.254.53.53\noptions ndots:5\n";

/// The world's name server: `www.example` is one address, `big.example` a hundred, the rest is not there.
struct World {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    mute: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    fn start() -> World {
        let (udp, tcp) = within("world", || {
            (UdpSocket::bind((OUTSIDE, 53)).unwrap(), TcpListener::bind((OUTSIDE, 53)).unwrap())
        });
        udp.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let mut world =
            World { stop: Arc::default(), asked: Arc::default(), mute: Arc::default(), thread: None };
        let (stop, asked, mute) = (world.stop.clone(), world.asked.clone(), world.mute.clone());
        world.thread = Some(std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if !mute.load(Ordering::Relaxed) {
                        let query = Query::read(&buffer[..length]).unwrap();
                        let _ = udp.send_to(&query.reply(&answer(&query), query.udp_limit()), from);
                    }
                }
                if let Ok((mut stream, _)) = tcp.accept() {
                    asked.fetch_add(1, Ordering::Relaxed);
                    stream.set_nonblocking(false).unwrap();
                    let mut length = [0; 2];
                    stream.read_exact(&mut length).unwrap();
                    let length = usize::from(u16::from_be_bytes(length));
                    stream.read_exact(&mut buffer[..length]).unwrap();
                    let query = Query::read(&buffer[..length]).unwrap();
                    let reply = query.reply(&answer(&query), 65535);
                    let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
                    framed.extend(reply);
                    stream.write_all(&framed).unwrap();
                }
            }
        }));
        world
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(query: &Query) -> Reply {
    let record = |last: u8| Record {
        name: query.name.clone(),
        ttl: 60,
        data: Data::Address([192, 0, 2, last].into()),
    };
    let count = match (query.name.lower().to_string().as_str(), query.kind) {
        ("www.example.", kind::A) => 1,
        ("big.example.", kind::A) => 100,
        ("www.example." | "big.example.", _) => return Reply::default(),
        _ => return Reply::code(3),
    };
    Reply { answers: (1..=count).map(record).collect(), ..Reply::default() }
}

/// What the C library makes of a name: addresses, in no order.
fn resolve(from: &str, name: &str) -> Vec<String> {
    let script = format!(
        "python3 -c 'import socket; print(\" \".join(sorted({{a[4][0] for a in socket.getaddrinfo(\"{name}\", 80, socket.AF_INET, socket.SOCK_STREAM)}})))'"
    );
    let out = with_resolv(from, RESOLV, &script);
    String::from_utf8_lossy(&out.stdout).split_whitespace().map(str::to_owned).collect()
}

/// What busybox's nslookup says, all of it.
fn nslookup(from: &str, arguments: &str) -> (bool, String) {
    let out = with_resolv(from, RESOLV, &format!("busybox nslookup {arguments} 2>&1"));
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
}

fn headless() -> Service {
    let name = Some(ServiceRef { namespace: "default".into(), name: "nginx".into() });
    Service { service: name, cluster_ips: vec![], ..web() }
}

#[test]
fn real_resolvers_find_pods_and_services_by_their_short_names() {
    in_a_lab(|lab| {
        let _world = World::start();
        let (one, two, from) = (lab.pod("a", 2), lab.pod("c", 2), lab.pod("b", 9));
        let named = |pod: &crate::lab::Pod, name: &str, ready| Endpoint {
            hostname: name.into(),
            ..pod.endpoint(ready)
        };
        lab.say(behind(&headless(), vec![named(&one, "web-0", true), named(&two, "web-1", false)], &[]));
        lab.say(behind(&web(), vec![one.endpoint(true)], &[]));
        soon("answers", || !resolve(&from.name, "nginx").is_empty());
        assert_eq!(resolve(&from.name, "web-0.nginx"), ["10.42.0.2"]);
        assert_eq!(resolve(&from.name, "web-1.nginx"), ["10.42.2.2"], "though it is not ready");
        assert_eq!(resolve(&from.name, "nginx"), ["10.42.0.2"]);
        assert_eq!(resolve(&from.name, "web"), ["10.43.0.10"]);
        assert_eq!(resolve(&from.name, "web-0.nginx.default"), ["10.42.0.2"]);
        assert_eq!(resolve(&from.name, "web-0.nginx.default.svc.cluster.local."), ["10.42.0.2"]);
        assert!(resolve(&from.name, "web-2.nginx").is_empty());
        let (found, said) = nslookup(&from.name, "web-0.nginx.default.svc.cluster.local");
        assert!(found && said.contains("10.42.0.2"), "{said}");
        let (_, said) = nslookup(&from.name, "10.42.0.2");
        assert!(said.contains("web-0.nginx.default.svc.cluster.local"), "{said}");
        let (_, said) = nslookup(&from.name, "-type=srv _main._tcp.nginx.default.svc.cluster.local");
        assert!(said.contains("8080 web-0.nginx.default.svc.cluster.local"), "{said}");
        let (found, said) = nslookup(&from.name, "no.nginx.default.svc.cluster.local");
        assert!(!found && said.contains("NXDOMAIN"), "{said}");
        // On the host itself as well.
        assert_eq!(resolve("b", "web-0.nginx"), ["10.42.0.2"]);
    });
}

#[test]
fn names_of_elsewhere_are_asked_once_and_remembered() {
    in_a_lab(|lab| {
        let world = World::start();
        let from = lab.pod("a", 2);
        soon("answers", || resolve(&from.name, "www.example.") == ["192.0.2.1"]);
        let before = world.asked();
        for _ in 0..5 {
            assert_eq!(resolve(&from.name, "www.example."), ["192.0.2.1"]);
        }
        assert_eq!(world.asked(), before, "remembered");
        // Too much for a datagram: the resolver comes again over TCP.
        assert_eq!(resolve(&from.name, "big.example.").len(), 100);
        // Through an alias of the cluster.
        let name = Some(ServiceRef { namespace: "default".into(), name: "out".into() });
        let out = Service { service: name, external_name: "www.example".into(), ..Service::default() };
        lab.say(behind(&out, vec![], &[]));
        assert_eq!(resolve(&from.name, "out"), ["192.0.2.1"]);
        // While nobody answers out there, the cluster's own names do.
        world.mute.store(true, Ordering::Relaxed);
        lab.say(behind(&web(), vec![], &[]));
        assert_eq!(resolve(&from.name, "web"), ["10.43.0.10"]);
        assert_eq!(resolve(&from.name, "www.example."), ["192.0.2.1"]);
        assert!(resolve(&from.name, "new.example.").is_empty());
    });
}

#[test]
fn a_name_changes_at_once() {
    in_a_lab(|lab| {
        let from = lab.pod("a", 9);
        lab.say(behind(&headless(), vec![], &[]));
        let ask = |name: &str| -> Option<Vec<Record>> {
            let query = Query::new(7, berth_agent_core::network::wire::Name::of(name)?, kind::A);
            let socket = crate::lab::socket(&from.name);
            socket.send_to(&query.write(7), "169.254.53.53:53").ok()?;
            let mut buffer = [0; 2048];
            let (length, _) = socket.recv_from(&mut buffer).ok()?;
            let answer = berth_agent_core::network::wire::Answer::read(buffer[..length].to_vec(), &query, 7)?;
            assert_eq!(answer.keep, 0, "neither an answer nor that there is none is kept");
            Some(answer.records())
        };
        let name = "web-0.nginx.default.svc.cluster.local";
        soon("answers", || ask(name).is_some());
        let mut took: Vec<Duration> = (0..20u8)
            .map(|n| {
                let endpoint = Endpoint {
                    id: "web-0".into(),
                    hostname: "web-0".into(),
                    addresses: vec![format!("10.42.0.{n}")],
                    ..Endpoint::default()
                };
                lab.say(behind(&headless(), vec![endpoint], &[]));
                let wanted = Data::Address([10, 42, 0, n].into());
                soon("the new address", || {
                    ask(name).is_some_and(|found| found.iter().any(|r| r.data == wanted))
                })
            })
            .collect();
        took.sort();
        eprintln!("a name's change is answered after {:?} (median), {:?} at worst", took[10], took[19]);
        assert!(took[19] < Duration::from_secs(1), "{took:?}");
    });
}
