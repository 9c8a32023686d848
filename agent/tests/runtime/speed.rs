//! How long a pod takes from nothing to running, beside the same done with containerd's calls alone. Ignored: it
//! measures and asserts nothing. `cargo nextest run -p berth-agent --test runtime --run-ignored only --no-capture`

use std::{collections::HashMap, sync::Arc, time::Duration};

use berth_agent::{
    cgroup::PodLimits,
    runtime::{CaptureLimits, Image},
};
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
        KillRequest, StartRequest, WaitRequest, container,
        snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest},
    },
    tonic::Request,
    with_namespace,
};
use tokio::time::Instant;

use crate::host::{Host, Pod, on_a_host};

const ROUNDS: usize = 30;

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!("{name:<44} median {:6.1} ms   10 % {:6.1}   90 % {:6.1}", at(50), at(10), at(90));
}

#[derive(Default)]
struct Times(Vec<(&'static str, Vec<Duration>)>);

impl Times {
    fn add(&mut self, name: &'static str, time: Duration) {
        match self.0.iter_mut().find(|(have, _)| *have == name) {
            Some((_, times)) => times.push(time),
            None => self.0.push((name, vec![time])),
        }
    }
}

async fn ours(host: &Host, image: &Arc<Image>, uid: &str, times: &mut Times) {
    let begun = Instant::now();
    let limits = PodLimits { cpu_request_millis: 100, ..PodLimits::default() };
    let (pinned, made) = tokio::join!(host.network.pin(uid, uid), host.cgroups.make(uid, &limits));
    pinned.unwrap();
    made.unwrap();
    times.add("ours: pin and cgroup", begun.elapsed());
    let pod = Pod { host, uid: uid.into() };
    let spec = pod.container("main", image, "exec sleep 1000");
    let attachment = pod.attachment("10.42.3.7");
    let attach = async {
        let begun = Instant::now();
        host.network.attach(&attachment).await.unwrap();
        begun.elapsed()
    };
    let create = async {
        let begun = Instant::now();
        host.runtime.create(&spec).await.unwrap();
        begun.elapsed()
    };
    let (attached, created) = tokio::join!(attach, create);
    times.add("ours: attach (beside create)", attached);
    times.add("ours: create", created);
    let step = Instant::now();
    host.runtime.start(&spec.id).await.unwrap();
    times.add("ours: start", step.elapsed());
    times.add("ours: nothing to running", begun.elapsed());

    let step = Instant::now();
    let limits = CaptureLimits { timeout: Duration::from_secs(10), output: 100 };
    assert_eq!(
        host.runtime.exec_captured(&spec.id, &["true".into()], limits).await.unwrap().exit_code,
        Some(0)
    );
    times.add("ours: a probe's exec", step.elapsed());

    let begun = Instant::now();
    host.runtime.kill(&spec.id, 9, berth_agent::runtime::Target::Init).await.unwrap();
    host.runtime.wait(&spec.id).await.unwrap();
    times.add("ours: kill", begun.elapsed());
    let remove = async {
        let begun = Instant::now();
        host.runtime.remove(&spec.id).await.unwrap();
        begun.elapsed()
    };
    let (removed, detached) = tokio::join!(remove, host.network.detach(uid));
    detached.unwrap();
    times.add("ours: remove (beside detach)", removed);
    let step = Instant::now();
    let (unpinned, removed) = tokio::join!(host.network.unpin(uid), host.cgroups.remove(uid));
    unpinned.unwrap();
    removed.unwrap();
    times.add("ours: unpin, cgroup", step.elapsed());
    times.add("ours: kill and remove", begun.elapsed());
}

/// The same with containerd's calls one after the other, no log, no cgroup of the pod's.
async fn floor(host: &Host, image: &Arc<Image>, uid: &str, spec: &[u8], times: &mut Times) {
    let client = containerd_client::Client::from_path(host.dir.path().join("containerd.sock")).await.unwrap();
    let pod = Pod { host, uid: uid.into() };
    let begun = Instant::now();
    host.network.pin(uid, uid).await.unwrap();
    host.network.attach(&pod.attachment("10.42.3.7")).await.unwrap();
    let step = Instant::now();
    times.add("floor: pin and attach", begun.elapsed());
    let snapshotter = "overlayfs".to_owned();
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: uid.into(),
        parent: image.chain_id.clone(),
        labels: HashMap::from([("containerd.io/gc.root".into(), "now".into())]),
    };
    let rootfs =
        client.snapshots().prepare(with_namespace!(request, "berth")).await.unwrap().into_inner().mounts;
    let record = Container {
        id: uid.into(),
        image: image.name.clone(),
        runtime: Some(container::Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(prost_types::Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: String::from_utf8_lossy(spec).replace("@uid@", uid).into_bytes(),
        }),
        snapshotter: snapshotter.clone(),
        snapshot_key: uid.into(),
        ..Container::default()
    };
    let request = CreateContainerRequest { container: Some(record) };
    client.containers().create(with_namespace!(request, "berth")).await.unwrap();
    let request = CreateTaskRequest { container_id: uid.into(), rootfs, ..CreateTaskRequest::default() };
    client.tasks().create(with_namespace!(request, "berth")).await.unwrap();
    times.add("floor: prepare, create, task", step.elapsed());
    let step = Instant::now();
    let request = StartRequest { container_id: uid.into(), exec_id: String::new() };
    client.tasks().start(with_namespace!(request, "berth")).await.unwrap();
    times.add("floor: start", step.elapsed());
    times.add("floor: nothing to running", begun.elapsed());

    let begun = Instant::now();
    let request = KillRequest { container_id: uid.into(), signal: 9, ..KillRequest::default() };
    client.tasks().kill(with_namespace!(request, "berth")).await.unwrap();
    let request = WaitRequest { container_id: uid.into(), exec_id: String::new() };
    client.tasks().wait(with_namespace!(request, "berth")).await.unwrap();
    let request = DeleteTaskRequest { container_id: uid.into() };
    client.tasks().delete(with_namespace!(request, "berth")).await.unwrap();
    let request = DeleteContainerRequest { id: uid.into() };
    client.containers().delete(with_namespace!(request, "berth")).await.unwrap();
    let request = RemoveSnapshotRequest { snapshotter, key: uid.into() };
    client.snapshots().remove(with_namespace!(request, "berth")).await.unwrap();
    host.network.unpin(uid).await.unwrap();
    times.add("floor: kill and remove", begun.elapsed());
}

#[test]
#[ignore = "measures, asserts nothing"]
fn from_nothing_to_running() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        std::fs::create_dir_all(host.dir.path().join("logs")).unwrap();
        // The specification that ours makes, for the floor as well.
        let template = host.pod("template").await;
        let made = template.container("main", &image, "exec sleep 1000");
        host.runtime.create(&made).await.unwrap();
        let info = host.containerd.ctr(&["-n", "berth", "containers", "info", &made.id]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let spec = info["Spec"].to_string().replace(&made.id, "@uid@").replace("/podtemplate/", "/podfloor/");
        let spec = spec.replace("template", "@uid@");
        host.runtime.remove(&made.id).await.unwrap();
        template.end().await;

        let mut times = Times::default();
        for round in 0..ROUNDS {
            Box::pin(ours(&host, &image, &format!("ours-{round}"), &mut times)).await;
            Box::pin(floor(&host, &image, &format!("floor-{round}"), spec.as_bytes(), &mut times)).await;
        }
        for (name, times) in times.0 {
            report(name, times);
        }
    });
}

/// Proportional set size of a process, KiB.
fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}

#[test]
#[ignore = "measures, asserts nothing"]
fn memory_of_what_stays() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let mut pods = Vec::new();
        for n in 0..5 {
            let pod = host.pod(&format!("pod-{n}")).await;
            let spec = pod.container("main", &image, "yes | head -c 30000000; exec sleep 1000");
            host.runtime.create(&spec).await.unwrap();
            host.runtime.start(&spec.id).await.unwrap();
            pods.push((pod, spec));
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        let ours = host.dir.path().display().to_string();
        for (pid, line) in crate::host::processes() {
            if line.contains(&ours) {
                let name = line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
                println!("{name:<28} pid {pid:>7} {:>6} KiB PSS", pss(pid));
            }
        }
        for (pod, spec) in pods {
            host.runtime.remove(&spec.id).await.unwrap();
            pod.end().await;
        }
    });
}
