//! What a path means.

use berth_controller_core::kinds::{self, Kind};

use super::query::decode;

/// Where a request goes.
#[derive(Debug)]
pub enum Target {
    Root,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Resources {
        group: String,
        version: String,
    },
    OpenApiV2,
    OpenApiV3Index,
    OpenApiV3(String),
    Objects(Place),
    Unknown,
}

/// Some objects, one, or a part of one.
#[derive(Clone, Debug)]
pub struct Place {
    pub kind: &'static Kind,
    /// None: all namespaces, or a kind without.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Place {
    /// "" for what has none.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}

/// Reads a path (not decoded yet).
pub fn target(path: &str) -> Target {
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() {
        return Target::Root;
    }
    let decoded: Vec<String> = trimmed.split('/').map(|s| decode(s, false)).collect();
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    match segments[..] {
        ["api"] => Target::CoreVersions,
        ["apis"] => Target::Groups,
        ["apis", group] => Target::Group(group.to_owned()),
        ["api", version] => Target::Resources { group: String::new(), version: version.to_owned() },
        ["apis", group, version] => {
            Target::Resources { group: group.to_owned(), version: version.to_owned() }
        }
        ["openapi", "v2"] => Target::OpenApiV2,
        ["openapi", "v3"] => Target::OpenApiV3Index,
        ["openapi", "v3", ..] => Target::OpenApiV3(segments[2..].join("/")),
        ["api", version, ref rest @ ..] => objects("", version, rest),
        ["apis", group, version, ref rest @ ..] => objects(group, version, rest),
        _ => Target::Unknown,
    }
}

fn objects(group: &str, version: &str, rest: &[&str]) -> Target {
    let find = |plural: &str| kinds::by_resource(group, version, plural);
    if rest.iter().any(|segment| segment.is_empty()) {
        return Target::Unknown;
    }
    // `namespaces/<ns>/<resource>`; but `namespaces/<ns>/status` is a part of the namespace itself.
    if let ["namespaces", namespace, plural, rest @ ..] = rest
        && let Some(kind) = find(plural)
    {
        if !kind.namespaced {
            return Target::Unknown;
        }
        return place(kind, Some(namespace), rest);
    }
    match rest {
        [plural, rest @ ..] => match find(plural) {
            Some(kind) if kind.namespaced && !rest.is_empty() => Target::Unknown,
            Some(kind) => place(kind, None, rest),
            None => Target::Unknown,
        },
        [] => Target::Unknown,
    }
}

fn place(kind: &'static Kind, namespace: Option<&str>, rest: &[&str]) -> Target {
    let (name, subresource) = match rest {
        [] => (None, None),
        [name] => (Some(*name), None),
        [name, subresource] => (Some(*name), Some(*subresource)),
        _ => return Target::Unknown,
    };
    Target::Objects(Place {
        kind,
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        subresource: subresource.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// plural, namespace, name and subresource, with a slash between.
    fn at(path: &str) -> Option<String> {
        match target(path) {
            Target::Objects(p) => {
                let parts = [Some(p.kind.plural.to_owned()), p.namespace, p.name, p.subresource];
                Some(parts.map(|part| part.unwrap_or("-".to_owned())).join("/"))
            }
            _ => None,
        }
    }

    #[test]
    fn paths_lead_to_objects() {
        for (path, place) in [
            ("/api/v1/pods", "pods/-/-/-"),
            ("/api/v1/namespaces/a/pods/b/log", "pods/a/b/log"),
            ("/api/v1/namespaces/a", "namespaces/-/a/-"),
            ("/api/v1/namespaces/a/finalize", "namespaces/-/a/finalize"),
            ("/apis/apps/v1/namespaces/a/statefulsets/", "statefulsets/a/-/-"),
            ("/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode", "clusterroles/-/system:node/-"),
        ] {
            assert_eq!(at(path).as_deref(), Some(place), "{path}");
        }
    }

    #[test]
    fn other_paths_lead_nowhere() {
        for path in [
            "/api/v1/pods/b",
            "/api/v1/namespaces/a/nodes",
            "/api/v2/pods",
            "/apis/apps/v1/deployments",
            "/api/v1/namespaces/a/pods/b/log/c",
            "/api/v1/namespaces//pods",
            "/apis/apps/v1/namespaces/a",
        ] {
            assert_eq!(at(path), None, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_path_leads_somewhere_or_nowhere(path in "(/(api|apis|v1|apps|namespaces|pods|openapi|v3|%[0-9a-f]{0,2}|\\PC{0,4})){0,9}/?") {
            if let Target::Objects(place) = target(&path) {
                assert!(place.name.is_some() || place.subresource.is_none());
                assert!(place.kind.namespaced || place.namespace.is_none());
            }
        }
    }
}
