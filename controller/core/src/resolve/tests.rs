use std::collections::HashMap;

use berth_proto::{handler, volume};
use serde_json::json;

use super::*;

/// Objects by `resource/name`.
#[derive(Default)]
struct There(HashMap<String, Value>);

impl There {
    fn with(mut self, at: &str, object: Value) -> There {
        self.0.insert(at.to_owned(), object);
        self
    }
}

impl Lookups for There {
    fn get(&self, wanted: &Use) -> Option<Value> {
        self.0.get(&format!("{}/{}", wanted.resource, wanted.name)).cloned()
    }

    fn links(&self, namespace: &str) -> Arc<[Link]> {
        let mut services: Vec<_> = self.0.iter().filter(|(at, _)| at.starts_with("services/")).collect();
        services.sort_by_key(|(at, _)| *at);
        let of = services.into_iter().filter(|(_, s)| s["metadata"]["namespace"] == namespace);
        of.filter_map(|(_, service)| Link::of(service)).collect()
    }
}

fn place() -> Place {
    Place {
        cluster_domain: "cluster.local".into(),
        nameservers: vec![],
        host_ips: vec!["192.0.2.1".into(), "2001:db8::1".into()],
        gateway: "10.42.0.1".into(),
    }
}

fn record() -> Record {
    Record { uid: "u-1".into(), node: "n1".into(), epoch: 7, address: "10.42.0.9/24".into() }
}

fn pod(spec: Value) -> Value {
    json!({
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "u-1", "generation": 3,
            "labels": {"app": "web"}, "annotations": {"note": "x"},
        },
        "spec": spec,
    })
}

fn made(spec: Value, there: &There) -> Resolved {
    resolve(&pod(spec), &record(), &place(), there)
}

fn one(container: Value, there: &There) -> berth_proto::Container {
    made(json!({"containers": [container]}), there).assignment.containers.remove(0)
}

fn variables(container: &berth_proto::Container) -> Vec<(&str, &str)> {
    container.env.iter().map(|e| (e.name.as_str(), e.value.as_str())).collect()
}

#[test]
fn the_pod_carries_its_identity_name_and_address() {
    let made = made(json!({"subdomain": "nginx", "containers": []}), &There::default()).assignment;
    let life = made.pod.clone().unwrap();
    assert_eq!((life.namespace.as_str(), life.name.as_str()), ("shop", "web-0"));
    assert_eq!((life.uid.as_str(), life.epoch, made.generation), ("u-1", 7, 3));
    assert_eq!((made.hostname.as_str(), made.fqdn.as_str()), ("web-0", "web-0.nginx.shop.svc.cluster.local"));
    let network = made.network.unwrap();
    assert_eq!((network.addresses, network.gateway.as_str()), (vec!["10.42.0.9/24".to_owned()], "10.42.0.1"));
    assert_eq!((made.restart_policy.as_str(), made.termination_grace_seconds), ("Always", 30));
}

#[test]
fn the_full_name_is_the_hostname_if_asked_for_and_if_it_fits() {
    let with = |subdomain: &str| {
        let spec = json!({
            "setHostnameAsFQDN": true, "subdomain": subdomain,
            "containers": [{"name": "c"}], "initContainers": [{"name": "i"}],
        });
        made(spec, &There::default()).assignment
    };
    let fits = with("nginx");
    assert_eq!(fits.hostname, "web-0.nginx.shop.svc.cluster.local");
    assert_eq!(fits.containers[0].config_error, "");
    assert_eq!(with("").hostname, "web-0");
    let long = with(&"n".repeat(60));
    assert_eq!(long.hostname, "web-0");
    for container in long.containers.iter().chain(&long.init_containers) {
        assert!(container.config_error.contains("has 89 characters"), "{}", container.config_error);
    }
}

#[test]
fn on_the_hosts_network_the_address_and_by_default_the_dns_are_the_hosts() {
    let of_host = |policy: &str| {
        let ip = json!({"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}});
        let spec =
            json!({"hostNetwork": true, "dnsPolicy": policy, "containers": [{"name": "c", "env": [ip]}]});
        let record = Record { address: String::new(), ..record() };
        resolve(&pod(spec), &record, &place(), &There::default()).assignment
    };
    let plain = of_host("ClusterFirst");
    assert_eq!(variables(&plain.containers[0]), [("IP", "192.0.2.1")]);
    let network = plain.network.unwrap();
    assert!(network.host_network && network.addresses.is_empty());
    let dns = plain.dns.unwrap();
    assert_eq!((dns.policy.as_str(), dns.searches.len()), ("Default", 0));
    let cluster = of_host("ClusterFirstWithHostNet").dns.unwrap();
    assert_eq!((cluster.policy.as_str(), cluster.searches.len()), ("ClusterFirstWithHostNet", 3));
}

#[test]
fn a_hostname_is_cut_where_linux_would() {
    let long = pod(json!({"hostname": format!("{}-x", "a".repeat(62))}));
    assert_eq!(hostname(&long), "a".repeat(62));
}

#[test]
fn variables_refer_to_those_before_them_and_command_and_args_to_all() {
    let container = one(
        json!({
            "name": "c", "image": "i",
            "command": ["sh", "$(A)", "$$(A)", "$(NONE)"], "args": ["$(B)/$(LATER)"],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)2 $(LATER)"},
                {"name": "LATER", "value": "3"},
                {"name": "A2", "value": "$(A)"},
            ],
        }),
        &There::default(),
    );
    assert_eq!(variables(&container), [("A", "1"), ("B", "12 $(LATER)"), ("LATER", "3"), ("A2", "1")]);
    assert_eq!(container.command, ["sh", "1", "$(A)", "$(NONE)"]);
    assert_eq!(container.args, ["12 $(LATER)/3"]);
}

#[test]
fn env_replaces_what_comes_from_config_maps_and_secrets() {
    let there = There::default()
        .with("configmaps/cm", json!({"data": {"a": "cm", "b": "cm", "no=name": "x"}}))
        .with("secrets/s", json!({"data": {"pw": "c2VjcmV0"}}));
    let made = made(
        json!({"containers": [{
            "name": "c", "image": "i",
            "envFrom": [
                {"configMapRef": {"name": "cm"}},
                {"prefix": "S_", "secretRef": {"name": "s"}},
                {"configMapRef": {"name": "gone", "optional": true}},
            ],
            "env": [
                {"name": "b", "value": "own"},
                {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}},
                {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "z", "optional": true}}},
            ],
        }]}),
        &there,
    );
    let container = &made.assignment.containers[0];
    assert_eq!(container.config_error, "");
    assert_eq!(
        variables(container),
        [("a", "cm"), ("b", "own"), ("S_pw", "secret"), ("K", "cm"), ("P", "secret")]
    );
    let uses: Vec<String> = made.uses.iter().map(|u| format!("{}/{}", u.resource, u.name)).collect();
    // What is not there yet counts too: it may come.
    assert_eq!(uses, ["configmaps/cm", "configmaps/gone", "secrets/s"]);
}

#[test]
fn the_downward_api_knows_pod_and_host() {
    let field = |path: &str| json!({"name": path, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let paths = [
        ("metadata.name", "web-0"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['note']", "x"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "sa"),
        // Its host fills in what its network gave.
        ("status.podIP", berth_proto::POD_IP),
        ("status.podIPs", berth_proto::POD_IPS),
        ("status.hostIP", "192.0.2.1"),
        ("status.hostIPs", "192.0.2.1,2001:db8::1"),
    ];
    let env: Vec<Value> = paths.iter().map(|(path, _)| field(path)).collect();
    let made = made(
        json!({"serviceAccountName": "sa", "containers": [{"name": "c", "image": "i", "env": env}]}),
        &There::default(),
    );
    assert_eq!(variables(&made.assignment.containers[0]), paths);
}

#[test]
fn what_is_missing_is_that_containers_error_and_no_others() {
    let there = There::default().with("configmaps/cm", json!({"data": {}}));
    let from =
        |source: Value| json!({"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": source}]});
    let made = made(
        json!({"containers": [
            from(json!({"configMapKeyRef": {"name": "gone", "key": "k"}})),
            from(json!({"secretKeyRef": {"name": "gone", "key": "k"}})),
            from(json!({"configMapKeyRef": {"name": "cm", "key": "k"}})),
            {"name": "ok", "image": "i"},
        ]}),
        &there,
    );
    let errors: Vec<&str> = made.assignment.containers.iter().map(|c| c.config_error.as_str()).collect();
    assert_eq!(
        errors,
        [
            "configmap \"gone\" not found",
            "secret \"gone\" not found",
            "couldn't find key k in ConfigMap shop/cm",
            "",
        ]
    );
}

fn volume(spec: Value, there: &There) -> berth_proto::Volume {
    made(json!({"volumes": [spec], "containers": []}), there).assignment.volumes.remove(0)
}

#[test]
fn a_claim_leads_to_its_volumes_directory() {
    let claim = json!({"metadata": {"uid": "c-1"}, "spec": {"volumeName": "pv"}});
    let pv = |local: &str| json!({"spec": {"claimRef": {"uid": "c-1"}, "local": {"path": local}}});
    let spec = json!({"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}});
    let there = There::default()
        .with("persistentvolumeclaims/data-web-0", claim.clone())
        .with("persistentvolumes/pv", pv("shop-data-web-0-pv"));
    let made = volume(spec.clone(), &there);
    assert_eq!((made.error.as_str(), made.claim.as_str()), ("", "data-web-0"));
    let Some(volume::Source::Directory(directory)) = made.source else { panic!("{made:?}") };
    assert_eq!((directory.root.as_str(), directory.name.as_str()), ("", "shop-data-web-0-pv"));

    let there = There::default()
        .with("persistentvolumeclaims/data-web-0", claim)
        .with("persistentvolumes/pv", pv("/srv/data/x/"));
    let Some(volume::Source::Directory(directory)) = volume(spec, &there).source else { panic!() };
    assert_eq!((directory.root.as_str(), directory.name.as_str()), ("/srv/data", "x"));
}

#[test]
fn a_claim_to_read_only_is_mounted_so() {
    let pv = json!({"spec": {"claimRef": {"uid": "c"}, "nfs": {"server": "nas", "path": "/x"}}});
    let read_only = |modes: Value, volume_source: Value, of_pod: bool| {
        let claim = json!({"metadata": {"uid": "c"}, "spec": {"volumeName": "pv", "accessModes": modes}});
        let mut pv = pv.clone();
        pv["spec"]["nfs"]["readOnly"] = volume_source;
        let there = There::default().with("persistentvolumeclaims/c", claim).with("persistentvolumes/pv", pv);
        let reference = json!({"claimName": "c", "readOnly": of_pod});
        volume(json!({"name": "data", "persistentVolumeClaim": reference}), &there).read_only
    };
    assert!(read_only(json!(["ReadOnlyMany"]), false.into(), false), "the claim");
    assert!(read_only(json!(["ReadWriteMany"]), true.into(), false), "the volume");
    assert!(read_only(json!(["ReadWriteMany"]), false.into(), true), "the pod");
    for modes in [json!(["ReadOnlyMany", "ReadWriteOnce"]), json!(["ReadWriteOnce"]), json!([])] {
        assert!(!read_only(modes.clone(), false.into(), false), "{modes}");
    }
}

#[test]
fn a_claim_that_cannot_be_had_says_why() {
    let spec = json!({"name": "data", "persistentVolumeClaim": {"claimName": "c"}});
    let claim = |volume: &str| json!({"metadata": {"uid": "c-1"}, "spec": {"volumeName": volume}});
    let bound = There::default().with("persistentvolumeclaims/c", claim("pv"));
    let other = json!({"spec": {"claimRef": {"uid": "c-2"}, "local": {"path": "/x/y"}}});
    let unknown = json!({"spec": {"claimRef": {"uid": "c-1"}, "iscsi": {}}});
    for (there, error) in [
        (There::default(), "persistentvolumeclaim \"c\" not found"),
        (
            There::default().with("persistentvolumeclaims/c", claim("")),
            "persistentvolumeclaim \"c\" is not bound to a volume yet",
        ),
        (bound, "persistentvolume \"pv\" not found"),
        (
            There::default()
                .with("persistentvolumeclaims/c", claim("pv"))
                .with("persistentvolumes/pv", other),
            "persistentvolume \"pv\" is bound to another claim",
        ),
        (
            There::default()
                .with("persistentvolumeclaims/c", claim("pv"))
                .with("persistentvolumes/pv", unknown),
            "MountVolume.SetUp failed for volume \"pv\" : its kind is not supported by Berth yet (local, \
             hostPath, nfs and nfs.csi.k8s.io are)",
        ),
    ] {
        let made = volume(spec.clone(), &there);
        assert_eq!((made.error.as_str(), made.source), (error, None));
    }
}

#[test]
fn files_come_from_config_maps_and_secrets_with_items_and_modes() {
    let there = There::default()
        .with("configmaps/cm", json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}}))
        .with("secrets/s", json!({"data": {"k": "c2VjcmV0"}}));
    let Some(volume::Source::Files(all)) =
        volume(json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 256}}), &there).source
    else {
        panic!()
    };
    let shown: Vec<_> = all.files.iter().map(|f| (f.path.as_str(), f.content.as_slice(), f.mode)).collect();
    assert_eq!(shown, [("a", &b"1"[..], 0o400), ("b", b"2", 0o400), ("c", b"\0\x01", 0o400)]);
    assert!(!all.secret);

    let items = json!({"name": "v", "secret": {
        "secretName": "s", "items": [{"key": "k", "path": "dir/key", "mode": 384}],
    }});
    let Some(volume::Source::Files(chosen)) = volume(items, &there).source else { panic!() };
    let file = &chosen.files[0];
    assert_eq!((file.path.as_str(), file.content.as_slice(), file.mode), ("dir/key", &b"secret"[..], 0o600));
    assert!(chosen.secret);
}

#[test]
fn files_that_are_missing_say_so_unless_they_are_optional() {
    let there = There::default().with("configmaps/cm", json!({"data": {}}));
    let error = |spec: Value| volume(spec, &there).error;
    assert_eq!(
        error(json!({"name": "v", "configMap": {"name": "gone"}})),
        "MountVolume.SetUp failed for volume \"v\" : configmap \"gone\" not found"
    );
    assert_eq!(
        error(json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "k", "path": "p"}]}})),
        "MountVolume.SetUp failed for volume \"v\" : references non-existent config key: k"
    );
    assert_eq!(error(json!({"name": "v", "secret": {"secretName": "gone", "optional": true}})), "");
    let there = There::default().with("configmaps/cm", json!({"data": {"k": "x"}}));
    let escaping = json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "k", "path": "../p"}]}});
    assert!(volume(escaping, &there).error.contains("is not a path below the volume"));
}

#[test]
fn an_empty_dir_has_its_medium_and_limit() {
    let made = volume(
        json!({"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}),
        &There::default(),
    );
    let Some(volume::Source::EmptyDir(empty)) = made.source else { panic!() };
    assert_eq!((empty.medium.as_str(), empty.size_limit), ("Memory", 64 << 20));
}

#[test]
fn probes_find_named_ports() {
    let container = one(
        json!({
            "name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"port": "web"}, "periodSeconds": 2},
            "livenessProbe": {"tcpSocket": {"port": "9090"}},
            "startupProbe": {"tcpSocket": {"port": "none"}},
            "lifecycle": {"preStop": {"exec": {"command": ["true"]}}, "postStart": {"sleep": {"seconds": 2}}},
        }),
        &There::default(),
    );
    let readiness = container.readiness.unwrap();
    assert_eq!((readiness.period_seconds, readiness.timeout_seconds, readiness.failure_threshold), (2, 1, 3));
    let Some(handler::Handler::HttpGet(get)) = readiness.handler.unwrap().handler else { panic!() };
    assert_eq!((get.port, get.path.as_str(), get.scheme.as_str()), (8080, "/", "HTTP"));
    let port = |probe: Option<berth_proto::Probe>| match probe.unwrap().handler.unwrap().handler {
        Some(handler::Handler::TcpSocket(socket)) => socket.port,
        other => panic!("{other:?}"),
    };
    assert_eq!((port(container.liveness), port(container.startup)), (9090, 0));
    assert!(matches!(container.pre_stop.unwrap().handler, Some(handler::Handler::Exec(_))));
    assert!(matches!(container.post_start.unwrap().handler, Some(handler::Handler::Sleep(_))));
}

#[test]
fn a_limit_is_also_the_request() {
    let container = one(
        json!({"name": "c", "image": "i", "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}),
        &There::default(),
    );
    let r = container.resources.unwrap();
    assert_eq!((r.cpu_request_millis, r.cpu_limit_millis), (1500, 1500));
    assert_eq!((r.memory_request_bytes, r.memory_limit_bytes), (1 << 30, 1 << 30));
}

#[test]
fn pods_have_kubernetes_quality_of_service() {
    let with = |resources: Value| pod(json!({"containers": [{"resources": resources}]}));
    let qos = |resources: Value| resources::qos_class(&with(resources));
    assert_eq!(qos(json!({})), "BestEffort");
    assert_eq!(qos(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(qos(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
}

fn encode(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn pull_secrets_of_both_formats_give_credentials() {
    let json_type = json!({"auths": {
        "https://index.docker.io/v1/": {"auth": encode("me:s:cret")},
        "registry.example:5000": {"username": "u", "password": "p"},
        "broken": {"auth": "%%%"},
    }});
    let old = json!({"quay.io": {"auth": encode("q:r")}});
    let there = There::default()
        .with("secrets/new", json!({"data": {".dockerconfigjson": encode(&json_type.to_string())}}))
        .with("secrets/old", json!({"data": {".dockercfg": encode(&old.to_string())}}));
    let made = made(
        json!({"containers": [], "imagePullSecrets": [{"name": "new"}, {"name": "gone"}, {"name": "old"}]}),
        &there,
    );
    let all: Vec<_> = made
        .assignment
        .registry_auth
        .iter()
        .map(|a| (a.registry.as_str(), a.username.as_str(), a.password.as_str()))
        .collect();
    assert_eq!(
        all,
        [("docker.io", "me", "s:cret"), ("registry.example:5000", "u", "p"), ("quay.io", "q", "r")]
    );
}

#[test]
fn dns_searches_the_namespace_first_and_takes_what_the_pod_adds() {
    let made = made(
        json!({"containers": [], "dnsConfig": {
            "nameservers": ["192.0.2.53"], "searches": ["example.org"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        }}),
        &There::default(),
    );
    let dns = made.assignment.dns.unwrap();
    assert_eq!(dns.searches, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"]);
    assert_eq!(dns.options, ["ndots:2", "edns0"]);
    assert_eq!((dns.policy.as_str(), dns.nameservers), ("ClusterFirst", vec!["192.0.2.53".to_owned()]));
}

#[test]
fn a_pods_images_are_known_before_it_has_a_host() {
    let auths = json!({"auths": {"reg.example": {"username": "u", "password": "p"}}}).to_string();
    let there = There::default().with("secrets/pull", json!({"data": {".dockerconfigjson": encode(&auths)}}));
    let container = |image: &str, policy: &str| json!({"image": image, "imagePullPolicy": policy});
    let wanted = images(
        &pod(json!({
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [container("b:1", "IfNotPresent")],
            "containers": [container("c", "Always"), container("b:1", "IfNotPresent"), container("a:1", "Never")],
        })),
        &there,
    );
    let named: Vec<(&str, &str)> =
        wanted.images.iter().map(|i| (i.image.as_str(), i.pull_policy.as_str())).collect();
    assert_eq!(named, [("a:1", "Never"), ("b:1", "IfNotPresent"), ("c", "Always")]);
    assert_eq!(wanted.registry_auth.len(), 1);
    assert_eq!(wanted.registry_auth[0].registry, "reg.example");
}

fn service(namespace: &str, name: &str, address: &str, ports: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": address, "ports": ports}})
}

/// Two Services of the pod's namespace, one headless, one of another namespace, and the API's.
fn services() -> There {
    let one = json!([{"port": 80}]);
    There::default()
        .with("services/plain", service("shop", "redis-svc", "10.43.0.7", json!([{"port": 6379, "protocol": "TCP"}])))
        .with(
            "services/named",
            service("shop", "dns", "fd00::7", json!([
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"},
            ])),
        )
        .with("services/headless", service("shop", "nginx", "None", one.clone()))
        .with("services/other", service("default", "web", "10.43.0.8", one))
        .with("services/api", service("default", "kubernetes", "10.43.0.1", json!([{"name": "https", "port": 443}])))
}

#[test]
fn services_with_an_address_are_in_the_environment_as_kubernetes_has_them() {
    let container = one(json!({"name": "c", "image": "i"}), &services());
    assert_eq!(
        variables(&container),
        [
            ("DNS_PORT", "tcp://[fd00::7]:53"),
            ("DNS_PORT_53_TCP", "tcp://[fd00::7]:53"),
            ("DNS_PORT_53_TCP_ADDR", "fd00::7"),
            ("DNS_PORT_53_TCP_PORT", "53"),
            ("DNS_PORT_53_TCP_PROTO", "tcp"),
            ("DNS_PORT_53_UDP", "udp://[fd00::7]:53"),
            ("DNS_PORT_53_UDP_ADDR", "fd00::7"),
            ("DNS_PORT_53_UDP_PORT", "53"),
            ("DNS_PORT_53_UDP_PROTO", "udp"),
            ("DNS_SERVICE_HOST", "fd00::7"),
            ("DNS_SERVICE_PORT", "53"),
            ("DNS_SERVICE_PORT_DNS", "53"),
            ("DNS_SERVICE_PORT_DNS_TCP", "53"),
            ("KUBERNETES_PORT", "tcp://10.43.0.1:443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.43.0.1:443"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.43.0.1"),
            ("KUBERNETES_PORT_443_TCP_PORT", "443"),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
            ("KUBERNETES_SERVICE_HOST", "10.43.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("REDIS_SVC_PORT", "tcp://10.43.0.7:6379"),
            ("REDIS_SVC_PORT_6379_TCP", "tcp://10.43.0.7:6379"),
            ("REDIS_SVC_PORT_6379_TCP_ADDR", "10.43.0.7"),
            ("REDIS_SVC_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_SVC_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_SVC_SERVICE_HOST", "10.43.0.7"),
            ("REDIS_SVC_SERVICE_PORT", "6379"),
        ]
    );
}

#[test]
fn a_pod_that_wants_no_links_still_hears_of_the_api() {
    let spec = json!({"enableServiceLinks": false, "containers": [{"name": "c", "image": "i"}]});
    let made = made(spec, &services());
    let names: Vec<_> = variables(&made.assignment.containers[0]).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"KUBERNETES_SERVICE_HOST"), "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("KUBERNETES_")), "{names:?}");
}

#[test]
fn what_the_pod_says_itself_wins_over_links_and_may_refer_to_them() {
    let env = json!([
        {"name": "URL", "value": "redis://$(REDIS_SVC_SERVICE_HOST)"},
        {"name": "REDIS_SVC_PORT", "value": "6379"},
    ]);
    let container =
        one(json!({"name": "c", "image": "i", "env": env, "args": ["$(REDIS_SVC_PORT)"]}), &services());
    assert_eq!(&variables(&container)[..2], [("URL", "redis://10.43.0.7"), ("REDIS_SVC_PORT", "6379")]);
    assert_eq!(container.args, ["6379"]);
    assert_eq!(variables(&container).iter().filter(|(name, _)| *name == "REDIS_SVC_PORT").count(), 1);
}

#[test]
fn a_service_that_comes_or_goes_makes_no_assignment_anew() {
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    assert!(made(spec, &services()).uses.is_empty());
}
