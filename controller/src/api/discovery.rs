//! Discovery: what is served, told in the three ways clients ask for it. All of it follows from the kinds.

use berth_controller_core::kinds::{ALL, Kind, Subresource};
use serde_json::{Value, json};

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// `/api`: the versions of the core group.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": versions(""),
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`: every named group.
pub fn group_list() -> Value {
    let groups: Vec<Value> = groups().iter().map(|g| group_object(g)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`; None if nothing is served there.
pub fn group(name: &str) -> Option<Value> {
    if name.is_empty() || versions(name).is_empty() {
        return None;
    }
    let mut object = group_object(name);
    object["kind"] = "APIGroup".into();
    object["apiVersion"] = "v1".into();
    Some(object)
}

/// `/api/v1` and `/apis/<group>/<version>`: an APIResourceList; None if nothing is served there.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds(group, version) {
        let mut main = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": VERBS,
        });
        lists(&mut main, kind);
        resources.push(main);
        for sub in kind.subresources {
            let shape = Shape::of(kind, *sub);
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, shape.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": shape.kind, "verbs": shape.verbs,
            });
            if (shape.group, shape.version) != (kind.group, kind.version) {
                entry["group"] = shape.group.into();
                entry["version"] = shape.version.into();
            }
            resources.push(entry);
        }
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}

/// Aggregated discovery (`apidiscovery.k8s.io`), `version` being `v2` or `v2beta1`: of the core group at
/// `/api`, of all others at `/apis`.
pub fn aggregated(core: bool, version: &str) -> Value {
    let names = if core { vec![""] } else { groups() };
    let items: Vec<Value> = names
        .iter()
        .map(|name| {
            let versions: Vec<Value> = versions(name)
                .iter()
                .map(|v| {
                    let resources: Vec<Value> = kinds(name, v).map(aggregated_resource).collect();
                    json!({"version": v, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": VERBS,
    });
    lists(&mut resource, kind);
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            let shape = Shape::of(kind, *sub);
            json!({
                "subresource": shape.name, "verbs": shape.verbs,
                "responseKind": {"group": shape.group, "version": shape.version, "kind": shape.kind},
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

/// Short names and categories, left out where there are none.
fn lists(resource: &mut Value, kind: &Kind) {
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
}

/// What a subresource takes and gives.
struct Shape {
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: String,
    verbs: &'static [&'static str],
}

impl Shape {
    fn of(kind: &Kind, sub: Subresource) -> Shape {
        let own = |name, verbs| Shape {
            name,
            group: kind.group,
            version: kind.version,
            kind: kind.kind.to_owned(),
            verbs,
        };
        match sub {
            Subresource::Status => own("status", &["get", "patch", "update"]),
            Subresource::Finalize => own("finalize", &["update"]),
            Subresource::Scale => Shape {
                name: "scale",
                group: "autoscaling",
                version: "v1",
                kind: "Scale".to_owned(),
                verbs: &["get", "patch", "update"],
            },
            // Kubernetes tells clients by this entry that evictions are possible.
            Subresource::Connect("eviction") => Shape {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction".to_owned(),
                verbs: &["create"],
            },
            Subresource::Connect("log") => own("log", &["get"]),
            Subresource::Connect("binding") => {
                Shape { kind: "Binding".to_owned(), ..own("binding", &["create"]) }
            }
            Subresource::Connect(name) => {
                let mut title = name.to_owned();
                title[..1].make_ascii_uppercase();
                Shape { kind: format!("{}{title}Options", kind.kind), ..own(name, &["create", "get"]) }
            }
        }
    }
}

fn group_object(name: &str) -> Value {
    let versions: Vec<Value> =
        versions(name).iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

/// The named groups, in the order of the kinds.
fn groups() -> Vec<&'static str> {
    let mut names = Vec::new();
    for kind in ALL {
        if !kind.group.is_empty() && !names.contains(&kind.group) {
            names.push(kind.group);
        }
    }
    names
}

fn versions(group: &str) -> Vec<&'static str> {
    let mut versions = Vec::new();
    for kind in ALL {
        if kind.group == group && !versions.contains(&kind.version) {
            versions.push(kind.version);
        }
    }
    versions
}

fn kinds<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    ALL.iter().copied().filter(move |k| k.group == group && k.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_in_each_of_the_ways() {
        for kind in ALL {
            let list = resource_list(kind.group, kind.version).unwrap();
            assert!(list["resources"].as_array().unwrap().iter().any(|r| r["name"] == kind.plural));
            let all = aggregated(kind.group.is_empty(), "v2");
            let found = all["items"].as_array().unwrap().iter().any(|group| {
                group["metadata"]["name"] == kind.group
                    && group["versions"][0]["resources"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|r| r["resource"] == kind.plural && r["responseKind"]["kind"] == kind.kind)
            });
            assert!(found, "{}", kind.kind);
        }
    }

    #[test]
    fn subresources_say_what_they_take() {
        let list = resource_list("apps", "v1").unwrap();
        let scale =
            list["resources"].as_array().unwrap().iter().find(|r| r["name"] == "statefulsets/scale").unwrap();
        assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
        let core = resource_list("", "v1").unwrap();
        let exec = core["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods/exec").unwrap();
        assert_eq!(exec["kind"], "PodExecOptions");
    }

    #[test]
    fn what_is_not_served_is_not_found() {
        assert_eq!(resource_list("apps", "v2"), None);
        assert_eq!(group("nowhere.example"), None);
        assert_eq!(group(""), None);
    }
}
