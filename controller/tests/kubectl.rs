//! kubectl against the API, as people type it. The loops do not run here: what is checked is that kubectl and
//! the API understand each other. Takes $KUBECTL, or the kubectl in PATH.

#![allow(clippy::unwrap_used)]

mod served;

use std::process::Stdio;

use axum::response::Response;
use berth_controller::api::remote_command::{self, Input, Output};
use berth_controller::api::{Connect, Connection};
use berth_controller_core::status::Status;
use bytes::Bytes;
use served::PATIENCE;
use served::kubectl::{Kubectl, lines};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_applied_shown_diffed_and_deleted() {
    let k = Kubectl::start(Vec::new()).await;
    assert_eq!(k.ok("apply -f WEB").await, "service/nginx created\nstatefulset.apps/web created");
    assert!(k.ok("apply -f WEB").await.starts_with("service/nginx unchanged\nstatefulset.apps/web "));
    assert_eq!(
        k.ok("get sts web -o jsonpath={.metadata.generation}").await,
        "1",
        "applying again changes nothing"
    );
    assert_eq!(k.ok("diff -f WEB").await, "");
    let table = k.ok("get sts").await;
    assert_eq!(lines(&table)[0], ["NAME", "READY", "AGE"]);
    assert_eq!(lines(&table)[1][..2], ["web", "0/3"]);
    assert_eq!(lines(&k.ok("get statefulsets.apps -o wide").await)[1][3..], ["nginx", "nginx", "<none>"]);
    assert_eq!(k.ok("get sts,svc -o name").await, "statefulset.apps/web\nservice/nginx");
    assert!(k.ok("get all -A").await.contains("statefulset.apps/web"));
    assert!(k.ok("get sts web -o yaml").await.contains("volumeClaimTemplates:"));
    assert!(k.ok("get sts web -o json").await.contains("\"kind\": \"StatefulSet\""));
    assert!(k.ok("get sts -o yaml").await.contains("kind: List"));
    let described = k.ok("describe sts web").await;
    assert!(described.contains("3 desired | 0 total"), "{described}");
    assert!(k.fails("create -f WEB").await.contains("(AlreadyExists)"));
    assert_eq!(k.ok("replace -f WEB").await, "service/nginx replaced\nstatefulset.apps/web replaced");
    let apply = k.fails("apply --server-side -f WEB").await;
    assert!(apply.contains("server-side apply is not supported by Berth yet"), "{apply}");
    assert!(k.ok("apply -f WEB --dry-run=server").await.contains("server dry run"));
    assert!(k.ok("delete -f WEB").await.contains("statefulset.apps \"web\" deleted"));
    assert_eq!(k.ok("get all -o name").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_changed_in_every_way_people_know() {
    let k = Kubectl::start(Vec::new()).await;
    k.ok("apply -f WEB").await;
    assert_eq!(k.ok("scale sts web --replicas=5").await, "statefulset.apps/web scaled");
    assert!(
        k.fails("scale sts web --current-replicas=3 --replicas=4")
            .await
            .contains("Expected replicas to be 3, was 5")
    );
    k.ok("patch sts web --type=json -p '[{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":4}]'")
        .await;
    assert_eq!(k.ok("get sts web -o jsonpath={.spec.replicas}").await, "4");
    k.ok("patch sts web --type=merge -p '{\"metadata\":{\"labels\":{\"a\":\"b\"}}}'").await;
    k.ok("patch sts web --subresource=scale --type=merge -p '{\"spec\":{\"replicas\":2}}'").await;
    let env = "'{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"nginx\",\"env\":[{\"name\":\"A\",\"value\":\"1\"}]}]}}}}'";
    k.ok(&format!("patch sts web -p {env}")).await;
    assert_eq!(k.ok("set image sts/web nginx=nginx:1.27").await, "statefulset.apps/web image updated");
    let container = "{.spec.template.spec.containers[0]";
    let shown =
        k.ok(&format!("get sts web -o jsonpath={container}.image}},{container}.env[0].value}}")).await;
    assert_eq!(shown, "nginx:1.27,1");
    k.ok("label sts web tier=back").await;
    assert!(k.fails("label sts web tier=front").await.contains("--overwrite is false"));
    assert_eq!(k.ok("get sts -l tier=back,a=b -o name").await, "statefulset.apps/web");
    k.ok("label sts web tier-").await;
    assert_eq!(k.ok("get sts -l tier -o name").await, "");
    k.ok("annotate sts web note=hello").await;
    assert_eq!(k.ok("get sts web -o jsonpath={.metadata.annotations.note}").await, "hello");
    assert_eq!(k.edited("edit sts web", "s/replicas:.2/replicas:\\ 1/").await, "statefulset.apps/web edited");
    assert_eq!(
        k.ok("wait --for=jsonpath={.spec.replicas}=1 sts/web --timeout=10s").await,
        "statefulset.apps/web condition met"
    );
    let refused = k.fails("patch sts web --type=merge -p '{\"spec\":{\"serviceName\":\"other\"}}'").await;
    assert!(
        refused.contains("spec: Forbidden: updates to statefulset spec for fields other than"),
        "{refused}"
    );
    let unknown = "patch sts web --type=merge -p '{\"spec\":{\"replica\":2}}'";
    let (success, _, warning) = k.run(k.command(unknown)).await;
    assert!(success && warning == "Warning: unknown field \"spec.replica\"", "{warning}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generators_send_protobuf_and_are_understood() {
    let k = Kubectl::start(Vec::new()).await;
    assert_eq!(k.ok("create namespace more").await, "namespace/more created");
    k.ok("create configmap c --from-literal=a=b").await;
    assert_eq!(k.ok("get cm c -o jsonpath={.data}").await, "{\"a\":\"b\"}");
    k.ok("create secret generic s --from-literal=p=q").await;
    assert_eq!(k.ok("get secret s -o jsonpath={.data.p},{.type}").await, "cQ==,Opaque");
    k.ok("create serviceaccount robot").await;
    k.ok("create service clusterip x --tcp=80:8080").await;
    assert_eq!(k.ok("get svc x -o jsonpath={.spec.ports[0].targetPort}").await, "8080");
    k.ok("create role r --verb=get --resource=pods").await;
    k.ok("create rolebinding r --role=r --serviceaccount=default:robot").await;
    assert_eq!(k.ok("get rolebinding r -o jsonpath={.subjects[0].name}").await, "robot");
    assert_eq!(k.ok("run bare --image=busybox --restart=Never -- sleep 1d").await, "pod/bare created");
    assert!(k.ok("describe pod bare").await.contains("Image:      busybox"));
    assert_eq!(k.ok("auth can-i create pods").await, "yes");
    assert!(k.fails("create deployment d --image=x").await.contains("could not find the requested resource"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_has_its_variants() {
    let k = Kubectl::start(Vec::new()).await;
    for (name, cascade) in [("a", "background"), ("b", "orphan"), ("c", "foreground")] {
        k.ok(&format!("create configmap {name}")).await;
        // Nobody collects garbage here: what cascades by a finalizer stays.
        let wait = cascade == "background";
        k.ok(&format!("delete cm {name} --cascade={cascade} --wait={wait}")).await;
    }
    assert_eq!(k.ok("get cm -o name").await, "configmap/b\nconfigmap/c");
    assert_eq!(
        k.ok("get cm b c -o jsonpath={.items[*].metadata.finalizers[0]}").await,
        "orphan foregroundDeletion"
    );
    k.ok("run p --image=busybox --overrides={\"spec\":{\"nodeName\":\"one\"}}").await;
    k.ok("delete pod p --grace-period=7 --wait=false").await;
    assert_eq!(k.ok("get pod p -o jsonpath={.metadata.deletionGracePeriodSeconds}").await, "7");
    assert!(lines(&k.ok("get pod p").await)[1].contains(&"Terminating"));
    k.ok("delete pod p --grace-period=0 --force").await;
    assert!(k.fails("get pod p").await.contains("pods \"p\" not found"));
    k.ok("run q --image=busybox -l kind=test").await;
    k.ok("run r --image=busybox -l kind=other").await;
    k.ok("delete pods -l kind=test").await;
    assert_eq!(k.ok("get pods -o name").await, "pod/r");
    k.ok("delete pods --all").await;
    assert_eq!(k.ok("get pods -o name").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_can_be_looked_up() {
    let k = Kubectl::start(Vec::new()).await;
    let resources = k.ok("api-resources --no-headers").await;
    assert!(
        lines(&resources).iter().any(|l| l[..] == ["statefulsets", "sts", "apps/v1", "true", "StatefulSet"])
    );
    assert_eq!(k.ok("api-resources --categories=all -o name").await, "pods\nservices\nstatefulsets.apps");
    assert!(k.ok("api-versions").await.contains("apps/v1"));
    assert!(k.ok("explain sts.spec.replicas").await.contains("FIELD: replicas <integer>"));
    assert!(k.ok("explain pod.spec.containers --recursive").await.contains("livenessProbe"));
    assert!(k.ok("version").await.contains("Server Version: v1."));
    assert_eq!(k.ok("get --raw /readyz").await, "ok");
    assert!(k.ok("events").await.is_empty());
    assert!(
        k.fails("get deployments").await.contains("the server doesn't have a resource type \"deployments\"")
    );
    assert!(k.fails("get sts nothing").await.contains("statefulsets.apps \"nothing\" not found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_shows_changes_as_they_happen() {
    let k = Kubectl::start(Vec::new()).await;
    k.ok("create configmap a").await;
    let mut child = k.command("get cm -w --output-watch-events").stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line =
            tokio::time::timeout(PATIENCE, out.next_line()).await.expect("a line in time").unwrap().unwrap();
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(next().await, "EVENT NAME");
    assert_eq!(next().await, "ADDED a");
    k.ok("label cm a x=y").await;
    assert_eq!(next().await, "MODIFIED a");
    k.ok("create configmap b").await;
    assert_eq!(next().await, "ADDED b");
    k.ok("delete cm a").await;
    assert_eq!(next().await, "DELETED a");
}

/// Answers `exec`: says what was asked for, then gives stdin back until it ends, and exits with 3.
async fn echo(connection: Connection) -> Result<Response, Status> {
    let command = connection.query.all("command").join(" ");
    let upgrade = connection.websocket().await?;
    remote_command::upgrade(upgrade, move |mut session| async move {
        let greeting = Bytes::from(format!("{command}\n"));
        session.output.send(Output::Stderr(greeting)).await.unwrap();
        while let Some(Input::Stdin(data)) = session.input.recv().await {
            session.output.send(Output::Stdout(data)).await.unwrap();
        }
        session.output.send(Output::End(Ok(3))).await.unwrap();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_carries_streams_and_the_exit_code() {
    let exec = Connect::new("pods", "exec", "PodExecOptions", &["get", "create"], echo);
    let k = Kubectl::start(vec![exec]).await;
    k.ok("run p --image=busybox").await;
    let mut command = k.command("exec -i p -- cat -n");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\ntwo\n").await.unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.stdout, b"one\ntwo\n");
    assert!(output.stderr.starts_with(b"cat -n\n"), "{:?}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(3));
}
