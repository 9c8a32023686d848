//! Containers and init containers: names, ports, environment, mounts, resources, probes and hooks.

use std::collections::BTreeSet;

use crate::field::FieldError;
use crate::kinds::check::{
    self, At, Errors, Unique, invalid_each, label_name, nonnegative, one_of, only_supported,
    port_number_or_name, unsupported,
};
use crate::kinds::names;
use crate::quantity::Quantity;

/// The resources that decide a pod's quality of service; also all that containers may ask for.
pub const QOS_RESOURCES: &[&str] = &["cpu", "memory"];

const SUPPORTED: &[&str] = &[
    "name",
    "image",
    "imagePullPolicy",
    "command",
    "args",
    "workingDir",
    "env",
    "envFrom",
    "ports",
    "resources",
    "volumeMounts",
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
    "lifecycle",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
];

const SUPPORTED_SECURITY: &[&str] = &[
    "privileged",
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "capabilities",
    "procMount",
    "seccompProfile",
];

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// The fields of a pod that an environment variable may take.
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that have a name here, but that no environment variable may take.
const OTHER_FIELD_PATHS: &[&str] =
    &["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"];

/// All containers of a spec. `volumes` are the names that may be mounted, `grace` the pod's grace period.
pub fn validate(spec: &At, volumes: &BTreeSet<&str>, grace: Option<i64>) -> Errors {
    let mut errors = Errors::new();
    let (main, init) = (spec.get("containers"), spec.get("initContainers"));
    if main.is_empty() {
        errors.push(main.required(""));
    }
    let mut unique = Unique::default();
    for container in main.items() {
        errors.extend(common(&container, volumes));
        errors.extend(unique.check(&container.get("name")));
        errors.extend(lifecycle(&container.get("lifecycle"), grace));
        for name in PROBES {
            errors.extend(probe(&container.get(name), name));
        }
        let restart = container.get("restartPolicy");
        if restart.is_set() {
            errors.push(restart.forbidden("may not be set for non-init containers"));
        }
    }
    errors.extend(host_ports(&main, spec.get("hostNetwork").is_true()));
    for container in init.items() {
        errors.extend(common(&container, volumes));
        errors.extend(unique.check(&container.get("name")));
        let restart = container.get("restartPolicy");
        if !restart.is_zero() {
            errors.push(unsupported(&restart));
        }
        for name in PROBES.iter().chain(&["lifecycle"]) {
            if container.get(name).is_set() {
                errors.push(
                    container
                        .get(name)
                        .forbidden("may not be set for init containers without restartPolicy=Always"),
                );
            }
        }
    }
    errors
}

/// What holds for every container.
fn common(container: &At, volumes: &BTreeSet<&str>) -> Errors {
    let known = [SUPPORTED, &["restartPolicy"]].concat();
    let mut errors = only_supported(container, &known);
    errors.extend(label_name(&container.get("name")));

    let image = container.get("image");
    if image.str().is_empty() {
        errors.push(image.required(""));
    } else if image.str().trim() != image.str() {
        errors.push(image.invalid("must not have leading or trailing whitespace"));
    }
    errors.extend(one_of(&container.get("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"]));
    errors.extend(ports(&container.get("ports")));
    errors.extend(env(&container.get("env")));
    errors.extend(env_from(&container.get("envFrom")));
    errors.extend(mounts(&container.get("volumeMounts"), volumes));
    errors.extend(one_of(&container.get("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]));
    errors.extend(resources(&container.get("resources")));
    errors.extend(security_context(&container.get("securityContext")));
    let stdin = container.get("stdin");
    if stdin.is_true() && !container.get("tty").is_true() {
        errors.push(stdin.forbidden("not supported by Berth yet unless tty is true"));
    }
    errors
}

fn ports(at: &At) -> Errors {
    let mut errors = Errors::new();
    let mut unique = Unique::default();
    for port in at.items() {
        let (name, number) = (port.get("name"), port.get("containerPort"));
        if !name.str().is_empty() {
            let wrong = names::port_name(name.str());
            if wrong.is_empty() {
                errors.extend(unique.check(&name));
            }
            errors.extend(invalid_each(&name, wrong));
        }
        if number.is_zero() {
            errors.push(number.required(""));
        } else {
            errors.extend(check::port_number(&number));
        }
        let (host_port, host_ip) = (port.get("hostPort"), port.get("hostIP"));
        if !host_port.is_zero() {
            errors.extend(check::port_number(&host_port));
        }
        if !host_ip.str().is_empty() {
            errors.extend(super::ip(&host_ip));
        }
        errors.extend(one_of(&port.get("protocol"), &["SCTP", "TCP", "UDP"]));
    }
    errors
}

/// A port of the host is one container's. On the host's network the container's ports are the host's; in a template
/// it may be left out, since the pod's own default fills it in.
fn host_ports(containers: &At, on_host: bool) -> Errors {
    let mut errors = Errors::new();
    let mut taken = BTreeSet::new();
    for port in containers.items().flat_map(|container| container.get("ports").items()) {
        let host_port = port.get("hostPort");
        if host_port.is_zero() {
            continue;
        }
        let wanted =
            format!("{}/{}/{}", port.get("protocol").str(), port.get("hostIP").str(), host_port.value);
        if taken.contains(&wanted) {
            errors.push(FieldError::duplicate(&host_port.path, wanted));
        } else {
            taken.insert(wanted);
        }
        if on_host && host_port.int() != port.get("containerPort").int() {
            errors.push(host_port.invalid("must match `containerPort` when `hostNetwork` is true"));
        }
    }
    errors
}

fn env(at: &At) -> Errors {
    let mut errors = Errors::new();
    for variable in at.items() {
        let name = variable.get("name");
        if name.str().is_empty() {
            errors.push(name.required(""));
        } else {
            errors.extend(invalid_each(&name, names::env_var(name.str())));
        }
        let from = variable.get("valueFrom");
        if from.is_set() {
            errors.extend(value_from(&from, !variable.get("value").str().is_empty()));
        }
    }
    errors
}

fn value_from(from: &At, has_value: bool) -> Errors {
    const SOURCES: &[&str] = &["fieldRef", "configMapKeyRef", "secretKeyRef"];
    let mut errors = only_supported(from, SOURCES);
    let refused = errors.len();
    let field = from.get("fieldRef");
    if field.is_set() {
        errors.extend(field_ref(&field));
    }
    for reference in [from.get("configMapKeyRef"), from.get("secretKeyRef")].iter().filter(|r| r.is_set()) {
        let (name, key) = (reference.get("name"), reference.get("key"));
        let wrong = names::subdomain(name.str()).into_iter();
        errors.extend(wrong.map(|m| FieldError::invalid(&name.path, name.str(), m)));
        if key.str().is_empty() {
            errors.push(key.required(""));
        } else {
            errors.extend(invalid_each(&key, names::config_key(key.str())));
        }
    }
    let says = match SOURCES.iter().filter(|source| from.get(source).is_set()).count() + refused {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        _ if has_value => "may not be specified when `value` is not empty",
        1 => return errors,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(&from.path, "", says));
    errors
}

fn field_ref(at: &At) -> Errors {
    let (version, path) = (at.get("apiVersion"), at.get("fieldPath"));
    if version.str().is_empty() {
        return vec![version.required("")];
    }
    if path.str().is_empty() {
        return vec![path.required("")];
    }
    let cannot_convert = |why: String| vec![path.invalid(format!("error converting fieldPath: {why}"))];
    if version.str() != "v1" {
        return cannot_convert(format!("unsupported pod version: {}", version.str()));
    }
    if let Some((map, key)) = path.str().strip_suffix("']").and_then(|p| p.split_once("['")) {
        let wrong = match map {
            "metadata.labels" => names::qualified(key),
            "metadata.annotations" => names::qualified(&key.to_lowercase()),
            _ => return cannot_convert(format!("field label does not support subscript: {}", path.str())),
        };
        return wrong.into_iter().map(|m| FieldError::invalid(&at.path, key, m)).collect();
    }
    match path.str() {
        known if FIELD_PATHS.contains(&known) => Vec::new(),
        other if OTHER_FIELD_PATHS.contains(&other) => vec![path.not_supported(FIELD_PATHS)],
        other => cannot_convert(format!("field label not supported: {other}")),
    }
}

fn env_from(at: &At) -> Errors {
    let mut errors = Errors::new();
    for source in at.items() {
        errors.extend(only_supported(&source, &["prefix", "configMapRef", "secretRef"]));
        let prefix = source.get("prefix");
        if !prefix.str().is_empty() {
            errors.extend(invalid_each(&prefix, names::env_var(prefix.str())));
        }
        let references = [source.get("configMapRef"), source.get("secretRef")];
        for reference in references.iter().filter(|r| r.is_set()) {
            let name = reference.get("name");
            if name.str().is_empty() {
                errors.push(name.required(""));
            } else {
                errors.extend(invalid_each(&name, names::subdomain(name.str())));
            }
        }
        let says = match references.iter().filter(|r| r.is_set()).count() {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        // Kubernetes names the list here, not its element.
        errors.push(FieldError::invalid(&at.path, "", says));
    }
    errors
}

fn mounts(at: &At, volumes: &BTreeSet<&str>) -> Errors {
    const KNOWN: &[&str] = &["name", "mountPath", "readOnly", "mountPropagation", "recursiveReadOnly"];
    let mut errors = Errors::new();
    let mut paths = Unique::default();
    for mount in at.items() {
        errors.extend(only_supported(&mount, KNOWN));
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        if name.str().is_empty() {
            errors.push(name.required(""));
        } else if !volumes.contains(name.str()) {
            errors.push(name.not_found());
        }
        if path.str().is_empty() {
            errors.push(path.required(""));
        }
        if paths.check(&path).is_some() {
            errors.push(path.invalid("must be unique"));
        }
        for (field, default) in [("mountPropagation", "None"), ("recursiveReadOnly", "Disabled")] {
            let value = mount.get(field);
            if !value.str().is_empty() && value.str() != default {
                errors.push(unsupported(&value));
            }
        }
    }
    errors
}

fn resources(at: &At) -> Errors {
    let mut errors = only_supported(at, &["limits", "requests"]);
    let (limits, requests) = (at.get("limits"), at.get("requests"));
    for (name, amount) in limits.entries() {
        errors.extend(resource(name, &amount));
    }
    for (name, amount) in requests.entries() {
        errors.extend(resource(name, &amount));
        let limit = limits.key(name);
        if let (Ok(asked), Ok(most)) = (Quantity::of(amount.value), Quantity::of(limit.value))
            && asked > most
        {
            errors.push(FieldError::invalid(
                &requests.path,
                asked.to_string(),
                format!("must be less than or equal to {name} limit of {most}"),
            ));
        }
    }
    errors
}

fn resource(name: &str, amount: &At) -> Errors {
    if !QOS_RESOURCES.contains(&name) {
        if name.contains('/') || name == "ephemeral-storage" || name.starts_with("hugepages-") {
            return vec![unsupported(amount)];
        }
        return [
            "must be a standard resource type or fully qualified",
            "must be a standard resource for containers",
        ]
        .map(|says| FieldError::invalid(&amount.path, name, says))
        .into();
    }
    check::quantity(amount).into_iter().collect()
}

fn security_context(at: &At) -> Errors {
    let mut errors = only_supported(at, SUPPORTED_SECURITY);
    for field in ["runAsUser", "runAsGroup"] {
        errors.extend(super::user_or_group(&at.get(field)));
    }
    let proc_mount = at.get("procMount");
    errors.extend(check::one_of_if_set(&proc_mount, &["Default", "Unmasked"]));
    if proc_mount.str() == "Unmasked" {
        errors.push(unsupported(&proc_mount));
    }
    errors.extend(super::seccomp(&at.get("seccompProfile")));
    if at.get("allowPrivilegeEscalation").value == &serde_json::Value::Bool(false) {
        if at.get("privileged").is_true() {
            errors
                .push(at.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true"));
        }
        if at.get("capabilities").get("add").items().any(|c| c.str() == "CAP_SYS_ADMIN") {
            errors.push(at.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            ));
        }
    }
    errors
}

fn probe(at: &At, which: &str) -> Errors {
    const NUMBERS: [&str; 5] =
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    const HANDLERS: [&str; 3] = ["exec", "httpGet", "tcpSocket"];
    if at.is_null() {
        return Vec::new();
    }
    let known = [&HANDLERS[..], &NUMBERS, &["terminationGracePeriodSeconds"]].concat();
    let mut errors = only_supported(at, &known);
    errors.extend(handler(at, &HANDLERS, None, !errors.is_empty()));
    errors.extend(NUMBERS.iter().filter_map(|number| nonnegative(&at.get(number))));

    let grace = at.get("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|seconds| seconds <= 0) {
        errors.push(grace.invalid("must be greater than 0"));
    }
    let successes = at.get("successThreshold");
    if which == "readinessProbe" {
        if grace.is_set() {
            errors.push(grace.invalid("must not be set for readinessProbes"));
        }
    } else if successes.int() != Some(1) {
        errors.push(successes.invalid("must be 1"));
    }
    errors
}

fn lifecycle(at: &At, grace: Option<i64>) -> Errors {
    const HANDLERS: [&str; 3] = ["exec", "httpGet", "sleep"];
    let mut errors = only_supported(at, &["postStart", "preStop"]);
    for hook in [at.get("postStart"), at.get("preStop")].iter().filter(|h| h.is_set()) {
        let refused = only_supported(hook, &HANDLERS);
        errors.extend(handler(hook, &HANDLERS, grace, !refused.is_empty()));
        errors.extend(refused);
    }
    errors
}

/// What a probe or hook does: exactly one of `kinds`. With `other`, a handler was refused already.
fn handler(at: &At, kinds: &[&str], grace: Option<i64>, other: bool) -> Errors {
    let mut errors = Errors::new();
    let mut given = 0;
    for action in kinds.iter().map(|kind| at.get(kind)).filter(At::is_set) {
        given += 1;
        if given > 1 {
            errors.push(action.forbidden("may not specify more than 1 handler type"));
        }
    }
    if given == 0 && !other {
        errors.push(at.required("must specify a handler type"));
    }

    let [exec, http, tcp, sleep] = ["exec", "httpGet", "tcpSocket", "sleep"].map(|kind| at.get(kind));
    if exec.is_set() && exec.get("command").is_empty() {
        errors.push(exec.get("command").required(""));
    }
    if http.is_set() {
        if http.get("path").str().is_empty() {
            errors.push(http.get("path").required(""));
        }
        errors.extend(port_number_or_name(&http.get("port")));
        errors.extend(one_of(&http.get("scheme"), &["HTTP", "HTTPS"]));
        let headers = http.get("httpHeaders");
        for header in headers.items() {
            let name = header.get("name").str();
            let wrong = names::http_header(name).into_iter();
            errors.extend(wrong.map(|m| FieldError::invalid(&headers.path, name, m)));
        }
    }
    if tcp.is_set() {
        errors.extend(port_number_or_name(&tcp.get("port")));
    }
    if let (Some(seconds), Some(grace)) = (sleep.get("seconds").int().filter(|_| sleep.is_set()), grace)
        && !(0..=grace).contains(&seconds)
    {
        errors.push(FieldError::invalid(
            &sleep.path,
            seconds,
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
        ));
    }
    errors
}
