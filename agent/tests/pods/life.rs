//! What a pod is given and how it ends.

use std::time::{Duration, Instant};

use berth_proto::container_state::State;
use berth_proto::handler::{self, Handler as Kind};
use berth_proto::{
    Assignment, Container, ContainerSecurity, DirectorySource, EmptyDir, EnvVar, File, Files, Handler,
    HostAlias, PodSecurity, Probe, Volume, VolumeMount, volume::Source,
};

use crate::host::on_a_host;
use crate::lab::{Lab, SERVE, container, exec, life, pod};

fn volume(name: &str, source: Source) -> Volume {
    Volume { name: name.into(), source: Some(source), ..Volume::default() }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { volume: volume.into(), mount_path: path.into(), ..VolumeMount::default() }
}

fn file(path: &str, content: &str, mode: u32) -> File {
    File { path: path.into(), content: content.into(), mode }
}

#[test]
fn a_pod_finds_its_names_its_volumes_and_its_user() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let mut main = container("main", SERVE);
        main.env = vec![EnvVar { name: "GREETING".into(), value: "hello".into() }];
        main.security = Some(ContainerSecurity { run_as_user: Some(1000), ..ContainerSecurity::default() });
        main.mounts = vec![
            mount("scratch", "/scratch"),
            mount("shm", "/fast"),
            mount("conf", "/conf"),
            mount("secret", "/secret"),
            mount("data", "/claim"),
        ];
        let mut web = pod("web-0", 7, vec![main]);
        web.fqdn = "web-0.nginx.default.svc.cluster.local".into();
        web.host_aliases = vec![HostAlias { ip: "1.2.3.4".into(), hostnames: vec!["db".into()] }];
        web.security = Some(PodSecurity { fs_group: Some(2000), ..PodSecurity::default() });
        let conf = Files { files: vec![file("app.conf", "port=80", 0o644)], secret: false };
        let secret = Files { files: vec![file("password", "hunter2", 0o400)], secret: true };
        web.volumes = vec![
            volume("scratch", Source::EmptyDir(EmptyDir::default())),
            volume("shm", Source::EmptyDir(EmptyDir { medium: "Memory".into(), size_limit: 1 << 20 })),
            volume("conf", Source::Files(conf)),
            volume("secret", Source::Files(secret)),
            volume("data", Source::Directory(DirectorySource { name: "pvc-1".into(), ..Default::default() })),
        ];
        lab.pods().apply(web.clone());
        lab.ready("web-0").await;
        let status = &lab.statuses["web-0"];
        assert_eq!((status.phase.as_str(), status.pod_ips[0].as_str()), ("Running", "10.42.3.7"));
        assert_eq!(status.host_ip, "192.0.2.7");
        assert!(lab.status("web-0", "main").image_id.contains("@sha256:"));

        let look = "hostname; echo $HOSTNAME; cat /etc/hostname; echo $GREETING; id -u; grep web-0 /etc/hosts; \
                    grep db /etc/hosts; cat /conf/app.conf; echo; cat /secret/password; echo; \
                    echo x > /scratch/x && echo x > /fast/x && echo x > /claim/x && echo written; \
                    echo x 2>/dev/null > /conf/x || echo read-only; echo x > /dev/termination-log && echo told";
        let (code, said) = lab.exec("web-0", "main", look).await;
        let expected = "web-0\nweb-0\nweb-0\nhello\n1000\n\
                        10.42.3.7\tweb-0.nginx.default.svc.cluster.local\tweb-0\n1.2.3.4\tdb\n\
                        port=80\nhunter2\nwritten\nread-only\ntold\n";
        assert_eq!(said, expected);
        assert_eq!(code, Some(0));

        // New content shows in the running container; nothing is restarted.
        let conf = Files { files: vec![file("app.conf", "port=81", 0o644)], secret: false };
        web.volumes[2] = volume("conf", Source::Files(conf));
        web.host_aliases[0].hostnames = vec!["database".into()];
        lab.pods().apply(web);
        let begun = Instant::now();
        while lab.exec("web-0", "main", "cat /conf/app.conf; grep database /etc/hosts").await.1
            != "port=811.2.3.4\tdatabase\n"
        {
            assert!(begun.elapsed() < Duration::from_secs(20), "the new content does not show");
        }
        assert_eq!(lab.status("web-0", "main").restart_count, 0);

        lab.end("web-0").await;
        assert!(lab.data().join("volumes/pvc-1/x").exists(), "a claim outlives its pod");
        lab.no_traces().await;
        let reasons: Vec<&str> = lab.events.iter().map(|event| event.reason.as_str()).collect();
        assert_eq!(reasons, ["Pulled", "Created", "Started", "Killing"]);
    });
}

#[test]
fn exit_codes_messages_and_reasons_are_as_in_kubernetes() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let mut talks = container("talks", "echo last words; exit 3");
        talks.termination_message_policy = "FallbackToLogsOnError".into();
        let tells = container("tells", "echo all is well > /dev/termination-log");
        let killed = container("killed", "sh -c 'kill -9 $$'; exit $?");
        let mut once = pod("once", 7, vec![talks, tells, killed]);
        once.restart_policy = "Never".into();
        lab.pods().apply(once);
        lab.phase("once", "Failed").await;
        let talks = lab.ended("once", "talks");
        assert_eq!(
            (talks.exit_code, talks.reason.as_str(), talks.message.trim()),
            (3, "Error", "last words")
        );
        let tells = lab.ended("once", "tells");
        assert_eq!((tells.exit_code, tells.reason.as_str()), (0, "Completed"));
        assert_eq!(tells.message.trim(), "all is well");
        assert!(tells.finished_at_ms >= tells.started_at_ms && tells.started_at_ms > 0);
        assert_eq!(lab.ended("once", "killed").exit_code, 137);
        // It has given back everything but its logs, and is not reported as stopped before it is told to.
        assert_eq!(lab.log("once", "talks"), "last words\n");
        assert!(!lab.pods().inventory()[0].stopped);
        lab.end("once").await;
        lab.no_traces().await;
    });
}

#[test]
fn init_containers_go_first_and_share_the_volumes() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let with_data = |mut container: Container| {
            container.mounts = vec![mount("data", "/work")];
            container
        };
        let mut web = pod("web-0", 7, vec![with_data(container("main", &format!("cat /work/log; {SERVE}")))]);
        web.init_containers = vec![
            with_data(container("first", "echo first >> /work/log")),
            with_data(container("second", "hostname >> /work/log")),
        ];
        web.volumes = vec![volume("data", Source::EmptyDir(EmptyDir::default()))];
        lab.pods().apply(web);
        lab.ready("web-0").await;
        assert_eq!(lab.ended("web-0", "second").reason, "Completed");
        assert!(lab.status("web-0", "first").ready);
        let begun = Instant::now();
        while lab.log("web-0", "main") != "first\nweb-0\n" {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", lab.log("web-0", "main"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.end("web-0").await;
        lab.no_traces().await;
    });
}

#[test]
fn a_crashing_container_comes_back_with_back_off() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        lab.pods().apply(pod("web-0", 7, vec![container("main", "echo attempt; exit 5")]));
        lab.until("the back-off", |lab| {
            lab.waits("web-0", "main").is_some_and(|(reason, _)| reason == "CrashLoopBackOff")
        })
        .await;
        let (_, message) = lab.waits("web-0", "main").unwrap();
        assert_eq!(message, "back-off 10s restarting failed container=main pod=web-0_default(uid-web-0)");
        let status = lab.status("web-0", "main");
        assert_eq!(status.restart_count, 1);
        let Some(State::Terminated(last)) = status.last_state.unwrap().state else { panic!("no last state") };
        assert_eq!(last.exit_code, 5);
        let previous = lab.pods().log_target(&life("web-0"), "main", true).unwrap();
        assert!(previous.path.exists(), "the log of the instance before is kept");
        lab.end("web-0").await;
        lab.no_traces().await;
    });
}

fn probe(handler: Handler) -> Option<Probe> {
    Some(Probe {
        handler: Some(handler),
        period_seconds: 1,
        timeout_seconds: 5,
        success_threshold: 1,
        failure_threshold: 3,
        ..Probe::default()
    })
}

#[test]
fn probes_make_pods_ready_unready_and_restart_them() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let mut by_command = container("main", SERVE);
        by_command.readiness = probe(exec("test -e /tmp/ready || { echo not yet; exit 1; }"));
        by_command.liveness = probe(exec("test ! -e /tmp/dead"));
        let mut tcp = container("main", &format!("/bin/busybox httpd -p 8080; {SERVE}"));
        tcp.readiness = probe(Handler {
            handler: Some(Kind::TcpSocket(handler::TcpSocket { host: String::new(), port: 8080 })),
        });
        let mut http =
            container("main", &format!("touch /tmp/index.html; /bin/busybox httpd -p 80 -h /tmp; {SERVE}"));
        http.readiness = probe(Handler {
            handler: Some(Kind::HttpGet(handler::HttpGet {
                port: 80,
                path: "/".into(),
                ..handler::HttpGet::default()
            })),
        });
        lab.pods().apply(pod("command", 7, vec![by_command]));
        lab.pods().apply(pod("tcp", 8, vec![tcp]));
        lab.pods().apply(pod("http", 9, vec![http]));
        lab.ready("tcp").await;
        lab.ready("http").await;
        lab.event("Readiness probe failed: not yet").await;
        assert!(!lab.is_ready("command"));
        assert_eq!(lab.exec("command", "main", "touch /tmp/ready").await.0, Some(0));
        lab.ready("command").await;
        lab.exec("command", "main", "rm /tmp/ready").await;
        lab.until("unready", |lab| !lab.is_ready("command")).await;
        lab.exec("command", "main", "touch /tmp/ready /tmp/dead").await;
        lab.event("Container main failed liveness probe, will be restarted").await;
        lab.until("a restart", |lab| {
            matches!(lab.state("command", "main"), State::Running(_))
                && lab.status("command", "main").restart_count == 1
        })
        .await;
        for name in ["command", "tcp", "http"] {
            lab.end(name).await;
        }
        lab.no_traces().await;
    });
}

#[test]
fn a_pod_is_stopped_with_its_hook_then_its_signal() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let shared = mount("data", "/work");
        let mut main = container(
            "main",
            "trap 'echo signal >> /work/log; exit 0' USR1; echo up > /work/up; while :; do sleep 1000 & wait; done",
        );
        main.mounts = vec![shared];
        main.pre_stop = Some(exec("echo hook >> /work/log; sleep 0.2"));
        main.post_start = Some(exec("echo started >> /work/log"));
        let mut web = pod("web-0", 7, vec![main]);
        let source = DirectorySource { name: "data".into(), ..Default::default() };
        web.volumes = vec![volume("data", Source::Directory(source))];
        lab.pods().apply(web);
        lab.ready("web-0").await;
        while !lab.data().join("volumes/data/up").exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let begun = Instant::now();
        lab.stop("web-0", 30);
        lab.stopped("web-0").await;
        assert!(begun.elapsed() < Duration::from_secs(20), "it ended by itself");
        let log = std::fs::read_to_string(lab.data().join("volumes/data/log")).unwrap();
        assert_eq!(log, "started\nhook\nsignal\n");
        assert_eq!(lab.ended("web-0", "main").exit_code, 0);
        lab.end("web-0").await;
        lab.no_traces().await;
    });
}

#[test]
fn what_ignores_its_signal_is_killed_when_the_grace_is_over_or_shortened() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let stubborn = |name: &str, number| {
            pod(name, number, vec![container("main", "trap '' USR1 TERM; while :; do sleep 1; done")])
        };
        lab.pods().apply(stubborn("slow", 7));
        lab.pods().apply(stubborn("forced", 8));
        lab.ready("slow").await;
        lab.ready("forced").await;
        lab.stop("forced", 3600);
        lab.event("Stopping container main").await;
        let begun = Instant::now();
        lab.stop("slow", 1);
        lab.stop("forced", 0);
        lab.stopped("forced").await;
        lab.stopped("slow").await;
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert_eq!(lab.ended("slow", "main").exit_code, 137);
        lab.end("slow").await;
        lab.end("forced").await;
        lab.no_traces().await;
    });
}

#[test]
fn ten_pods_in_order_take_what_containerd_takes() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let begun = Instant::now();
        let mut times = vec![];
        for n in 0..10 {
            let one = Instant::now();
            let web: Assignment = pod(&format!("web-{n}"), 10 + n, vec![container("main", SERVE)]);
            lab.pods().apply(web);
            lab.ready(&format!("web-{n}")).await;
            times.push(one.elapsed().as_millis());
        }
        eprintln!("ten pods in order: {:?}, each {times:?} ms", begun.elapsed());
        let begun = Instant::now();
        for n in 0..10 {
            lab.stop(&format!("web-{n}"), 30);
        }
        for n in 0..10 {
            lab.stopped(&format!("web-{n}")).await;
        }
        eprintln!("ten pods stopped: {:?}", begun.elapsed());
        for n in 0..10 {
            lab.end(&format!("web-{n}")).await;
        }
        lab.no_traces().await;
    });
}
