//! Pods' namespaces and their network, with the distribution's CNI plugins.

use std::{fs, net::IpAddr, time::Duration};

use berth_agent::runtime::CaptureLimits;

use crate::host::{Host, on_a_host, run};

fn links() -> usize {
    run("ip", &["-o", "link"]).lines().count()
}

#[test]
fn pods_of_a_host_reach_each_other_and_leave_no_link() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        host.network.ready().await.unwrap();
        let before = links();
        let (a, b) = (host.pod("a").await, host.pod("b").await);
        let (to_a, to_b) = (a.attachment("10.42.3.7"), b.attachment("10.42.3.8"));
        let attached = host.network.attach(&to_a).await.unwrap();
        assert_eq!(attached.addresses, ["10.42.3.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(attached.network, "berth");
        // At the same time as the container is made: it only joins the namespace.
        let spec = b.container("main", &image, "sleep 1000");
        let (made, attached) = tokio::join!(host.runtime.create(&spec), host.network.attach(&to_b));
        made.unwrap();
        assert_eq!(host.network.attach(&to_b).await.unwrap(), attached.unwrap());
        host.runtime.start(&spec.id).await.unwrap();

        let ping = |address: &str| ["ping", "-c", "1", "-W", "5", address].map(String::from).to_vec();
        let limits = CaptureLimits { timeout: Duration::from_secs(10), output: 4096 };
        for address in ["10.42.3.7", "127.0.0.1", "10.42.3.1"] {
            let answer = host.runtime.exec_captured(&spec.id, &ping(address), limits).await.unwrap();
            assert_eq!(answer.exit_code, Some(0), "{address}: {}", String::from_utf8_lossy(&answer.output));
        }
        run("busybox", &["ping", "-c", "1", "-W", "5", "10.42.3.8"]);

        host.runtime.remove(&spec.id).await.unwrap();
        for pod in [a, b] {
            let uid = pod.uid.clone();
            pod.end().await;
            host.network.detach(&uid).await.unwrap();
            host.network.unpin(&uid).await.unwrap();
        }
        assert_eq!(links(), before);
        assert!(host.network.list().await.unwrap().is_empty());
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains("/run/pods/"), "{mounts}");
    });
}

#[test]
fn pinning_again_keeps_what_is_pinned() {
    on_a_host(|| async {
        let host = Host::new().await;
        let inode =
            |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let names = host.network.pin("x", "first").await.unwrap();
        let before = [&names.net, &names.uts, &names.ipc].map(|path| inode(path));
        fs::write(names.shm.join("kept"), "").unwrap();
        assert_eq!(host.network.pin("x", "second").await.unwrap(), names);
        assert_eq!([&names.net, &names.uts, &names.ipc].map(|path| inode(path)), before);
        assert!(names.shm.join("kept").exists());
        assert_ne!(before[0], inode(std::path::Path::new("/proc/thread-self/ns/net")));

        // Half of it lost: all is made anew.
        nix::mount::umount2(&names.uts, nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert!(!host.network.is_pinned("x").await);
        host.network.pin("x", "third").await.unwrap();
        assert!(host.network.is_pinned("x").await);
        let uts = format!("--uts={}", names.uts.display());
        assert_eq!(run("nsenter", &[&uts, "hostname"]), "third\n");
        let net = format!("--net={}", names.net.display());
        assert!(run("nsenter", &[&net, "ip", "link", "show", "lo"]).contains("UP"));
        host.network.unpin("x").await.unwrap();
    });
}

#[test]
fn what_is_gone_already_is_detached_without_complaint() {
    on_a_host(|| async {
        let host = Host::new().await;
        let before = links();
        let pod = host.pod("gone").await;
        host.network.attach(&pod.attachment("10.42.3.9")).await.unwrap();
        // As after a crash between unmounting and removing.
        nix::mount::umount2(&host.network.namespaces("gone").net, nix::mount::MntFlags::MNT_DETACH).unwrap();
        host.network.detach("gone").await.unwrap();
        host.network.detach("gone").await.unwrap();
        host.network.detach("never-there").await.unwrap();
        host.network.unpin("never-there").await.unwrap();
        pod.end().await;
        // The kernel takes the link with its namespace, a moment later.
        for _ in 0..500 {
            if links() == before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("links are left: {}", run("ip", &["-o", "link"]));
    });
}

#[test]
fn the_operators_network_takes_precedence() {
    on_a_host(|| async {
        let host = Host::new().await;
        fs::create_dir(host.dir.path().join("net.d")).unwrap();
        let list = serde_json::json!({
            "cniVersion": "1.0.0", "name": "theirs",
            "plugins": [
                {"type": "bridge", "bridge": "br-theirs", "isGateway": true,
                 "ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": host.dir.path().join("ipam")}},
                {"type": "tuning", "sysctl": {"net.ipv4.conf.all.forwarding": "0"}},
            ],
        });
        fs::write(host.dir.path().join("net.d/10-theirs.conflist"), list.to_string()).unwrap();
        let pod = host.pod("theirs").await;
        let attached = host.network.attach(&pod.attachment("10.42.3.9")).await.unwrap();
        assert_eq!((attached.network.as_str(), attached.addresses.len()), ("theirs", 1));
        assert!(attached.addresses[0].to_string().starts_with("10.77.0."));
        // Undone with what it was done with, not with what is configured by now.
        fs::remove_file(host.dir.path().join("net.d/10-theirs.conflist")).unwrap();
        let leases = || fs::read_dir(host.dir.path().join("ipam/theirs")).unwrap().count();
        let held = leases();
        pod.end().await;
        assert_eq!(leases(), held - 1, "its address is free again");
    });
}

#[test]
fn a_network_that_cannot_be_had_says_why() {
    on_a_host(|| async {
        let host = Host::new().await;
        let pod = host.pod("bad").await;
        let mut bad = pod.attachment("10.42.3.9");
        bad.addresses = vec!["10.42.3.999/24".into()];
        let error = host.network.attach(&bad).await.unwrap_err().to_string();
        assert!(error.contains("ptp") && error.contains("10.42.3.999"), "{error}");
        host.network.attach(&pod.attachment("10.42.3.9")).await.unwrap();
        pod.end().await;
    });
}
