//! Containers from create to remove.

use std::{fs, time::Duration};

use berth_agent::runtime::{Mount, RuntimeError, Target, TaskState, UserSpec};

use crate::host::{Host, on_a_host};

#[test]
fn a_container_runs_logs_and_leaves_nothing() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("one").await;
        let spec = pod.container("main", &image, "echo out; echo err >&2; exit 7");
        let (exit, said) = pod.run(&spec).await;
        assert_eq!((exit.code, exit.oom_killed, exit.unknown), (7, false, false));
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"]);
        let log = fs::read_to_string(&spec.log.path).unwrap();
        assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
        pod.end().await;
        assert_eq!(host.leftovers(), Vec::<String>::new());
        assert!(host.network.list().await.unwrap().is_empty());
        assert!(host.cgroups.list().await.unwrap().is_empty());
    });
}

#[test]
fn a_container_is_what_its_spec_says() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("spec").await;
        let run = async |spec: &berth_agent::runtime::ContainerSpec| pod.run(spec).await.1;

        let mut spec = pod.container("image", &image, "id; pwd; echo $FROM $HOME; hostname");
        spec.user = UserSpec { groups: vec![77], ..UserSpec::default() };
        assert_eq!(
            run(&spec).await,
            "uid=0(root) gid=0(root) groups=0(root),77\n/data\nimage /root\nhost-spec\n"
        );

        let mut spec =
            pod.container("user", &image, "id; pwd; echo $FROM $HOME; touch /x || touch /tmp/x || echo ro");
        spec.user = UserSpec { uid: Some(1000), non_root: true, ..UserSpec::default() };
        spec.env = vec![("FROM".into(), "pod".into())];
        spec.working_dir = "/home".into();
        spec.read_only_root = true;
        let said = run(&spec).await;
        for line in
            ["uid=1000(user) gid=1001(user) groups=44(extra),1001(user)", "/home", "pod /home/user", "ro"]
        {
            assert!(said.lines().any(|one| one == line), "{line} in {said}");
        }

        let data = host.dir.path().join("claim");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("f"), "kept").unwrap();
        let mut spec = pod.container(
            "mounts",
            &image,
            "cat /data/f /ro/f; echo new > /data/g; touch /ro/g; ls /dev/shm",
        );
        let mount = |destination: &str, read_only| Mount {
            source: data.clone(),
            destination: destination.into(),
            read_only,
        };
        spec.mounts = vec![mount("/ro", true), mount("/data", false)];
        let said = run(&spec).await;
        assert!(said.contains("keptkept") && said.contains("Read-only file system"), "{said}");
        assert_eq!(fs::read_to_string(data.join("g")).unwrap(), "new\n");
        assert!(!data.join("h").exists());

        let script = "grep -E 'CapEff|NoNewPrivs' /proc/self/status; ls /dev | grep -c . ; cat /proc/kcore | head -c 1";
        let mut spec = pod.container("weak", &image, script);
        spec.no_new_privileges = true;
        spec.drop_capabilities = vec!["ALL".into()];
        spec.add_capabilities = vec!["CHOWN".into()];
        let weak = run(&spec).await;
        assert!(weak.contains("0000000000000001") && weak.contains("NoNewPrivs:\t1"), "{weak}");
        let mut spec =
            pod.container("strong", &image, "grep CapEff /proc/self/status; ls /dev; mount | grep sysfs");
        spec.privileged = true;
        let strong = run(&spec).await;
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find(|l| l.starts_with("CapEff")).unwrap().to_owned();
        assert!(strong.contains(&own) && strong.contains("kmsg") && strong.contains("sysfs (rw"), "{strong}");
        pod.end().await;
    });
}

#[test]
fn containers_of_a_pod_share_namespaces_memory_and_one_shim() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("shared").await;
        let (a, b) = (
            pod.container("a", &image, "echo hello > /dev/shm/x; sleep 1000"),
            pod.container(
                "b",
                &image,
                "until cat /dev/shm/x 2>/dev/null; do sleep 0.01; done; ls /proc | grep -c '^[0-9]'",
            ),
        );
        for spec in [&a, &b] {
            host.runtime.create(spec).await.unwrap();
            host.runtime.start(&spec.id).await.unwrap();
        }
        assert_eq!(host.containerd.shims().len(), 1);
        let exit = host.runtime.wait(&b.id).await.unwrap();
        assert_eq!(exit.code, 0);
        host.runtime.remove(&b.id).await.unwrap();
        let said = pod.said(&b);
        assert!(said.starts_with("hello\n"), "{said}");
        let seen: u32 = said.lines().nth(1).unwrap().parse().unwrap();
        assert!(seen <= 3, "it sees its own processes only: {said}");
        host.runtime.remove(&a.id).await.unwrap();
        pod.end().await;
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn every_step_may_be_repeated() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let runtime = &host.runtime;
        let pod = host.pod("again").await;
        let spec = pod.container("main", &image, "sleep 1000");
        runtime.create(&spec).await.unwrap();
        runtime.create(&spec).await.unwrap();
        assert_eq!(runtime.get(&spec.id).await.unwrap().unwrap().state, TaskState::Created);
        let pid = runtime.start(&spec.id).await.unwrap();
        assert_eq!(runtime.start(&spec.id).await.unwrap(), pid);
        runtime.create(&spec).await.unwrap();
        let all = runtime.list(&[("berth.dev/pod.uid", "again")]).await.unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].state, all[0].image.as_str()), (TaskState::Running(pid), crate::host::IMAGE));
        assert!(runtime.list(&[("berth.dev/pod.uid", "other")]).await.unwrap().is_empty());

        runtime.kill(&spec.id, 9, Target::All).await.unwrap();
        assert_eq!(runtime.wait(&spec.id).await.unwrap().code, 137);
        assert_eq!(runtime.wait(&spec.id).await.unwrap().code, 137);
        runtime.kill(&spec.id, 9, Target::Init).await.unwrap();
        runtime.remove(&spec.id).await.unwrap();
        runtime.remove(&spec.id).await.unwrap();
        runtime.kill(&spec.id, 9, Target::Init).await.unwrap();
        runtime.terminate(&spec.id).await.unwrap();
        assert!(runtime.get(&spec.id).await.unwrap().is_none());
        assert!(runtime.wait(&spec.id).await.unwrap().unknown);

        // One that was made and never started, and one that runs, are removed as well.
        for start in [false, true] {
            runtime.create(&spec).await.unwrap();
            if start {
                runtime.start(&spec.id).await.unwrap();
            }
            runtime.remove(&spec.id).await.unwrap();
        }
        pod.end().await;
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn terminate_sends_the_images_own_signal() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("term").await;
        let spec = pod.container(
            "main",
            &image,
            "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done",
        );
        host.runtime.create(&spec).await.unwrap();
        host.runtime.start(&spec.id).await.unwrap();
        while !pod.said(&spec).contains("ready") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        host.runtime.terminate(&spec.id).await.unwrap();
        assert_eq!(host.runtime.wait(&spec.id).await.unwrap().code, 3);
        host.runtime.remove(&spec.id).await.unwrap();
        pod.end().await;
    });
}

#[test]
fn a_container_that_needs_too_much_memory_is_known_as_such() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("oom").await;
        let mut spec = pod.container("main", &image, "x=$(yes | head -c 200000000)");
        spec.resources.memory_limit_bytes = 16 << 20;
        host.runtime.create(&spec).await.unwrap();
        host.runtime.start(&spec.id).await.unwrap();
        let exit = host.runtime.wait(&spec.id).await.unwrap();
        assert_eq!((exit.code, exit.oom_killed), (137, true));
        host.runtime.remove(&spec.id).await.unwrap();
        pod.end().await;
    });
}

#[test]
fn what_cannot_run_says_why_and_leaves_nothing() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("bad").await;
        let mut spec = pod.container("main", &image, "");
        spec.command = vec!["/no/such/program".into()];
        let error = match host.runtime.create(&spec).await {
            Ok(()) => host.runtime.start(&spec.id).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(&error, RuntimeError::Failed { .. }), "{error:?}");
        assert!(error.to_string().contains("/no/such/program"), "{error}");
        host.runtime.remove(&spec.id).await.unwrap();

        let mut spec = pod.container("main", &image, "true");
        spec.mounts =
            vec![Mount { source: "/no/such/dir".into(), destination: "/x".into(), read_only: false }];
        let error = host.runtime.create(&spec).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/dir"), "{error}");

        let mut spec = pod.container("main", &image, "true");
        spec.user.non_root = true;
        assert!(matches!(host.runtime.create(&spec).await.unwrap_err(), RuntimeError::Config(_)));
        pod.end().await;
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn killing_the_pods_cgroup_ends_all_of_it() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let pod = host.pod("group").await;
        let specs = ["a", "b"].map(|name| pod.container(name, &image, "sleep 1000 & sleep 1000"));
        for spec in &specs {
            host.runtime.create(spec).await.unwrap();
            host.runtime.start(&spec.id).await.unwrap();
        }
        assert!(!host.cgroups.is_empty("group").await.unwrap());
        host.cgroups.kill_all("group").await.unwrap();
        assert!(host.cgroups.wait_empty("group", Duration::from_secs(10)).await.unwrap());
        for spec in &specs {
            assert_eq!(host.runtime.wait(&spec.id).await.unwrap().code, 137);
            host.runtime.remove(&spec.id).await.unwrap();
        }
        pod.end().await;
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}
