//! The API as HTTP: what clients other than kubectl rely on.

#![allow(clippy::unwrap_used)]

mod served;

use berth_controller::api::{Connect, Connection};
use berth_controller::pki::AgentRequest;
use bytes::Bytes;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use served::{build, config_map, pod, start};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn nobody_sees_more_than_health_and_version() {
    let server = start(Vec::new()).await;
    for path in ["/healthz", "/livez", "/readyz?verbose", "/livez/ping", "/version"] {
        assert_eq!(server.anonymous(path).await.status, 200, "{path}");
    }
    for path in ["/", "/api", "/api/v1/pods", "/openapi/v3", "/nothing"] {
        assert_eq!(server.anonymous(path).await.refused(401), "Unauthorized");
    }
    assert_eq!(server.get("/api/v1/pods").await.status, 200);
}

#[tokio::test]
async fn an_agent_has_no_business_here() {
    let server = start(Vec::new()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let signed = server.pki.sign_agent(&AgentRequest::from_pem(&request).unwrap(), "one").unwrap();
    let chain = CertificateDer::pem_slice_iter(signed.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let answer = server.send_as(Some((chain, key)), build("GET", PODS, "", Bytes::new())).await;
    assert_eq!(answer.status(), 403);
}

#[tokio::test]
async fn paths_methods_and_bodies_are_refused_as_kubernetes_does() {
    let server = start(Vec::new()).await;
    for path in
        ["/nothing", "/api/v2", "/apis/apps/v1/deployments", "/api/v1/pods/x", "/apis/nowhere.example"]
    {
        let message = server.get(path).await.refused(404);
        assert_eq!(message, "the server could not find the requested resource", "{path}");
    }
    assert_eq!(server.post("/apis/apps/v1/deployments", json!({})).await.status, 404);
    assert_eq!(server.post("/api/v1/pods", pod("a")).await.status, 405);
    assert_eq!(server.put(MAPS, json!({})).await.status, 405);
    assert_eq!(server.get(&format!("{MAPS}/x")).await.refused(404), "configmaps \"x\" not found");

    let send = |media: &'static str, body: Bytes| server.request(build("POST", MAPS, media, body));
    let message = send("application/json", Bytes::from_static(b"{\"kind\":")).await.refused(400);
    assert!(message.contains("json parse error"), "{message}");
    assert_eq!(send("application/yaml", Bytes::from_static(b"a: b")).await.status, 415);
    assert_eq!(send("application/vnd.kubernetes.protobuf", Bytes::from_static(b"{}")).await.status, 400);
    let large = Bytes::from(vec![b' '; 3 * 1024 * 1024 + 1]);
    assert_eq!(
        send("application/json", large).await.refused(413),
        "Request entity too large: limit is 3145728"
    );

    let refused = |body: Value| async { server.post(MAPS, body).await.refused(400) };
    assert!(refused(pod("a")).await.starts_with("Pod in version \"v1\" cannot be handled as a ConfigMap"));
    assert_eq!(
        refused(json!({"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "a"}})).await,
        "the API version in the data (v2) does not match the expected API version (v1)"
    );
    let mut elsewhere = config_map("a");
    elsewhere["metadata"]["namespace"] = json!("other");
    assert!(refused(elsewhere).await.starts_with("the namespace of the provided object does not match"));
    assert!(refused(json!([])).await.contains("couldn't get version/kind"));
    let message = refused(json!({"metadata": {"name": "a"}, "data": {"a": 1}})).await;
    assert!(
        message.contains("json: cannot unmarshal number into Go struct field ConfigMap.data of type string"),
        "{message}"
    );
    let message = server.post("/api/v1/namespaces/nowhere/configmaps", config_map("a")).await.refused(404);
    assert_eq!(message, "namespaces \"nowhere\" not found");
    let message = server.post(MAPS, config_map("Not_A_Name")).await.refused(422);
    assert!(
        message
            .starts_with("ConfigMap \"Not_A_Name\" is invalid: metadata.name: Invalid value: \"Not_A_Name\"")
    );
    assert_eq!(server.get(MAPS).await.ok()["items"], json!([]), "nothing was half-created");
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_ignored() {
    let server = start(Vec::new()).await;
    let body = |name: &str| {
        let mut body = config_map(name);
        body["dota"] = json!({});
        body
    };
    let strict = server.post(&format!("{MAPS}?fieldValidation=Strict"), body("a")).await;
    assert_eq!(
        strict.refused(400),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dota\""
    );
    let warned = server.post(MAPS, body("a")).await;
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"dota\\\"\"");
    assert!(warned.ok().get("dota").is_none());
    let ignored = server.post(&format!("{MAPS}?fieldValidation=Ignore"), body("b")).await;
    assert_eq!((ignored.status, ignored.headers.get("warning")), (201, None));
    let twice = Bytes::from_static(b"{\"metadata\":{\"name\":\"c\"},\"data\":{},\"data\":{}}");
    let path = format!("{MAPS}?fieldValidation=Strict");
    let message = server.request(build("POST", &path, "application/json", twice)).await.refused(400);
    assert!(message.ends_with("strict decoding error: duplicate field \"data\""), "{message}");
    assert_eq!(server.post(&format!("{MAPS}?fieldValidation=Odd"), body("c")).await.status, 400);
}

#[tokio::test]
async fn a_write_needs_the_newest_version_if_it_names_one() {
    let server = start(Vec::new()).await;
    let made = server.post(MAPS, config_map("a")).await.ok();
    let path = format!("{MAPS}/a");
    let mut changed = made.clone();
    changed["data"]["a"] = json!("c");
    let newer = server.put(&path, changed.clone()).await.ok();
    assert!(version(&newer) > version(&made));
    assert_eq!(newer["metadata"]["uid"], made["metadata"]["uid"]);
    let message = server.put(&path, changed.clone()).await.refused(409);
    assert!(
        message
            .starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );
    assert_eq!(server.put(&path, newer.clone()).await.ok(), newer, "nothing changes, nothing is written");
    changed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    changed["data"]["a"] = json!("d");
    assert_eq!(server.put(&path, changed.clone()).await.ok()["data"]["a"], "d");
    changed["metadata"]["uid"] = json!("another");
    assert_eq!(server.put(&path, changed).await.status, 409);
    let dry =
        server.patch(&format!("{path}?dryRun=All"), "merge-patch+json", json!({"data": {"a": "e"}})).await;
    assert_eq!(dry.ok()["data"]["a"], "e");
    assert_eq!(server.get(&path).await.ok()["data"]["a"], "d");
    assert_eq!(server.post(&format!("{MAPS}?dryRun=All"), config_map("b")).await.status, 201);
    assert_eq!(server.get(&format!("{MAPS}/b")).await.status, 404);
    assert_eq!(server.post(&format!("{MAPS}?dryRun=Some"), config_map("b")).await.status, 400);
}

#[tokio::test]
async fn patches_of_three_kinds_apply_and_server_side_apply_is_refused() {
    let server = start(Vec::new()).await;
    server.post(PODS, pod("a")).await.ok();
    let path = format!("{PODS}/a");
    let merged = server
        .patch(&path, "merge-patch+json", json!({"metadata": {"labels": {"app": null, "b": "1"}}}))
        .await;
    assert_eq!(merged.ok()["metadata"]["labels"], json!({"b": "1"}));
    let json_patch = json!([{"op": "add", "path": "/metadata/labels/c", "value": "2"}]);
    assert_eq!(server.patch(&path, "json-patch+json", json_patch).await.ok()["metadata"]["labels"]["c"], "2");
    let strategic = json!({"spec": {"containers": [{"name": "c", "image": "busybox:2"}]}});
    let patched = server.patch(&path, "strategic-merge-patch+json", strategic).await.ok();
    assert_eq!(patched["spec"]["containers"][0]["image"], "busybox:2");
    assert!(patched["spec"]["containers"][0]["imagePullPolicy"].is_string(), "the rest of it stays");
    let failed = json!([{"op": "test", "path": "/metadata/name", "value": "z"}]);
    assert_eq!(server.patch(&path, "json-patch+json", failed).await.status, 422);
    let message = server.patch(&path, "apply-patch+yaml", json!({})).await.refused(415);
    assert!(message.contains("server-side apply is not supported"));
    assert_eq!(server.patch(&path, "json", json!({})).await.status, 415);
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"d": "3"}}});
    assert_eq!(server.patch(&path, "merge-patch+json", stale).await.status, 409);
    let renamed = json!({"metadata": {"name": "b"}});
    assert_eq!(server.patch(&path, "merge-patch+json", renamed).await.status, 400);
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let server = start(Vec::new()).await;
    server.post(MAPS, config_map("a")).await.ok();
    let path = format!("{MAPS}/a");
    let patches =
        (0..8).map(|i| server.patch(&path, "merge-patch+json", json!({"data": {format!("k{i}"): "v"}})));
    for answer in futures_util::future::join_all(patches).await {
        answer.ok();
    }
    assert_eq!(server.get(&path).await.ok()["data"].as_object().unwrap().len(), 9);
}

#[tokio::test]
async fn a_limited_list_shows_one_moment() {
    let server = start(Vec::new()).await;
    for name in ["a", "b", "c", "d", "e"] {
        server.post(MAPS, config_map(name)).await.ok();
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = server.get(&format!("{MAPS}?limit=2")).await.ok();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.delete(&format!("{MAPS}/c"), Value::Null).await.ok();
    server.post(MAPS, config_map("bb")).await.ok();
    let next = first["metadata"]["continue"].as_str().unwrap();
    let second = server.get(&format!("{MAPS}?limit=2&continue={next}")).await.ok();
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let next = second["metadata"]["continue"].as_str().unwrap();
    let third = server.get(&format!("{MAPS}?continue={next}")).await.ok();
    assert_eq!((names(&third), &third["metadata"]["continue"]), (vec!["e".to_owned()], &Value::Null));
    assert_eq!(server.get(&format!("{MAPS}?continue=junk")).await.status, 400);

    let exact = format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={}", version(&first));
    assert_eq!(names(&server.get(&exact).await.ok()), ["a", "b", "c", "d", "e"]);
    let future = format!("{MAPS}?resourceVersion=999999");
    assert!(server.get(&future).await.refused(504).contains("Too large resource version"));
    assert_eq!(server.get(&format!("{MAPS}?resourceVersion=x")).await.status, 400);
    assert_eq!(server.get(&format!("{MAPS}?resourceVersionMatch=Exact")).await.status, 422);
}

#[tokio::test]
async fn selectors_choose_objects() {
    let server = start(Vec::new()).await;
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({"app": app});
        server.post(MAPS, map).await.ok();
    }
    server.post(PODS, pod("p")).await.ok();
    let count = |path: String| {
        let server = &server;
        async move { server.get(&path).await.ok()["items"].as_array().unwrap().len() }
    };
    assert_eq!(count(format!("{MAPS}?labelSelector=app%3Dx")).await, 2);
    assert_eq!(count(format!("{MAPS}?labelSelector=app%20in%20(y,z)")).await, 1);
    assert_eq!(count(format!("{MAPS}?labelSelector=%21app")).await, 0);
    assert_eq!(count(format!("{MAPS}?fieldSelector=metadata.name%3Db")).await, 1);
    assert_eq!(count("/api/v1/configmaps?fieldSelector=metadata.namespace!%3Ddefault".to_owned()).await, 0);
    assert_eq!(count(format!("{PODS}?fieldSelector=spec.nodeName%3D,status.phase%3DPending")).await, 1);
    assert_eq!(server.get(&format!("{MAPS}?labelSelector=app%3D%3D%3D")).await.status, 400);
    let message = server.get(&format!("{MAPS}?fieldSelector=data.a%3Db")).await.refused(400);
    assert!(message.ends_with("field label not supported: data.a"), "{message}");
    let page = server.get(&format!("{MAPS}?labelSelector=app%3Dx&limit=1")).await.ok();
    let next = page["metadata"]["continue"].as_str().unwrap();
    let rest = server.get(&format!("{MAPS}?labelSelector=app%3Dx&limit=1&continue={next}")).await.ok();
    assert_eq!(rest["items"][0]["metadata"]["name"], "c");

    server.delete(&format!("{MAPS}?labelSelector=app%3Dx"), Value::Null).await.ok();
    assert_eq!(count(MAPS.to_owned()).await, 1);
}

#[tokio::test]
async fn tables_and_metadata_are_given_to_those_who_ask() {
    let server = start(Vec::new()).await;
    server.post(PODS, pod("a")).await.ok();
    let table = server.get_as(PODS, TABLE).await.ok();
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert!(table["metadata"]["resourceVersion"].is_string());
    let whole = server.get_as(&format!("{PODS}/a?includeObject=Object"), TABLE).await.ok();
    assert_eq!(whole["rows"][0]["object"]["kind"], "Pod");
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = server.get_as(PODS, partial).await.ok();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0].get("spec").is_none());
    let both = server.get_as(PODS, "application/vnd.kubernetes.protobuf, application/json").await;
    assert_eq!(both.ok()["kind"], "PodList");
    assert_eq!(server.get_as(PODS, "application/vnd.kubernetes.protobuf").await.status, 406);
}

#[tokio::test]
async fn a_watch_tells_everything_once_and_in_order() {
    let server = start(Vec::new()).await;
    let a = server.post(MAPS, config_map("a")).await.ok();
    let start = version(&server.get(MAPS).await.ok());
    let mut from_now = server.watch(&format!("{MAPS}?watch=true&resourceVersion={start}")).await;
    let mut from_nothing = server.watch(&format!("{MAPS}?watch=1")).await;
    server.post(MAPS, config_map("b")).await.ok();
    server.patch(&format!("{MAPS}/a"), "merge-patch+json", json!({"data": {"x": "y"}})).await.ok();
    server.delete(&format!("{MAPS}/b"), Value::Null).await.ok();
    let added = from_nothing.next().await.unwrap();
    assert_eq!((&added["type"], &added["object"]), (&json!("ADDED"), &a));
    for lines in [&mut from_now, &mut from_nothing] {
        let mut last = start;
        for (r#type, name) in [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")] {
            let event = lines.next().await.unwrap();
            assert_eq!(
                (event["type"].as_str(), event["object"]["metadata"]["name"].as_str()),
                (Some(r#type), Some(name))
            );
            assert!(version(&event["object"]) > last);
            last = version(&event["object"]);
        }
    }
    let mut one = server.watch(&format!("{MAPS}/a?watch=true")).await;
    assert_eq!(one.short().await, ("ADDED".to_owned(), "a".to_owned()));
    let mut short =
        server.watch(&format!("{MAPS}?watch=true&resourceVersion={start}&timeoutSeconds=1")).await;
    for _ in 0..3 {
        short.next().await.unwrap();
    }
    assert_eq!(short.next().await, None, "it ends when its time is over");
}

#[tokio::test]
async fn objects_come_into_a_watchs_view_and_leave_it() {
    let server = start(Vec::new()).await;
    server.post(MAPS, config_map("a")).await.ok();
    let mut lines = server.watch(&format!("{MAPS}?watch=true&labelSelector=in%3Dyes")).await;
    let label = |value: Value| {
        let server = &server;
        async move {
            let patch = json!({"metadata": {"labels": {"in": value}}});
            server.patch(&format!("{MAPS}/a"), "merge-patch+json", patch).await.ok()
        }
    };
    label(json!("yes")).await;
    assert_eq!(lines.short().await.0, "ADDED");
    let gone = label(json!("no")).await;
    let event = lines.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["in"], "yes", "as it was last seen");
    assert_eq!(version(&event["object"]), version(&gone), "at the revision at which it left");
    label(Value::Null).await;
    label(json!("yes")).await;
    assert_eq!(lines.short().await.0, "ADDED");
    server.delete(&format!("{MAPS}/a"), Value::Null).await.ok();
    assert_eq!(lines.short().await.0, "DELETED");
}

#[tokio::test]
async fn a_watch_can_be_a_list() {
    let server = start(Vec::new()).await;
    server.post(MAPS, config_map("a")).await.ok();
    let list = "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut lines = server.watch(&format!("{MAPS}?{list}")).await;
    assert_eq!(lines.short().await, ("ADDED".to_owned(), "a".to_owned()));
    let bookmark = lines.next().await.unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(version(&bookmark["object"]), version(&server.get(MAPS).await.ok()));
    server.post(MAPS, config_map("b")).await.ok();
    assert_eq!(lines.short().await, ("ADDED".to_owned(), "b".to_owned()));
    let refused = server.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await;
    assert!(
        refused
            .refused(422)
            .contains("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
    );
    assert_eq!(server.get(&format!("{MAPS}?sendInitialEvents=true")).await.status, 422);
    assert_eq!(server.get(&format!("{MAPS}?watch=true&resourceVersionMatch=NotOlderThan")).await.status, 422);
}

#[tokio::test]
async fn a_watch_from_a_revision_that_was_never_reached_says_gone() {
    let server = start(Vec::new()).await;
    let mut lines = server.watch(&format!("{MAPS}?watch=true&resourceVersion=999999")).await;
    let event = lines.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn a_watch_of_tables_tells_its_columns_once() {
    let server = start(Vec::new()).await;
    let mut lines = server.watch_as(&format!("{PODS}?watch=true"), TABLE).await;
    server.post(PODS, pod("a")).await.ok();
    server.post(PODS, pod("b")).await.ok();
    let first = lines.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert!(!first["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    let second = lines.next().await.unwrap();
    assert!(second["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn deletion_waits_for_grace_and_finalizers() {
    let server = start(Vec::new()).await;
    let mut bound = pod("a");
    bound["spec"]["nodeName"] = json!("one");
    bound["spec"]["terminationGracePeriodSeconds"] = json!(20);
    let made = server.post(PODS, bound).await.ok();
    let path = format!("{PODS}/a");
    let message = server.delete(&path, json!({"preconditions": {"uid": "other"}})).await.refused(409);
    assert!(message.contains("Precondition failed: UID in precondition: other"));
    let dry = server.delete(&path, json!({"dryRun": ["All"]})).await.ok();
    assert_eq!(dry["metadata"]["deletionGracePeriodSeconds"], 20);
    assert!(server.get(&path).await.ok()["metadata"]["deletionTimestamp"].is_null());
    let deleting = server.delete(&path, json!({"gracePeriodSeconds": 10})).await.ok();
    assert_eq!(deleting["metadata"]["deletionGracePeriodSeconds"], 10);
    let message = server
        .patch(&path, "merge-patch+json", json!({"metadata": {"finalizers": ["a.b/c"]}}))
        .await
        .refused(422);
    assert!(message.contains("no new finalizers can be added if the object is being deleted"));
    let pods = berth_controller_core::kinds::by_resource("", "v1", "pods").unwrap();
    server.objects.remove(pods, "default", "a", "another").await.unwrap();
    assert_eq!(server.get(&path).await.status, 200, "another pod of that name was meant");
    server.objects.remove(pods, "default", "a", made["metadata"]["uid"].as_str().unwrap()).await.unwrap();
    assert_eq!(server.get(&path).await.status, 404);

    let mut held = config_map("b");
    held["metadata"]["finalizers"] = json!(["a.b/c"]);
    server.post(MAPS, held).await.ok();
    let path = format!("{MAPS}/b");
    let options = json!({"propagationPolicy": "Foreground"});
    let deleting = server.delete(&path, options).await.ok();
    assert_eq!(deleting["metadata"]["finalizers"], json!(["a.b/c", "foregroundDeletion"]));
    let released = json!({"metadata": {"finalizers": null}});
    server.patch(&path, "merge-patch+json", released).await.ok();
    assert_eq!(server.get(&path).await.status, 404);

    server.post(MAPS, config_map("c")).await.ok();
    let gone = server.delete(&format!("{MAPS}/c"), Value::Null).await.ok();
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(gone["details"]["name"], "c");
    assert_eq!(server.delete(&format!("{MAPS}/c"), Value::Null).await.status, 404);
}

#[tokio::test]
async fn a_namespace_going_away_takes_nothing_new() {
    let server = start(Vec::new()).await;
    let message = server.delete("/api/v1/namespaces/default", Value::Null).await.refused(403);
    assert_eq!(message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
    server.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await.ok();
    let namespace = server.delete("/api/v1/namespaces/n", Value::Null).await.ok();
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let refused = server.post("/api/v1/namespaces/n/configmaps", config_map("a")).await;
    assert!(refused.refused(403).contains("namespace n because it is being terminated"));
    assert_eq!(refused.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let done = json!({"metadata": {"name": "n"}, "spec": {"finalizers": []}});
    server.put("/api/v1/namespaces/n/finalize", done).await.ok();
    assert_eq!(server.get("/api/v1/namespaces/n").await.status, 404);
}

#[tokio::test]
async fn subresources_touch_only_their_part() {
    let server = start(Vec::new()).await;
    let sets = "/apis/apps/v1/namespaces/default/statefulsets";
    let set = json!({
        "metadata": {"name": "web"},
        "spec": {"serviceName": "web", "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}}},
    });
    server.post(sets, set).await.ok();
    let scale = server.get(&format!("{sets}/web/scale")).await.ok();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = json!(3);
    assert_eq!(server.put(&format!("{sets}/web/scale"), wanted.clone()).await.ok()["spec"]["replicas"], 3);
    assert_eq!(
        server.put(&format!("{sets}/web/scale"), wanted).await.status,
        409,
        "the version is old by now"
    );
    let patch = json!({"spec": {"replicas": -1}});
    let message = server.patch(&format!("{sets}/web/scale"), "merge-patch+json", patch).await.refused(422);
    assert!(message.contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0"));
    let status = json!({"spec": {"replicas": 9}, "status": {"replicas": 2}});
    let written = server.patch(&format!("{sets}/web/status"), "merge-patch+json", status).await.ok();
    assert_eq!((&written["spec"]["replicas"], &written["status"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!(written["metadata"]["generation"], 2);
    assert_eq!(server.get(&format!("{sets}/web/nothing")).await.status, 404);
}

#[tokio::test]
async fn documents_can_be_kept_by_their_tag() {
    let server = start(Vec::new()).await;
    for path in ["/openapi/v2", "/openapi/v3", "/openapi/v3/apis/apps/v1"] {
        let answer = server.get(path).await;
        let tag = answer.headers["etag"].clone();
        answer.ok();
        let mut again = build("GET", path, "", Bytes::new());
        again.headers_mut().insert("if-none-match", tag);
        let again = server.request(again).await;
        assert_eq!((again.status, again.body.len()), (304, 0));
    }
    assert_eq!(server.get("/openapi/v3/apis/nowhere.example/v1").await.status, 404);
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let groups = server.get_as("/apis", aggregated).await;
    assert_eq!(
        groups.headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    assert_eq!(groups.ok()["kind"], "APIGroupDiscoveryList");
    assert_eq!(server.get("/apis").await.ok()["kind"], "APIGroupList");
    assert_eq!(server.get("/apis/apps").await.ok()["kind"], "APIGroup");
    assert_eq!(server.get("/api/v1").await.ok()["kind"], "APIResourceList");
}

#[tokio::test]
async fn a_panicking_handler_ends_only_its_own_request() {
    async fn broken(
        connection: Connection,
    ) -> Result<axum::response::Response, berth_controller_core::status::Status> {
        panic!("a bug with {}", connection.object.key);
    }
    let server = start(vec![Connect::new("pods", "log", "Pod", &["get"], broken)]).await;
    server.post(PODS, pod("a")).await.ok();
    assert!(server.get(&format!("{PODS}/a/log")).await.refused(500).contains("hit a bug"));
    assert_eq!(server.get(&format!("{PODS}/b/log")).await.status, 404);
    assert_eq!(server.post(&format!("{PODS}/a/log"), json!({})).await.status, 405);
    assert_eq!(server.get(&format!("{PODS}/a/exec")).await.status, 404, "nobody serves it here");
    server.get(PODS).await.ok();
}

/// What leader election does with them, in whatever language.
#[tokio::test]
async fn of_two_that_take_over_an_expired_lease_one_wins() {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let server = start(Vec::new()).await;
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "leader"},
        "spec": {
            "holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0,
            "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z",
        },
    });
    server.post(LEASES, lease.clone()).await.ok();
    server.post(LEASES, lease.clone()).await.refused(409);
    let path = format!("{LEASES}/leader");
    lease = server.get(&path).await.ok();
    let taken_by = |who: &str| {
        let mut taken = lease.clone();
        taken["spec"]["holderIdentity"] = who.into();
        taken["spec"]["renewTime"] = "2026-01-01T00:01:00.000001Z".into();
        taken
    };
    server.put(&path, taken_by("b")).await.ok();
    server.put(&path, taken_by("c")).await.refused(409);
    let now = server.get(&path).await.ok();
    assert_eq!(now["spec"]["holderIdentity"], "b");
    assert_eq!(now["spec"]["renewTime"], "2026-01-01T00:01:00.000001Z");
}
