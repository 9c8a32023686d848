//! Databases that find their members by name, on three hosts: what was acknowledged to a client stays, whatever
//! happens to one member or one host.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use berth_tests::cluster::{self, Cluster};
use berth_tests::scenario::{SOON, pod};
use berth_tests::{image, wait};

/// A member is known by its name alone, from before it first runs; its data is in a claim on its host.
const ETCD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: etcd}
spec: {clusterIP: None, selector: {app: etcd}, ports: [{name: client, port: 2379}, {name: peer, port: 2380}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: etcd}
spec:
  serviceName: etcd
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: etcd}}
  template:
    metadata: {labels: {app: etcd}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: etcd
        image: etcd:3
        imagePullPolicy: IfNotPresent
        command: [sh, -c]
        args:
        - exec etcd --name $HOSTNAME --data-dir /data/etcd --logger zap
          --listen-peer-urls http://0.0.0.0:2380 --listen-client-urls http://0.0.0.0:2379
          --initial-advertise-peer-urls http://$HOSTNAME.etcd:2380 --advertise-client-urls http://$HOSTNAME.etcd:2379
          --initial-cluster etcd-0=http://etcd-0.etcd:2380,etcd-1=http://etcd-1.etcd:2380,etcd-2=http://etcd-2.etcd:2380
        readinessProbe:
          exec: {command: [etcdctl, endpoint, health]}
          timeoutSeconds: 5
          periodSeconds: 2
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 100Mi}}}
"#;

/// Writes one key after the other, and notes in the ledger which ones were acknowledged.
const CLERK: &str = "\
trap 'exit 0' TERM; i=0; \
while :; do \
  if etcdctl --command-timeout=2s --dial-timeout=1s --endpoints=$ALL put key-$i $i >/dev/null 2>&1; \
  then echo key-$i >> /tmp/ledger; else sleep 0.1; fi; \
  i=$((i+1)); \
done";

fn ledger(cluster: &Cluster) -> Vec<String> {
    let text = cluster.sh("clerk", "cat /tmp/ledger").unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until more keys than so far are acknowledged.
fn goes_on(cluster: &Cluster) {
    let before = ledger(cluster).len();
    wait::until_true("acknowledged keys", SOON, || Ok(ledger(cluster).len() >= before + 5)).unwrap();
}

/// Whether a member has every key of the ledger.
fn has_all(cluster: &Cluster, member: &str, ledger: &[String]) {
    let line = format!("etcdctl --endpoints=http://{member}.etcd:2379 get key- --prefix --keys-only");
    let text = cluster.sh("clerk", &line).unwrap();
    let keys: BTreeSet<&str> = text.lines().collect();
    let lost: Vec<&String> = ledger.iter().filter(|key| !keys.contains(key.as_str())).collect();
    assert!(lost.is_empty(), "{member} lost {lost:?} of {}", ledger.len());
}

#[test]
fn etcd_keeps_every_acknowledged_key_while_members_and_a_host_go_and_come() {
    let cluster = Cluster::of_three().unwrap();
    let kubectl = &cluster.kubectl;
    let archive = image::etcd(&cluster::images_dir().unwrap()).unwrap();
    for host in &cluster.hosts {
        host.import(&archive).unwrap();
    }
    kubectl.apply(ETCD).unwrap();
    let members = ["etcd-0", "etcd-1", "etcd-2"];
    let all = members.map(|member| format!("http://{member}.etcd:2379")).join(",");
    let env = format!("    env: [{{name: ALL, value: \"{all}\"}}]");
    let clerk = pod("clerk", CLERK, &env, "  nodeSelector: {kubernetes.io/hostname: node1}");
    kubectl.apply(&clerk.replace("image: busybox", "image: etcd:3")).unwrap();
    cluster.settled("etcd", 3).unwrap();
    goes_on(&cluster);
    let list = cluster.sh("etcd-0", "etcdctl member list").unwrap();
    assert!(members.iter().all(|m| list.contains(&format!("http://{m}.etcd:2380"))), "{list}");

    for member in members {
        let before = cluster.uid(&format!("pod {member}")).unwrap();
        kubectl.run(&format!("delete pod {member}")).unwrap();
        cluster.settled("etcd", 3).unwrap();
        assert_ne!(cluster.uid(&format!("pod {member}")).unwrap(), before);
        goes_on(&cluster);
    }

    // A host is lost: the others go on without its member. It comes back, and so does the member.
    let far = cluster.host_named("node3").unwrap();
    let lost = members.into_iter().find(|m| cluster.host_of(m).unwrap().name == "node3").unwrap();
    cluster.fabric.cut(far).unwrap();
    goes_on(&cluster);
    goes_on(&cluster);
    cluster.fabric.mend(far).unwrap();
    cluster.settled("etcd", 3).unwrap();
    goes_on(&cluster);

    let ledger = ledger(&cluster);
    assert!(ledger.len() > 30, "{}", ledger.len());
    for member in members {
        has_all(&cluster, member, &ledger);
    }
    eprintln!("{} keys, with {lost} away for a while", ledger.len());
}

/// Who is the primary is in the host name: the first ordinal. The others follow it by its name.
const REDIS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {clusterIP: None, selector: {app: redis}, ports: [{name: redis, port: 6379}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: redis}
spec:
  serviceName: redis
  replicas: 3
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: redis
        image: redis:7
        imagePullPolicy: IfNotPresent
        command: [sh, -c]
        args:
        - |
          common="--appendonly yes --protected-mode no --bind 0.0.0.0 --repl-diskless-sync-delay 0"
          case $HOSTNAME in
          *-0) exec redis-server $common ;;
          *) exec redis-server $common --replicaof redis-0.redis 6379 ;;
          esac
        readinessProbe:
          exec: {command: [sh, -c, "redis-cli info replication | grep -Eq 'role:master|master_link_status:up'"]}
          periodSeconds: 1
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 100Mi}}}
"#;

#[test]
fn redis_replicas_follow_their_primary_by_its_name_through_deletions() {
    let cluster = Cluster::of_three().unwrap();
    let archive = image::redis(&cluster::images_dir().unwrap()).unwrap();
    for host in &cluster.hosts {
        host.import(&archive).unwrap();
    }
    cluster.kubectl.apply(REDIS).unwrap();
    cluster.settled("redis", 3).unwrap();
    let replicates = |key: &str| {
        let said = cluster.sh("redis-2", &format!("redis-cli -h redis-0.redis set {key} {key}"));
        assert_eq!(said.unwrap(), "OK");
        for replica in ["redis-1", "redis-2"] {
            cluster.prints(replica, &format!("redis-cli get {key}"), key).unwrap();
        }
    };
    replicates("first");
    for (n, victim) in ["redis-2", "redis-1", "redis-0", "redis-1", "redis-0"].into_iter().enumerate() {
        let before = cluster.uid(&format!("pod {victim}")).unwrap();
        cluster.kubectl.run(&format!("delete pod {victim}")).unwrap();
        cluster.settled("redis", 3).unwrap();
        assert_ne!(cluster.uid(&format!("pod {victim}")).unwrap(), before);
        replicates(&format!("after-{n}-{victim}"));
        for member in ["redis-0", "redis-1", "redis-2"] {
            cluster.prints(member, "redis-cli get first", "first").unwrap();
        }
    }
}
