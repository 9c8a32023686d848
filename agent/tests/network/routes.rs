//! The ways between pods.

use std::io::{Read, Write};

use berth_proto::NetworkUpdate;

use crate::lab::{OUTSIDE, ask, at, connect, in_a_lab, soon};

#[test]
fn pods_reach_each_other_on_every_host_with_their_own_addresses() {
    in_a_lab(|lab| {
        let pods = [lab.pod("a", 2), lab.pod("a", 3), lab.pod("b", 2), lab.pod("c", 2)];
        for from in &pods {
            for to in pods.iter().filter(|to| to.ip != from.ip) {
                let said = ask(&from.name, &format!("{}:8080", to.ip));
                assert_eq!(said.unwrap(), (to.name.clone(), from.ip.to_string()), "{from:?} {to:?}");
            }
        }
        // From the hosts themselves too, wherever the answer has to go.
        for host in ["a", "b", "c"] {
            for to in &pods {
                assert_eq!(ask(host, &format!("{}:8080", to.ip)).unwrap().0, to.name, "{host} {to:?}");
            }
        }
        let host = lab.host("a");
        let routes = host.look("ip -4 route show proto 190");
        assert!(routes.contains("10.42.1.0/24 via 10.99.0.12 dev eth0"), "straight: {routes}");
        assert!(routes.contains("10.42.2.0/24 via 10.42.2.1 dev berth.vx"), "tunnelled: {routes}");
        // More than fits one packet gets through the tunnel as well.
        let mut stream = connect(&pods[0].name, &format!("{}:8080", pods[3].ip)).unwrap();
        let greeting = format!("{} {}\n", pods[3].name, pods[0].ip);
        let sent = vec![7u8; 300_000];
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn({
            let sent = sent.clone();
            move || writer.write_all(&sent)
        });
        let mut heard = vec![0; greeting.len() + sent.len()];
        stream.read_exact(&mut heard).unwrap();
        writing.join().unwrap().unwrap();
        assert!(heard.ends_with(&sent));
    });
}

#[test]
fn the_world_sees_hosts_and_not_pods() {
    in_a_lab(|lab| {
        let pod = lab.pod("a", 2);
        lab.serve("world", 9090);
        let said = ask(&pod.name, &format!("{OUTSIDE}:9090")).unwrap();
        assert_eq!(said, ("world".into(), lab.host("a").ip.to_string()));
    });
}

#[test]
fn what_somebody_takes_away_is_put_back_and_nothing_else_is_touched() {
    in_a_lab(|lab| {
        let (from, near, far) = (lab.pod("a", 2), lab.pod("b", 2), lab.pod("c", 2));
        let reaches = |to: &crate::lab::Pod| ask(&from.name, &format!("{}:8080", to.ip)).is_ok();
        let host = lab.host("a");
        host.look("ip route add 198.51.100.0/24 via 10.99.0.12");
        let before = host.look("ip -4 route show proto 190");
        for (what, line) in [
            ("routes", "ip -4 route flush proto 190"),
            ("the tunnel", "ip link del berth.vx"),
            ("an address", "ip addr flush dev berth0"),
            ("its neighbours", "ip neigh flush dev berth.vx nud permanent"),
            ("the device", "ip link del berth0"),
            ("a link for a moment", "ip link set eth0 down"),
        ] {
            host.look(line);
            if what == "a link for a moment" {
                host.look("ip link set eth0 up");
                host.look("ip route add default via 10.99.0.1");
                host.look("ip route add 198.51.100.0/24 via 10.99.0.12");
            }
            soon(what, || host.look("ip -4 route show proto 190") == before);
            soon(what, || reaches(&near) && reaches(&far));
        }
        assert!(host.look("ip route").contains("198.51.100.0/24 via 10.99.0.12"));
    });
}

#[test]
fn a_host_that_leaves_leaves_nothing() {
    in_a_lab(|lab| {
        let host = lab.host("a");
        let lines = |line: &str| host.look(line).lines().count();
        assert_eq!(lines("bridge fdb show dev berth.vx"), 1);
        lab.say(NetworkUpdate { removed_peers: vec!["c".into()], ..NetworkUpdate::default() });
        soon("no way to c", || {
            lines("ip -4 route show proto 190") == 3
                && lines("bridge fdb show dev berth.vx") == 0
                && lines("ip neigh show dev berth.vx nud permanent") == 0
        });
        lab.say(NetworkUpdate { removed_peers: vec!["b".into(), "a".into()], ..NetworkUpdate::default() });
        soon("no tunnel", || {
            lines("ip -4 route show proto 190") == 2 && !host.look("ip link").contains("berth.vx")
        });
        // It moves to the other segment: the way to it changes.
        let moved = berth_proto::Peer { internal_ips: vec!["10.99.1.99".into()], ..lab.host("b").peer() };
        lab.say(NetworkUpdate { peers: vec![lab.host("b").peer()], ..NetworkUpdate::default() });
        let way = |part: &str| at("a", "ip -4 route show 10.42.1.0/24").contains(part);
        soon("straight", || way("dev eth0"));
        lab.say(NetworkUpdate { peers: vec![moved], ..NetworkUpdate::default() });
        soon("tunnelled", || way("dev berth.vx"));
    });
}
