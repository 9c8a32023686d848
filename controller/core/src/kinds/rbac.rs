//! RBAC: stored and served, and granting nothing while only the administrator's credentials exist.

use serde_json::Value;

use super::check::{At, Errors, invalid_each, same};
use super::columns::{self, list, text};
use super::{Column, Kind, NameRule, default, names};
use crate::field::FieldError;

const GROUP: &str = "rbac.authorization.k8s.io";

pub static ROLE: Kind = Kind {
    kind: "Role",
    plural: "roles",
    singular: "role",
    schema: "io.k8s.api.rbac.v1.Role",
    validate: |role| rules(&At::root(role).get("rules"), true),
    columns: &[columns::NAME, columns::CREATED_AT],
    ..COMMON
};

pub static CLUSTER_ROLE: Kind = Kind {
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    schema: "io.k8s.api.rbac.v1.ClusterRole",
    validate: |role| rules(&At::root(role).get("rules"), false),
    columns: &[columns::NAME, columns::CREATED_AT],
    ..COMMON
};

pub static ROLE_BINDING: Kind = Kind {
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    schema: "io.k8s.api.rbac.v1.RoleBinding",
    default: default_binding,
    validate: |binding| validate_binding(&At::root(binding), true),
    validate_update: same_role,
    columns: BINDING_COLUMNS,
    ..COMMON
};

pub static CLUSTER_ROLE_BINDING: Kind = Kind {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    default: default_binding,
    validate: |binding| validate_binding(&At::root(binding), false),
    validate_update: same_role,
    columns: BINDING_COLUMNS,
    ..COMMON
};

const COMMON: Kind = Kind {
    group: GROUP,
    name_rule: NameRule::PathSegment,
    warnings: |_| vec!["grants nothing yet: only the administrator's credentials exist".to_owned()],
    ..Kind::COMMON
};

const BINDING_COLUMNS: &[Column] = &[
    columns::NAME,
    text("Role", "The role that is granted.", |binding, _| {
        let part = |field: &str| binding["roleRef"][field].as_str().unwrap_or_default();
        format!("{}/{}", part("kind"), part("name")).into()
    }),
    columns::AGE,
    text("Users", "Users it is granted to.", |binding, _| subjects(binding, "User").into()).wide(),
    text("Groups", "Groups it is granted to.", |binding, _| subjects(binding, "Group").into()).wide(),
    text("ServiceAccounts", "Service accounts it is granted to.", |binding, _| {
        subjects(binding, "ServiceAccount").into()
    })
    .wide(),
];

fn subjects(binding: &Value, kind: &str) -> String {
    let named = list(&binding["subjects"]).iter().filter(|s| s["kind"] == kind);
    let shown: Vec<String> = named
        .map(|subject| {
            let name = subject["name"].as_str().unwrap_or_default();
            match subject["namespace"].as_str() {
                Some(namespace) if kind == "ServiceAccount" => format!("{namespace}/{name}"),
                _ => name.to_owned(),
            }
        })
        .collect();
    shown.join(", ")
}

fn rules(at: &At, namespaced: bool) -> Errors {
    at.items().flat_map(|rule| self::rule(&rule, namespaced)).collect()
}

fn rule(at: &At, namespaced: bool) -> Errors {
    let mut errors = Errors::new();
    let [verbs, groups, resources, resource_names, urls] =
        ["verbs", "apiGroups", "resources", "resourceNames", "nonResourceURLs"].map(|field| at.get(field));
    if verbs.is_empty() {
        errors.push(verbs.required("verbs must contain at least one value"));
    }
    if !urls.is_empty() {
        if namespaced {
            errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
        }
        if [&groups, &resources, &resource_names].iter().any(|list| !list.is_empty()) {
            errors.push(urls.invalid("rules cannot apply to both regular resources and non-resource URLs"));
        }
        return errors;
    }
    if groups.is_empty() {
        errors.push(groups.required("resource rules must supply at least one api group"));
    }
    if resources.is_empty() {
        errors.push(resources.required("resource rules must supply at least one resource"));
    }
    errors
}

fn default_binding(binding: &mut Value) {
    if let Some(role) = default::existing(binding, "roleRef") {
        default::if_zero(role, "apiGroup", GROUP);
    }
    for subject in default::each(binding, "subjects") {
        if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            default::if_zero(subject, "apiGroup", GROUP);
        }
    }
}

fn validate_binding(binding: &At, namespaced: bool) -> Errors {
    let mut errors = Errors::new();
    let role = binding.get("roleRef");
    let [group, kind, name] = ["apiGroup", "kind", "name"].map(|field| role.get(field));
    if group.str() != GROUP {
        errors.push(FieldError::not_supported(&group.path, group.str(), &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&kind.str()) {
        errors.push(FieldError::not_supported(&kind.path, kind.str(), kinds));
    }
    if name.str().is_empty() {
        errors.push(name.required(""));
    } else {
        errors.extend(invalid_each(&name, names::path_segment(name.str())));
    }
    errors.extend(binding.get("subjects").items().flat_map(|subject| self::subject(&subject, namespaced)));
    errors
}

fn subject(at: &At, namespaced: bool) -> Errors {
    let [kind, name, group, namespace] = ["kind", "name", "apiGroup", "namespace"].map(|field| at.get(field));
    let mut errors = Errors::new();
    if name.str().is_empty() {
        errors.push(name.required(""));
    }
    match kind.str() {
        "ServiceAccount" => {
            if !name.str().is_empty() {
                errors.extend(invalid_each(&name, names::subdomain(name.str())));
            }
            if !group.str().is_empty() {
                errors.push(group.not_supported(&[""]));
            }
            if !namespaced && namespace.str().is_empty() {
                errors.push(namespace.required(""));
            }
        }
        "User" | "Group" => {
            if group.str() != GROUP {
                errors.push(FieldError::not_supported(&group.path, group.str(), &[GROUP]));
            }
        }
        other => {
            errors.push(FieldError::not_supported(&kind.path, other, &["ServiceAccount", "User", "Group"]))
        }
    }
    errors
}

fn same_role(old: &Value, new: &Value) -> Errors {
    let (old, new) = (At::root(old).get("roleRef"), At::root(new).get("roleRef"));
    if same(old.value, new.value) { Errors::new() } else { vec![new.invalid("cannot change roleRef")] }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn binding() -> Value {
        let mut binding = json!({
            "metadata": {"name": "run-nfs-provisioner"},
            "subjects": [{"kind": "ServiceAccount", "name": "nfs-provisioner", "namespace": "default"},
                         {"kind": "User", "name": "jane"}],
            "roleRef": {"kind": "ClusterRole", "name": "runner", "apiGroup": GROUP},
        });
        default_binding(&mut binding);
        binding
    }

    #[test]
    fn a_binding_is_valid_and_warned_about() {
        assert_eq!((CLUSTER_ROLE_BINDING.validate)(&binding()), []);
        assert_eq!(
            (CLUSTER_ROLE_BINDING.warnings)(&binding()),
            ["grants nothing yet: only the administrator's credentials exist"]
        );
        assert_eq!(binding()["subjects"][1]["apiGroup"], GROUP);
        let cell = |i: usize| (CLUSTER_ROLE_BINDING.columns[i].cell)(&binding(), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(
            (cell(1), cell(3), cell(5)),
            (json!("ClusterRole/runner"), json!("jane"), json!("default/nfs-provisioner"))
        );
    }

    #[test]
    fn a_binding_keeps_its_role() {
        let mut new = binding();
        new["roleRef"]["name"] = "other".into();
        assert!(same_role(&binding(), &new)[0].to_string().ends_with("cannot change roleRef"));
    }

    #[test]
    fn a_rule_says_what_may_be_done_to_what() {
        let errors: Vec<String> =
            (ROLE.validate)(&json!({"rules": [{}]})).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
            ]
        );
    }
}
