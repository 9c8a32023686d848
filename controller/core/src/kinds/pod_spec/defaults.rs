//! Kubernetes' defaults of a pod's spec (pkg/apis/core/v1/defaults.go).

use serde_json::{Value, json};

use crate::kinds::default::{canonical, each, empty_map, existing, if_absent, if_zero, quantities};

/// The defaults that a pod has on top of a template's.
pub fn pod(spec: &mut Value) {
    template(spec);
    if_absent(spec, "enableServiceLinks", true);
    let on_host = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            request_what_is_limited(container);
            for port in each(container, "ports").filter(|_| on_host) {
                let own = port.get("containerPort").cloned().unwrap_or_default();
                if_zero(port, "hostPort", own);
            }
        }
    }
}

/// The defaults of a spec inside a template.
pub fn template(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    if_zero(spec, "restartPolicy", "Always");
    if_zero(spec, "dnsPolicy", "ClusterFirst");
    if_zero(spec, "schedulerName", "default-scheduler");
    if_absent(spec, "terminationGracePeriodSeconds", 30);
    empty_map(spec, "securityContext");
    mirror_service_account(spec);
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            self::container(container);
        }
    }
    for volume in each(spec, "volumes") {
        self::volume(volume);
    }
}

/// `serviceAccount` is the deprecated name of `serviceAccountName`; both are kept, the newer one wins.
fn mirror_service_account(spec: &mut Value) {
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        let name = spec.get(from).and_then(Value::as_str).unwrap_or_default();
        if !name.is_empty() {
            let name = name.to_owned();
            spec[to] = name.into();
            return;
        }
    }
}

fn container(container: &mut Value) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let pull = if is_latest(image) { "Always" } else { "IfNotPresent" };
    if_zero(container, "imagePullPolicy", pull);
    if_zero(container, "terminationMessagePath", "/dev/termination-log");
    if_zero(container, "terminationMessagePolicy", "File");
    empty_map(container, "resources");
    if let Some(resources) = existing(container, "resources") {
        quantities(resources, "limits");
        quantities(resources, "requests");
    }
    for port in each(container, "ports") {
        if_zero(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        if let Some(reference) = existing(variable, "valueFrom").and_then(|v| existing(v, "fieldRef")) {
            if_zero(reference, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = existing(container, name) {
            if_zero(probe, "timeoutSeconds", 1);
            if_zero(probe, "periodSeconds", 10);
            if_zero(probe, "successThreshold", 1);
            if_zero(probe, "failureThreshold", 3);
            http_get(probe);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(handler) = existing(container, "lifecycle").and_then(|l| existing(l, name)) {
            http_get(handler);
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(http) = existing(handler, "httpGet") {
        if_zero(http, "path", "/");
        if_zero(http, "scheme", "HTTP");
    }
}

fn volume(volume: &mut Value) {
    let has_source =
        volume.as_object().is_some_and(|v| v.iter().any(|(key, value)| key != "name" && !value.is_null()));
    if !has_source {
        empty_map(volume, "emptyDir");
    }
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(files) = existing(volume, source) {
            if_absent(files, "defaultMode", 0o644);
        }
    }
    if let Some(limit) = existing(volume, "emptyDir").and_then(|e| e.get_mut("sizeLimit")) {
        canonical(limit);
    }
}

/// What is limited and not requested is requested to the limit.
fn request_what_is_limited(container: &mut Value) {
    let Some(resources) = existing(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    if resources.get("requests").is_none_or(|r| !r.is_object()) {
        resources["requests"] = json!({});
    }
    let Some(requests) = existing(resources, "requests") else { return };
    for (name, limit) in limits {
        if_absent(requests, &name, limit);
    }
}

/// Whether an image names the tag `latest`, or neither tag nor digest, which means the same.
fn is_latest(image: &str) -> bool {
    if image.is_empty() || image.contains('@') {
        return false;
    }
    // A colon before the last slash belongs to the registry's port.
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None => true,
        Some((_, tag)) => tag == "latest",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(mut spec: Value) -> Value {
        pod(&mut spec);
        spec
    }

    #[test]
    fn a_plain_pod_gets_kubernetes_defaults() {
        let spec = defaulted(json!({
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
        }));
        assert_eq!(
            spec,
            json!({
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
                "containers": [{
                    "name": "c", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                }],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            })
        );
    }

    #[test]
    fn an_image_is_pulled_always_only_if_its_tag_is_latest() {
        for image in ["nginx", "nginx:latest", "registry:5000/nginx", "a.b/c/d:latest"] {
            assert!(is_latest(image), "{image}");
        }
        for image in
            ["nginx:1.27", "registry:5000/nginx:1", "nginx@sha256:abc", "nginx:latest@sha256:abc", ""]
        {
            assert!(!is_latest(image), "{image}");
        }
    }

    #[test]
    fn limits_become_requests_of_a_pod_but_not_of_a_template() {
        let spec = json!({"containers": [
            {"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}, "requests": {"cpu": "100m"}}}]});
        let mut template_spec = spec.clone();
        template(&mut template_spec);
        assert_eq!(template_spec["containers"][0]["resources"]["requests"], json!({"cpu": "100m"}));
        let resources = &defaulted(spec)["containers"][0]["resources"];
        assert_eq!(
            *resources,
            json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "1Gi"}})
        );
    }

    #[test]
    fn on_the_hosts_network_a_pods_ports_are_the_hosts() {
        let spec = json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i:1", "ports": [
            {"containerPort": 80}, {"containerPort": 81, "hostPort": 81}]}]});
        let mut of_template = spec.clone();
        template(&mut of_template);
        assert_eq!(of_template["containers"][0]["ports"][0]["hostPort"], Value::Null);
        let ports = &defaulted(spec)["containers"][0]["ports"];
        assert_eq!((&ports[0]["hostPort"], &ports[1]["hostPort"]), (&json!(80), &json!(81)));
    }

    #[test]
    fn a_grace_period_of_zero_stays_zero() {
        assert_eq!(
            defaulted(json!({"terminationGracePeriodSeconds": 0}))["terminationGracePeriodSeconds"],
            0
        );
    }

    #[test]
    fn probes_get_their_numbers_and_http_its_path() {
        let spec = defaulted(json!({"containers": [
            {"name": "c", "image": "i:1", "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0}}]}));
        assert_eq!(
            spec["containers"][0]["readinessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                   "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
    }
}
