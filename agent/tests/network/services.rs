//! Services, by real packets.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use berth_proto::{Assignment, Container, ContainerPort, NetworkUpdate, Service};

use crate::lab::{ask, at, behind, connect, datagram, in_a_lab, socket, soon, web};

const SERVICE: &str = "10.43.0.10:80";

#[test]
fn a_cluster_address_leads_to_all_its_ready_pods_from_everywhere() {
    in_a_lab(|lab| {
        let pods = [lab.pod("a", 2), lab.pod("b", 2), lab.pod("c", 2)];
        let other = lab.pod("a", 3);
        let unready = lab.pod("b", 3);
        let mut all: Vec<_> = pods.iter().map(|pod| pod.endpoint(true)).collect();
        all.push(unready.endpoint(false));
        lab.say(behind(&web(), all, &[]));
        let names: BTreeSet<String> = pods.iter().map(|pod| pod.name.clone()).collect();
        for from in [&other.name, &pods[0].name, &pods[2].name, "a", "c"] {
            soon(from, || ask(from, SERVICE).is_ok());
            let mut met = BTreeSet::new();
            soon("all of them", || {
                let (name, seen) = ask(from, SERVICE).unwrap();
                let asker = pods.iter().chain([&other]).find(|pod| pod.name == *from);
                // A pod is seen as itself, unless it has met itself: then the answer must pass the host.
                if let Some(asker) = asker.filter(|asker| asker.name != name) {
                    assert_eq!(seen, asker.ip.to_string());
                }
                met.insert(name);
                met == names
            });
        }
        let udp = socket(&other.name);
        assert!(names.contains(&datagram(&udp, SERVICE).unwrap().0));
    });
}

#[test]
fn what_nobody_is_behind_is_refused_at_once() {
    in_a_lab(|lab| {
        let (from, pod) = (lab.pod("a", 2), lab.pod("b", 2));
        lab.say(behind(&web(), vec![pod.endpoint(false)], &[]));
        let address = lab.host("a").ip;
        let node = format!("{address}:30080");
        soon("rules", || lab.host("a").look("nft list set inet berth refused4").contains("10.43.0.10"));
        let refused = |who: &str, to: &str| {
            let begun = Instant::now();
            let kind = connect(who, to).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::ConnectionRefused, "{who} {to}");
            assert!(begun.elapsed() < Duration::from_secs(3), "{who} {to}");
        };
        for who in [&from.name, "a"] {
            refused(who, SERVICE);
            refused(who, "10.43.0.10:81");
            refused(who, "10.43.7.7:80");
            refused(who, "10.42.0.200:8080");
        }
        refused("world", &node);
        // And once it is ready it is not.
        lab.say(behind(&web(), vec![pod.endpoint(true)], &[]));
        soon("ready", || ask(&from.name, SERVICE).is_ok() && ask("world", &node).is_ok());
    });
}

#[test]
fn a_gone_pods_connections_end_at_once_and_others_go_on() {
    in_a_lab(|lab| {
        let (from, stays, goes) = (lab.pod("a", 2), lab.pod("b", 2), lab.pod("c", 2));
        let fine = vec![stays.endpoint(true), goes.endpoint(true)];
        lab.say(behind(&web(), fine, &[]));
        soon("rules", || ask(&from.name, SERVICE).is_ok());
        let to = |wanted: &str| loop {
            let stream = connect(&from.name, SERVICE).unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.starts_with(wanted) {
                return stream;
            }
        };
        let mut staying = to(&stays.name);
        let mut going = to(&goes.name);
        let udp = socket(&from.name);
        // One conversation of datagrams stays with one pod.
        let (first, _) = datagram(&udp, SERVICE).unwrap();
        assert_eq!(datagram(&udp, SERVICE).unwrap().0, first);
        goes.end();
        lab.say(behind(&web(), vec![], &[&goes]));
        let begun = Instant::now();
        // The next byte, or the one after, is answered with an end.
        soon("the connection's end", || {
            let mut byte = [0];
            going.write_all(b"x").is_err() || !matches!(going.read(&mut byte), Ok(1))
        });
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        staying.write_all(b"still").unwrap();
        let mut heard = [0; 5];
        staying.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still");
        soon("datagrams go to who is there", || {
            datagram(&udp, SERVICE).is_ok_and(|(name, _)| name == stays.name)
        });
    });
}

#[test]
fn from_outside_by_every_hosts_port_and_by_external_addresses() {
    in_a_lab(|lab| {
        let (near, far) = (lab.pod("a", 2), lab.pod("c", 2));
        let service = Service { external_ips: vec!["192.0.2.80".into()], ..web() };
        lab.say(behind(&service, vec![near.endpoint(true), far.endpoint(true)], &[]));
        at("world", "ip route add 192.0.2.80/32 via 10.99.0.11");
        let node = format!("{}:30080", lab.host("a").ip);
        for to in [node.as_str(), "192.0.2.80:80"] {
            soon(to, || ask("world", to).is_ok());
            let mut met = BTreeSet::new();
            soon("both", || {
                met.insert(ask("world", to).unwrap().0);
                met.len() == 2
            });
        }
        soon("a pod by another host's port", || {
            ask(&near.name, &format!("{}:30080", lab.host("b").ip)).is_ok()
        });
        // Local: only by hosts that have a pod, and then with the asker's own address.
        let local = Service { external_local: true, ..service };
        lab.say(NetworkUpdate { services: vec![local], ..NetworkUpdate::default() });
        soon("only its own", || (0..8).all(|_| ask("world", &node).is_ok_and(|(name, _)| name == near.name)));
        assert_eq!(ask("world", &node).unwrap().1, "10.99.0.1");
        let without = format!("{}:30080", lab.host("b").ip);
        soon("refused", || {
            connect("world", &without).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        });
    });
}

#[test]
fn affinity_keeps_a_client_with_its_pod() {
    in_a_lab(|lab| {
        let from = lab.pod("a", 9);
        let pods = [lab.pod("a", 2), lab.pod("b", 2), lab.pod("c", 2)];
        let sticky = Service { client_ip_affinity_seconds: 2, ..web() };
        lab.say(behind(&sticky, pods.iter().map(|pod| pod.endpoint(true)).collect(), &[]));
        soon("rules", || ask(&from.name, SERVICE).is_ok());
        let (first, _) = ask(&from.name, SERVICE).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&from.name, SERVICE).unwrap().0, first);
        }
        // Gone, and the client is with another.
        let gone = pods.iter().find(|pod| pod.name == first).unwrap();
        lab.say(behind(&sticky, vec![], &[gone]));
        soon("another", || ask(&from.name, SERVICE).is_ok_and(|(name, _)| name != first));
        // Each visit is remembered for two seconds, and then any pod may be next.
        let (second, _) = ask(&from.name, SERVICE).unwrap();
        let lucky = (0..8).any(|_| {
            std::thread::sleep(Duration::from_millis(2300));
            ask(&from.name, SERVICE).unwrap().0 != second
        });
        assert!(lucky, "eight times the same of two");
    });
}

#[test]
fn a_host_port_leads_to_its_pod() {
    in_a_lab(|lab| {
        let pod = lab.pod("a", 2);
        let port = ContainerPort { port: 8080, host_port: 8000, ..ContainerPort::default() };
        let assignment = Assignment {
            containers: vec![Container { ports: vec![port], ..Container::default() }],
            ..Assignment::default()
        };
        let host = lab.host("a");
        host.host_ports.put("uid", &assignment, &[pod.ip.to_string()]);
        let to = format!("{}:8000", host.ip);
        for from in ["world", "b", "a", &pod.name] {
            soon(from, || ask(from, &to).is_ok_and(|(name, _)| name == pod.name));
        }
        assert_eq!(ask("world", &to).unwrap().1, "10.99.0.1", "the asker is seen");
        host.host_ports.put("uid", &assignment, &[]);
        soon("gone", || connect("world", &to).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_flushed_table_is_made_again_and_other_tables_are_left_alone() {
    in_a_lab(|lab| {
        let (from, pod) = (lab.pod("a", 2), lab.pod("b", 2));
        lab.say(behind(&web(), vec![pod.endpoint(true)], &[]));
        soon("rules", || ask(&from.name, SERVICE).is_ok());
        let host = lab.host("a");
        for line in [
            "nft flush ruleset",
            "nft flush chain inet berth prerouting",
            "nft delete table inet berth",
            "nft flush map inet berth fronts4",
        ] {
            host.look(line);
            host.look("nft add table inet theirs");
            soon(line, || ask(&from.name, SERVICE).is_ok());
            assert!(host.look("nft list tables").contains("inet theirs"));
        }
    });
}

#[test]
fn a_change_is_in_force_within_the_blink_of_an_eye() {
    in_a_lab(|lab| {
        let (from, one, two) = (lab.pod("a", 9), lab.pod("b", 2), lab.pod("c", 2));
        lab.say(behind(&web(), vec![one.endpoint(true), two.endpoint(false)], &[]));
        soon("rules", || ask(&from.name, SERVICE).is_ok());
        let mut took: Vec<Duration> = (0..10)
            .map(|n| {
                let second = n % 2 == 0;
                lab.say(behind(&web(), vec![one.endpoint(!second), two.endpoint(second)], &[]));
                let wanted = if second { &two.name } else { &one.name };
                soon("the change", || ask(&from.name, SERVICE).is_ok_and(|(name, _)| name == *wanted))
            })
            .collect();
        took.sort();
        eprintln!("a service's change is in force after {:?} (median), {:?} at worst", took[5], took[9]);
        assert!(took[5] < Duration::from_secs(1), "{took:?}");
    });
}
