//! The agent or containerd dies and comes back: pods run on, nothing is restarted or lost.

use std::time::{Duration, Instant};

use berth_proto::container_state::State;
use berth_proto::{EmptyDir, File, Files, Volume, VolumeMount, volume::Source};

use crate::host::on_a_host;
use crate::lab::{Lab, SERVE, container, exec, life, pod};

fn started(lab: &Lab, name: &str) -> i64 {
    match lab.state(name, "main") {
        State::Running(running) => running.started_at_ms,
        other => panic!("{name} does not run: {other:?}"),
    }
}

#[test]
fn pods_run_on_without_the_agent_and_what_ended_meanwhile_is_known() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let mut web = pod("web-0", 7, vec![container("main", SERVE)]);
        let secret = File { path: "password".into(), content: b"hunter2".to_vec(), mode: 0o400 };
        let secret = Source::Files(Files { files: vec![secret], secret: true });
        web.volumes = vec![
            Volume { name: "secret".into(), source: Some(secret), ..Default::default() },
            Volume {
                name: "scratch".into(),
                source: Some(Source::EmptyDir(EmptyDir { medium: "Memory".into(), size_limit: 0 })),
                ..Default::default()
            },
        ];
        let mount = |volume: &str, path: &str| VolumeMount {
            volume: volume.into(),
            mount_path: path.into(),
            ..Default::default()
        };
        web.containers[0].mounts = vec![mount("secret", "/secret"), mount("scratch", "/scratch")];
        let until = "until [ -e /dev/shm/go ]; do sleep 0.01; done; exit 9";
        let mut ends = pod("ends", 8, vec![container("main", until)]);
        ends.restart_policy = "Never".into();
        let crashing =
            pod("crashing", 9, vec![container("main", "test -e /dev/shm/go && exit 4; sleep 1000")]);
        for pod in [&web, &ends, &crashing] {
            lab.pods().apply(pod.clone());
        }
        for name in ["web-0", "ends", "crashing"] {
            lab.ready(name).await;
        }
        lab.exec("web-0", "main", "echo kept > /scratch/kept").await;
        let (web_since, crash_since) = (started(&lab, "web-0"), started(&lab, "crashing"));
        let shm = lab.host.network.namespaces("uid-ends").shm;

        lab.kill_agent();
        std::fs::write(shm.join("go"), "").unwrap();
        while crate::host::processes().iter().any(|(_, line)| line.contains("exit 9")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.open().await;
        lab.phase("ends", "Failed").await;
        let ended = lab.ended("ends", "main");
        assert_eq!((ended.exit_code, ended.reason.as_str()), (9, "Error"));
        assert_eq!(started(&lab, "web-0"), web_since, "nothing is restarted");
        assert_eq!(started(&lab, "crashing"), crash_since);
        assert!(lab.is_ready("web-0"));
        let (_, said) = lab.exec("web-0", "main", "cat /scratch/kept /secret/password").await;
        assert_eq!(said, "kept\nhunter2");

        // The controller says again what it wants: all is as it was.
        for pod in [&web, &ends, &crashing] {
            lab.pods().apply(pod.clone());
        }
        lab.exec("web-0", "main", "true").await;
        assert_eq!(started(&lab, "web-0"), web_since);

        // Restart counts go on from where they were.
        lab.exec("crashing", "main", "touch /dev/shm/go; kill -9 1; true").await;
        lab.exec("crashing", "main", "true").await;
        let counts: Vec<u32> =
            ["web-0", "ends"].iter().map(|name| lab.status(name, "main").restart_count).collect();
        assert_eq!(counts, [0, 0]);
        for name in ["web-0", "ends", "crashing"] {
            lab.end(name).await;
        }
        lab.no_traces().await;
    });
}

#[test]
fn restart_counts_and_back_off_outlive_the_agent() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        lab.pods().apply(pod("web-0", 7, vec![container("main", "exit 5")]));
        let waits = |lab: &Lab| lab.waits("web-0", "main").is_some_and(|(why, _)| why == "CrashLoopBackOff");
        lab.until("the back-off", waits).await;
        lab.kill_agent();
        lab.open().await;
        lab.until("the back-off again", waits).await;
        assert_eq!(lab.status("web-0", "main").restart_count, 1);
        lab.until("the second restart", |lab| lab.status("web-0", "main").restart_count == 2).await;
        lab.end("web-0").await;
        lab.no_traces().await;
    });
}

#[test]
fn an_agent_killed_at_any_moment_finishes_or_undoes_what_it_began() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        for round in 0..10u8 {
            let name = format!("web-{round}");
            let mut web = pod(&name, 20 + round, vec![container("main", SERVE)]);
            web.containers[0].readiness = None;
            let conf = File { path: "conf".into(), content: b"x".to_vec(), mode: 0o444 };
            let conf = Source::Files(Files { files: vec![conf], secret: true });
            web.volumes = vec![Volume { name: "conf".into(), source: Some(conf), ..Default::default() }];
            web.containers[0].pre_stop = Some(exec("true"));
            lab.pods().apply(web.clone());
            tokio::time::sleep(Duration::from_millis(u64::from(round) * 13)).await;
            lab.kill_agent();
            lab.open().await;
            if round % 2 == 0 {
                lab.pods().apply(web);
                lab.ready(&name).await;
                assert_eq!(lab.status(&name, "main").restart_count, 0, "round {round}");
            }
            lab.stop(&name, 30);
            if round % 3 == 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(round) * 7)).await;
                lab.kill_agent();
                lab.open().await;
                lab.stop(&name, 30);
            }
            lab.end(&name).await;
        }
        lab.no_traces().await;
    });
}

#[test]
fn what_nobody_knows_is_stopped_and_cleaned() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        lab.pods().apply(pod("web-0", 7, vec![container("main", SERVE)]));
        lab.ready("web-0").await;
        // A write of the state may be under way: unlike a process, this agent cannot be killed in it.
        tokio::time::sleep(Duration::from_millis(800)).await;
        lab.kill_agent();
        std::fs::remove_file(lab.data().join("state.json")).unwrap();
        lab.open().await;
        lab.stop("web-0", 30);
        lab.stopped("web-0").await;
        lab.pods().forget(life("web-0"));
        let logs = lab.data().join("logs/default_web-0_uid-web-0");
        while logs.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        lab.no_traces().await;
    });
}

#[test]
fn a_restart_of_containerd_restarts_no_pod() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let mut web = pod("web-0", 7, vec![container("main", SERVE)]);
        web.containers[0].liveness = Some(berth_proto::Probe {
            handler: Some(exec("true")),
            period_seconds: 1,
            timeout_seconds: 1,
            success_threshold: 1,
            failure_threshold: 1,
            ..Default::default()
        });
        lab.pods().apply(web);
        lab.ready("web-0").await;
        let since = started(&lab, "web-0");
        lab.host.containerd.kill();
        // Long enough for a probe to find containerd away, and a pod to be assigned meanwhile.
        lab.pods().apply(pod("web-1", 8, vec![container("main", SERVE)]));
        tokio::time::sleep(Duration::from_millis(1500)).await;
        lab.host.containerd.start_again();
        lab.ready("web-1").await;
        assert_eq!(started(&lab, "web-0"), since);
        assert_eq!(lab.status("web-0", "main").restart_count, 0);
        lab.end("web-0").await;
        lab.end("web-1").await;
        lab.no_traces().await;
    });
}

/// containerd 1.6 gives up a container half-way when its client goes, and leaves the shim.
#[test]
fn an_agent_killed_while_a_container_is_made_is_not_held_up_by_what_containerd_left() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        for round in 0..8u8 {
            let name = format!("web-{round}");
            let web = pod(&name, 20 + round, vec![container("main", SERVE)]);
            lab.pods().apply(web.clone());
            while lab.host.containerd.shims().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(u64::from(round) * 3)).await;
            lab.kill_agent();
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(round) * 100)).await;
            }
            lab.open().await;
            lab.pods().apply(web);
            let begun = Instant::now();
            lab.ready(&name).await;
            assert!(begun.elapsed() < Duration::from_secs(20), "round {round}: {:?}", begun.elapsed());
            lab.end(&name).await;
            lab.no_traces().await;
        }
    });
}
