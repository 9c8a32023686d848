//! The spec of a pod, bare or inside a template: its defaults, what is valid, and what Berth implements of it.
//!
//! Two kinds of refusal meet here. What Kubernetes refuses is refused in Kubernetes' words
//! (pkg/apis/core/validation/validation.go). What Kubernetes allows and Berth does not implement is refused
//! with its path and "not supported by Berth yet": a field is never accepted and then ignored, so each level
//! lists the fields it knows and any other one that is set is an error.

mod container;
pub mod defaults;
pub mod scheduling;
mod volume;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::check::{self, At, Errors, invalid_each, one_of, only_supported, unsupported};
use super::names;
use crate::field::FieldError;

pub use container::QOS_RESOURCES;

const SUPPORTED: &[&str] = &[
    "containers",
    "initContainers",
    "volumes",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "nodeName",
    "nodeSelector",
    "affinity",
    "topologySpreadConstraints",
    "tolerations",
    "hostname",
    "subdomain",
    "setHostnameAsFQDN",
    "hostNetwork",
    "serviceAccountName",
    "serviceAccount",
    "securityContext",
    "imagePullSecrets",
    "enableServiceLinks",
    "schedulerName",
    "dnsPolicy",
    "dnsConfig",
    "hostAliases",
    "preemptionPolicy",
    "hostUsers",
    "os",
];

const SUPPORTED_SECURITY: &[&str] = &[
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "fsGroup",
    "fsGroupChangePolicy",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seccompProfile",
];

/// Everything wrong with a pod's spec. `claims` are the names of a StatefulSet's claim templates, which
/// containers mount as if they were volumes.
pub fn validate(spec: &At, claims: &BTreeSet<&str>) -> Errors {
    let mut errors = only_supported(spec, SUPPORTED);

    let grace = spec.get("terminationGracePeriodSeconds");
    if grace.is_null() {
        errors.push(grace.required(""));
    }
    let (mut volumes, wrong) = volume::validate(&spec.get("volumes"));
    errors.extend(wrong);
    volumes.extend(claims);
    errors.extend(container::validate(spec, &volumes, grace.int()));

    errors.extend(one_of(&spec.get("restartPolicy"), &["Always", "OnFailure", "Never"]));
    errors.extend(dns(spec));
    errors.extend(check::labels(&spec.get("nodeSelector")));
    errors.extend(scheduling::affinity(&spec.get("affinity")));
    errors.extend(scheduling::spread(&spec.get("topologySpreadConstraints")));
    errors.extend(security_context(&spec.get("securityContext")));
    for secret in spec.get("imagePullSecrets").items() {
        let name = secret.get("name");
        if !name.str().is_empty() {
            errors.extend(invalid_each(&name, names::subdomain(name.str())));
        }
    }
    for (field, rule) in [
        ("serviceAccountName", names::subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::subdomain),
        ("hostname", names::label),
        ("subdomain", names::label),
    ] {
        let at = spec.get(field);
        if !at.str().is_empty() {
            errors.extend(invalid_each(&at, rule(at.str())));
        }
    }
    errors.extend(tolerations(&spec.get("tolerations")));
    for alias in spec.get("hostAliases").items() {
        errors.extend(ip(&alias.get("ip")));
        for hostname in alias.get("hostnames").items() {
            errors.extend(invalid_each(&hostname, names::subdomain(hostname.str())));
        }
    }
    errors.extend(only_these_values(spec));
    errors
}

/// Fields that are known but of which only the default is implemented.
fn only_these_values(spec: &At) -> Errors {
    let fine = [
        (spec.get("schedulerName"), "default-scheduler"),
        (spec.get("preemptionPolicy"), "PreemptLowerPriority"),
        (spec.get("os").get("name"), "linux"),
    ];
    let mut errors: Errors = fine
        .into_iter()
        .filter(|(at, value)| !at.str().is_empty() && at.str() != *value)
        .map(|(at, _)| unsupported(&at))
        .collect();
    let users = spec.get("hostUsers");
    if users.is_set() && !users.is_true() {
        errors.push(unsupported(&users));
    }
    errors
}

fn dns(spec: &At) -> Errors {
    const POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    let (policy, config) = (spec.get("dnsPolicy"), spec.get("dnsConfig"));
    let mut errors: Errors = one_of(&policy, POLICIES).into_iter().collect();
    let (servers, searches) = (config.get("nameservers"), config.get("searches"));
    if policy.str() == "None" && config.is_null() {
        errors.push(config.required("must provide `dnsConfig` when `dnsPolicy` is None"));
        return errors;
    }
    if policy.str() == "None" && servers.is_empty() {
        errors.push(servers.required("must provide at least one DNS nameserver when `dnsPolicy` is None"));
        return errors;
    }
    if servers.len() > 3 {
        errors.push(servers.invalid("must not have more than 3 nameservers"));
    }
    errors.extend(servers.items().filter_map(|server| ip(&server)));
    if searches.len() > 32 {
        errors.push(searches.invalid("must not have more than 32 search paths"));
    }
    let characters: usize = searches.items().map(|s| s.len() + 1).sum();
    if characters > 2048 + 1 {
        errors.push(
            searches.invalid("must not have more than 2048 characters (including spaces) in the search list"),
        );
    }
    for search in searches.items().filter(|s| s.str() != ".") {
        // Underscores are allowed here, though not in names.
        let name = search.str().strip_suffix('.').unwrap_or(search.str()).replace('_', "a");
        errors.extend(invalid_each(&search, names::subdomain(&name)));
    }
    for option in config.get("options").items().filter(|o| o.get("name").str().is_empty()) {
        errors.push(option.required("must not be empty"));
    }
    errors
}

pub fn ip(at: &At) -> Option<FieldError> {
    match at.str().parse::<IpAddr>() {
        Ok(_) => None,
        Err(_) => Some(FieldError::invalid(
            &at.path,
            at.str(),
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )),
    }
}

fn security_context(at: &At) -> Errors {
    let mut errors = only_supported(at, SUPPORTED_SECURITY);
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        errors.extend(user_or_group(&at.get(field)));
    }
    for group in at.get("supplementalGroups").items() {
        errors.extend(user_or_group(&group));
    }
    errors.extend(check::one_of_if_set(&at.get("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]));
    let policy = at.get("supplementalGroupsPolicy");
    errors.extend(check::one_of_if_set(&policy, &["Merge", "Strict"]));
    if policy.str() == "Strict" {
        errors.push(unsupported(&policy));
    }
    errors.extend(seccomp(&at.get("seccompProfile")));
    errors
}

fn user_or_group(at: &At) -> Errors {
    if at.is_null() { Vec::new() } else { check::in_range(at, 0, u32::MAX.into()) }
}

/// Only `Unconfined`, which is also what nothing means.
fn seccomp(at: &At) -> Option<FieldError> {
    let kind = at.get("type");
    match kind.str() {
        _ if at.is_null() => None,
        "" => Some(kind.required("type is required when seccompProfile is set")),
        "Unconfined" if at.get("localhostProfile").is_set() => {
            Some(at.get("localhostProfile").invalid("can only be set when seccomp type is Localhost"))
        }
        "Unconfined" => None,
        "Localhost" | "RuntimeDefault" => Some(unsupported(&kind)),
        _ => Some(kind.not_supported(&["Localhost", "RuntimeDefault", "Unconfined"])),
    }
}

/// A list of tolerations.
pub fn tolerations(at: &At) -> Errors {
    let mut errors = Errors::new();
    for toleration in at.items() {
        let [key, operator, value, effect] =
            ["key", "operator", "value", "effect"].map(|field| toleration.get(field));
        if !key.str().is_empty() {
            errors.extend(invalid_each(&key, names::qualified(key.str())));
        } else if operator.str() != "Exists" {
            errors.push(FieldError::invalid(
                &operator.path,
                operator.str(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if toleration.get("tolerationSeconds").is_set() && effect.str() != "NoExecute" {
            errors.push(FieldError::invalid(
                &effect.path,
                effect.str(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator.str() {
            "Equal" | "" => {
                let wrong = names::label_value(value.str());
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(&operator.path, value.str(), wrong.join(";")));
                }
            }
            "Exists" if !value.str().is_empty() => errors.push(FieldError::invalid(
                &operator.path,
                value.str(),
                "value must be empty when `operator` is 'Exists'",
            )),
            "Exists" => {}
            _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
        }
        errors.extend(check::one_of_if_set(&effect, TAINT_EFFECTS));
    }
    errors
}

/// What a taint may do.
pub const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
