//! What a pod's spec says is what its containers see, on real containerd.

use berth_tests::cluster::Cluster;
use berth_tests::scenario::{SOON, STAY, pod, set};
use berth_tests::wait;

#[test]
fn environment_files_and_volumes_are_as_the_spec_says() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.run("create configmap conf --from-literal=color=blue --from-literal=file.txt=content").unwrap();
    kubectl.run("create secret generic hidden --from-literal=password=s3cret").unwrap();
    kubectl
        .apply(
            r#"
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {app: all}, annotations: {note: hello}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 2000}
  initContainers:
  - name: first
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo init > /shared/init"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    workingDir: /tmp
    command: [sh, -c]
    args: ["echo '$(GREETING)' > /shared/args; trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"]
    env:
    - {name: WHO, value: world}
    - {name: GREETING, value: "hello $(WHO) $$(WHO)"}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: conf, key: color}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: hidden, key: password}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    envFrom:
    - {prefix: C_, configMapRef: {name: conf}}
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
    securityContext: {runAsUser: 1000, runAsGroup: 1000}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: conf, mountPath: /conf}
    - {name: hidden, mountPath: /hidden, readOnly: true}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: conf, configMap: {name: conf, items: [{key: file.txt, path: dir/renamed, mode: 0440}]}}
  - {name: hidden, secret: {secretName: hidden, defaultMode: 0400}}
"#,
        )
        .unwrap();
    cluster.ready("all").unwrap();
    let sh = |line: &str| cluster.sh("all", line).unwrap();
    assert_eq!(sh("cat /shared/init /shared/args"), "init\nhello world $(WHO)");
    assert_eq!(
        sh("echo $COLOR $PASSWORD $NAME $NODE $C_color \"$NOTE\""),
        "blue s3cret all node1 blue hello"
    );
    assert_eq!(sh("echo $IP"), cluster.kubectl.field("pod all", ".status.podIP").unwrap());
    assert_eq!(sh("pwd"), "/tmp");
    assert_eq!(sh("id -u; id -g"), "1000\n1000");
    assert!(sh("id -G").split(' ').any(|g| g == "2000"));
    assert_eq!(sh("cat /conf/dir/renamed"), "content");
    assert_eq!(sh("stat -Lc '%g' /hidden/password; cat /hidden/password"), "2000\ns3cret");
    assert!(cluster.sh("all", "echo x > /hidden/new").is_err());
    assert!(sh("mount").lines().any(|l| l.contains("on /memory type tmpfs")));
    assert_eq!(sh("stat -c %g /shared"), "2000");

    // A changed ConfigMap arrives, all at once.
    cluster
        .kubectl
        .args(&["patch", "configmap", "conf", "-p", r#"{"data":{"file.txt":"changed"}}"#])
        .unwrap();
    wait::until_true("the changed file", SOON, || {
        Ok(cluster.sh("all", "cat /conf/dir/renamed")? == "changed")
    })
    .unwrap();
}

#[test]
fn limits_are_the_kernels() {
    let cluster = Cluster::for_test().unwrap();
    let limits = "    resources: {limits: {memory: 32Mi}}";
    let manifest = pod("eater", "sleep 0.2; tail /dev/zero", limits, "  restartPolicy: Never");
    cluster.kubectl.apply(&manifest).unwrap();
    cluster
        .becomes("pod eater", ".status.containerStatuses[0].state.terminated.reason", "OOMKilled")
        .unwrap();
    assert_eq!(
        cluster.kubectl.field("pod eater", ".status.containerStatuses[0].state.terminated.exitCode").unwrap(),
        "137"
    );
}

#[test]
fn a_crashing_container_is_restarted_with_back_off_and_its_reasons_are_shown() {
    let cluster = Cluster::for_test().unwrap();
    cluster.kubectl.apply(&pod("crash", "echo so long; exit 3", "", "")).unwrap();
    cluster
        .becomes("pod crash", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff")
        .unwrap();
    assert_eq!(
        cluster
            .kubectl
            .field("pod crash", ".status.containerStatuses[0].lastState.terminated.exitCode")
            .unwrap(),
        "3"
    );
    cluster
        .event("crash", "BackOff", "Back-off restarting failed container main in pod crash_default")
        .unwrap();
    assert_eq!(cluster.kubectl.run("logs crash").unwrap().trim(), "so long");
    assert!(cluster.kubectl.run("get pod crash").unwrap().contains("CrashLoopBackOff"));
}

#[test]
fn probes_decide_readiness_and_life() {
    let cluster = Cluster::for_test().unwrap();
    let probes = "    readinessProbe: {httpGet: {path: /ok, port: 8080}, periodSeconds: 1}\n    \
                  livenessProbe: {exec: {command: [sh, -c, '! test -e /tmp/dead']}, periodSeconds: 1, failureThreshold: 1}\n    \
                  startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}";
    let command = "mkdir -p /tmp/www; httpd -p 8080 -h /tmp/www; trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
    cluster.kubectl.apply(&pod("probed", command, probes, "")).unwrap();
    cluster.becomes("pod probed", ".status.containerStatuses[0].started", "true").unwrap();
    cluster
        .event("probed", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")
        .unwrap();
    cluster.sh("probed", "touch /tmp/www/ok").unwrap();
    cluster.ready("probed").unwrap();
    cluster.sh("probed", "rm /tmp/www/ok").unwrap();
    cluster.becomes("pod probed", ".status.conditions[?(@.type==\"Ready\")].status", "False").unwrap();
    cluster.sh("probed", "touch /tmp/dead").unwrap();
    cluster.becomes("pod probed", ".status.containerStatuses[0].restartCount", "1").unwrap();
    cluster.event("probed", "Killing", "failed liveness probe, will be restarted").unwrap();
}

#[test]
fn a_pod_ends_within_its_grace_period_and_its_pre_stop_hook_runs() {
    let cluster = Cluster::for_test().unwrap();
    let hook = "    lifecycle: {preStop: {exec: {command: [sh, -c, 'echo stopped > /data/hook']}}}\n    \
                volumeMounts: [{name: data, mountPath: /data}]";
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: kept}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n";
    let volume = "  volumes: [{name: data, persistentVolumeClaim: {claimName: kept}}]";
    cluster.kubectl.apply(claim).unwrap();
    cluster.kubectl.apply(&pod("hooked", STAY, hook, volume)).unwrap();
    cluster.ready("hooked").unwrap();
    // It ignores TERM: only KILL after the grace period ends it.
    let deaf =
        pod("deaf", "trap '' TERM; while :; do sleep 1; done", "", "").replace("Seconds: 5", "Seconds: 2");
    cluster.kubectl.apply(&deaf).unwrap();
    cluster.ready("deaf").unwrap();
    cluster.kubectl.run("delete pod hooked deaf --timeout=60s").unwrap();
    cluster.gone("pod/deaf").unwrap();
    cluster
        .kubectl
        .apply(&pod("reader", STAY, "    volumeMounts: [{name: data, mountPath: /data}]", volume))
        .unwrap();
    cluster.ready("reader").unwrap();
    assert_eq!(cluster.sh("reader", "cat /data/hook").unwrap(), "stopped");
}

#[test]
fn what_cannot_be_had_is_named_and_recovers_by_itself() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl
        .apply(&pod("noimage", STAY, "", "").replace("image: busybox", "image: nowhere.invalid/none:1"))
        .unwrap();
    kubectl
        .apply(&pod("nocommand", "x", "", "").replace("[\"sh\", \"-c\", \"x\"]", "[\"/no/such/program\"]"))
        .unwrap();
    let env = "    envFrom: [{configMapRef: {name: later}}]";
    kubectl.apply(&pod("noconfig", STAY, env, "")).unwrap();
    let mount = "    volumeMounts: [{name: v, mountPath: /v}]";
    kubectl.apply(&pod("novolume", STAY, mount, "  volumes: [{name: v, configMap: {name: later}}]")).unwrap();

    let reason = ".status.containerStatuses[0].state.waiting.reason";
    wait::until_true("ErrImagePull", SOON, || {
        let now = kubectl.field("pod noimage", reason)?;
        Ok(now == "ErrImagePull" || now == "ImagePullBackOff")
    })
    .unwrap();
    cluster.event("noimage", "Failed", "nowhere.invalid").unwrap();
    cluster.event("nocommand", "Failed", "/no/such/program").unwrap();
    cluster.becomes("pod noconfig", reason, "CreateContainerConfigError").unwrap();
    cluster.event("novolume", "FailedMount", "configmap \"later\" not found").unwrap();

    kubectl.run("create configmap later --from-literal=a=b").unwrap();
    cluster.ready("noconfig").unwrap();
    cluster.ready("novolume").unwrap();
    assert_eq!(cluster.sh("noconfig", "echo $a").unwrap(), "b");
    assert_eq!(cluster.sh("novolume", "cat /v/a").unwrap(), "b");
}

#[test]
fn logs_exec_and_cp_work_as_people_type_them() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let command = "for i in 1 2 3; do echo line $i; echo err $i >&2; done; trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
    kubectl.apply(&pod("talk", command, "", "")).unwrap();
    cluster.ready("talk").unwrap();
    wait::until_true("the log", SOON, || Ok(kubectl.run("logs talk")?.lines().count() == 6)).unwrap();
    assert_eq!(kubectl.run("logs talk --tail=1").unwrap().lines().count(), 1);
    let stamped = kubectl.run("logs talk --timestamps --since=1h").unwrap();
    assert!(stamped.lines().all(|l| l.starts_with("20") && l.contains("T")), "{stamped}");

    let out =
        kubectl.output(&["exec", "talk", "--", "sh", "-c", "echo out; echo err >&2; exit 3"], None).unwrap();
    assert_eq!((out.ok, out.stdout.as_str()), (false, "out\n"));
    assert!(out.stderr.contains("err") && out.stderr.contains("exit code 3"), "{}", out.stderr);
    let echoed = kubectl.input("exec -i talk -- cat", "through and back").unwrap();
    assert_eq!(echoed, "through and back");

    let file = cluster.dir.join("payload");
    let payload: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
    std::fs::write(&file, &payload).unwrap();
    kubectl.args(&["cp", file.to_str().unwrap(), "talk:/tmp/payload"]).unwrap();
    let back = cluster.dir.join("back");
    kubectl.args(&["cp", "talk:/tmp/payload", back.to_str().unwrap()]).unwrap();
    assert_eq!(std::fs::read(&back).unwrap(), payload);
}

#[test]
fn follow_sees_what_is_written_and_ends_with_the_container() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let command = "i=0; while ! test -e /tmp/end; do echo tick $i; i=$((i+1)); sleep 0.2; done; echo last";
    kubectl.apply(&pod("ticker", command, "", "  restartPolicy: Never")).unwrap();
    cluster.ready("ticker").unwrap();
    let follow = kubectl
        .command()
        .args(["logs", "-f", "ticker"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    cluster.sh("ticker", "touch /tmp/end").unwrap();
    let out = berth_tests::kubectl::finish(follow, "logs -f", SOON).unwrap();
    assert!(out.ok, "{}", out.stderr);
    assert!(out.stdout.starts_with("tick 0\n") && out.stdout.ends_with("last\n"), "{}", out.stdout);
    cluster.becomes("pod ticker", ".status.phase", "Succeeded").unwrap();
}

#[test]
fn a_forced_deletion_frees_the_name_only_when_the_old_life_is_over() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    kubectl.apply(&set("web", 1, "")).unwrap();
    cluster.settled("web", 1).unwrap();
    let host = cluster.host().unwrap();
    let before = cluster.uid("pod web-0").unwrap();
    // Its agent cannot stop anything now.
    host.signal("agent", nix::sys::signal::Signal::SIGSTOP).unwrap();
    kubectl.run("delete pod web-0 --force --grace-period=0").unwrap();
    wait::until_true("a new web-0 object", SOON, || {
        Ok(kubectl.field("pod web-0", ".metadata.uid").is_ok_and(|uid| uid != before))
    })
    .unwrap();
    // The object is new, the identity is still the old life's: it is not bound.
    cluster.event("web-0", "FailedScheduling", "").unwrap();
    assert_eq!(kubectl.field("pod web-0", ".spec.nodeName").unwrap(), "");
    host.signal("agent", nix::sys::signal::Signal::SIGCONT).unwrap();
    cluster.settled("web", 1).unwrap();
    let tasks = host.ctr(&["task", "ls", "-q"]).unwrap();
    assert_eq!(tasks.lines().count(), 1, "{tasks}");
}
