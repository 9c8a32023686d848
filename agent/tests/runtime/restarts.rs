//! containerd dies and comes back; containers do not mind.

use std::time::Duration;

use berth_agent::runtime::{CaptureLimits, Health, TaskState};

use crate::host::{Host, on_a_host};

#[test]
fn a_restart_of_containerd_is_sat_through() {
    on_a_host(|| async {
        let (mut host, image) = Host::with_image().await;
        let pod = host.pod("restart").await;
        let long = pod.container("long", &image, "sleep 1000");
        let meanwhile =
            pod.container("meanwhile", &image, "until [ -e /dev/shm/go ]; do sleep 0.01; done; exit 3");
        let after =
            pod.container("after", &image, "until [ -e /dev/shm/later ]; do sleep 0.01; done; exit 4");
        let shm = host.network.namespaces("restart").shm;
        for spec in [&long, &meanwhile, &after] {
            host.runtime.create(spec).await.unwrap();
            host.runtime.start(&spec.id).await.unwrap();
        }
        let wait = |id: &str| {
            let (runtime, id) = (host.runtime.clone(), id.to_owned());
            tokio::spawn(async move { runtime.wait(&id).await })
        };
        let (waits, waits_after) = (wait(&meanwhile.id), wait(&after.id));
        let mut health = host.runtime.health();
        assert!(matches!(&*health.borrow_and_update(), Health::Up(_)));

        drop(pod);
        host.containerd.kill();
        health.wait_for(|health| matches!(health, Health::Away(_))).await.unwrap();
        assert!(host.runtime.list(&[]).await.unwrap_err().is_away());
        assert!(host.runtime.find_image(crate::host::IMAGE).await.is_err());
        std::fs::write(shm.join("go"), "").unwrap();
        while crate::host::processes().iter().any(|(_, line)| line.contains("/dev/shm/go ]")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        host.containerd.start_again();
        host.runtime.up().await;
        let exit = waits.await.unwrap().unwrap();
        assert!(exit.code == 3 || (exit.code == 255 && exit.unknown), "{exit:?}");

        let limits = CaptureLimits { timeout: Duration::from_secs(10), output: 100 };
        let probe = host.runtime.exec_captured(&long.id, &["true".into()], limits).await.unwrap();
        assert_eq!(probe.exit_code, Some(0));
        let info = host.runtime.get(&long.id).await.unwrap().unwrap();
        assert!(matches!(info.state, TaskState::Running(_)));
        std::fs::write(shm.join("later"), "").unwrap();
        assert_eq!(waits_after.await.unwrap().unwrap().code, 4);

        for spec in [&long, &meanwhile, &after] {
            host.runtime.remove(&spec.id).await.unwrap();
        }
        host.cgroups.remove("restart").await.unwrap();
        host.network.unpin("restart").await.unwrap();
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn logs_go_on_without_containerd_and_are_whole() {
    on_a_host(|| async {
        let (mut host, image) = Host::with_image().await;
        let pod = host.pod("logs").await;
        let spec = pod.container(
            "main",
            &image,
            "n=0; while [ $n -lt 300 ]; do echo line $n; n=$((n+1)); sleep 0.003; done",
        );
        host.runtime.create(&spec).await.unwrap();
        host.runtime.start(&spec.id).await.unwrap();
        let (end, ended) = tokio::sync::watch::channel(false);
        let request = berth_agent::logs::LogRequest {
            path: spec.log.path.clone(),
            follow: true,
            timestamps: false,
            tail_lines: None,
            since_ns: None,
            limit_bytes: None,
            ended,
        };
        let reads = tokio::spawn(async move {
            let mut reader = berth_agent::logs::LogReader::open(request).await.unwrap();
            let mut text = Vec::new();
            while let Some(chunk) = reader.next().await {
                text.extend_from_slice(&chunk.unwrap());
            }
            String::from_utf8(text).unwrap()
        });
        drop(pod);
        host.containerd.restart();
        host.runtime.wait(&spec.id).await.unwrap();
        host.runtime.remove(&spec.id).await.unwrap();
        end.send_replace(true);
        let text = reads.await.unwrap();
        let expected: String = (0..300).map(|n| format!("line {n}\n")).collect();
        assert_eq!(text, expected);
        assert_eq!(berth_agent::logs::last_words(&spec.log.path, 2, 100).await, "line 298\nline 299\n");
        host.cgroups.remove("logs").await.unwrap();
        host.network.unpin("logs").await.unwrap();
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn a_shim_that_is_killed_is_an_end_of_its_containers() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("shim").await;
        let spec = pod.container("main", &image, "sleep 1000");
        host.runtime.create(&spec).await.unwrap();
        host.runtime.start(&spec.id).await.unwrap();
        for pid in host.containerd.shims() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        let exit = host.runtime.wait(&spec.id).await.unwrap();
        assert!(exit.code == 255 || exit.code == 137, "{exit:?}");
        host.runtime.remove(&spec.id).await.unwrap();
        pod.end().await;
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}
