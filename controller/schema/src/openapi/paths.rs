//! The paths: which operations a kind has, with their parameters.

use serde_json::{Map, Value, json};

use super::{Dialect, Gvk, META, Resource, Subresource, path_of};

/// Calls `sink` for every path of a kind.
pub fn of_resource(resource: &Resource, dialect: Dialect, sink: &mut dyn FnMut(&str, &Value)) {
    let root = path_of(resource.group, resource.version);
    let gvk = Gvk { group: resource.group, kind: resource.kind, version: resource.version };
    let own = resource.schema;
    let list = format!("{own}List");
    let writer = Writer { resource, dialect };

    let collection = if resource.namespaced {
        let all = writer.operation(&Verb::LIST, gvk, &list, "ForAllNamespaces");
        sink(&format!("/{root}/{}", resource.plural), &writer.item(false, false, [("get", all)]));
        format!("/{root}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("/{root}/{}", resource.plural)
    };
    let operations = [
        ("get", writer.operation(&Verb::LIST, gvk, &list, "")),
        ("post", writer.operation(&Verb::CREATE, gvk, own, "")),
        ("delete", writer.operation(&Verb::DELETE_COLLECTION, gvk, own, "")),
    ];
    sink(&collection, &writer.item(resource.namespaced, false, operations));

    let object = format!("{collection}/{{name}}");
    let operations = [
        ("get", writer.operation(&Verb::READ, gvk, own, "")),
        ("put", writer.operation(&Verb::REPLACE, gvk, own, "")),
        ("patch", writer.operation(&Verb::PATCH, gvk, own, "")),
        ("delete", writer.operation(&Verb::DELETE, gvk, own, "")),
    ];
    sink(&object, &writer.item(resource.namespaced, true, operations));

    for subresource in &resource.subresources {
        let (name, operations) = writer.subresource(subresource, gvk);
        sink(&format!("{object}/{name}"), &writer.item(resource.namespaced, true, operations));
    }
}

/// The kind that a subresource reads or writes, and its type; None for streams.
pub fn body_of<'a>(resource: &Resource, subresource: &'a Subresource) -> Option<(Gvk<'a>, &'a str)> {
    match subresource {
        Subresource::Own(_) => {
            let Resource { group, version, kind, schema, .. } = *resource;
            Some((Gvk { group, kind, version }, schema))
        }
        Subresource::Other { group, version, kind, schema, .. }
        | Subresource::Write { group, version, kind, schema, .. } => {
            Some((Gvk { group, kind, version }, schema))
        }
        Subresource::Connect("binding") => {
            Some((Gvk { group: "", kind: "Binding", version: "v1" }, "io.k8s.api.core.v1.Binding"))
        }
        Subresource::Connect("eviction") => {
            Some((Gvk { group: "policy", kind: "Eviction", version: "v1" }, "io.k8s.api.policy.v1.Eviction"))
        }
        Subresource::Connect(_) => None,
    }
}

/// What an operation does.
struct Verb {
    /// Begins the operation's id.
    name: &'static str,
    action: &'static str,
    body: Body,
    parameters: &'static [&'static Parameter],
    /// Codes besides 200.
    codes: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Object,
    Patch,
    DeleteOptions,
}

impl Verb {
    const READ: Verb = Verb { name: "read", action: "get", body: Body::None, parameters: &[], codes: &[] };
    const LIST: Verb =
        Verb { name: "list", action: "list", body: Body::None, parameters: LIST_PARAMETERS, codes: &[] };
    const CREATE: Verb = Verb {
        name: "create",
        action: "post",
        body: Body::Object,
        parameters: &[&DRY_RUN, &FIELD_MANAGER, &FIELD_VALIDATION],
        codes: &["201", "202"],
    };
    const REPLACE: Verb = Verb {
        name: "replace",
        action: "put",
        body: Body::Object,
        parameters: &[&DRY_RUN, &FIELD_MANAGER, &FIELD_VALIDATION],
        codes: &["201"],
    };
    const PATCH: Verb = Verb {
        name: "patch",
        action: "patch",
        body: Body::Patch,
        parameters: &[&DRY_RUN, &FIELD_MANAGER, &FIELD_VALIDATION, &FORCE],
        codes: &["201"],
    };
    const DELETE: Verb = Verb {
        name: "delete",
        action: "delete",
        body: Body::DeleteOptions,
        parameters: &[&DRY_RUN, &GRACE_PERIOD, &ORPHAN, &PROPAGATION],
        codes: &["202"],
    };
    const DELETE_COLLECTION: Verb = Verb {
        name: "deleteCollection",
        action: "deletecollection",
        body: Body::DeleteOptions,
        parameters: &[
            &CONTINUE,
            &DRY_RUN,
            &FIELD_SELECTOR,
            &GRACE_PERIOD,
            &LABEL_SELECTOR,
            &LIMIT,
            &ORPHAN,
            &PROPAGATION,
            &RESOURCE_VERSION,
            &RESOURCE_VERSION_MATCH,
            &TIMEOUT,
        ],
        codes: &[],
    };
    const CONNECT_GET: Verb =
        Verb { name: "connectGet", action: "connect", body: Body::None, parameters: &[], codes: &[] };
    const CONNECT_POST: Verb =
        Verb { name: "connectPost", action: "connect", body: Body::None, parameters: &[], codes: &[] };
}

/// A parameter in the query.
struct Parameter {
    name: &'static str,
    kind: &'static str,
    description: &'static str,
}

const fn parameter(name: &'static str, kind: &'static str, description: &'static str) -> Parameter {
    Parameter { name, kind, description }
}

static PRETTY: Parameter = parameter("pretty", "string", "Accepted and without effect.");
static DRY_RUN: Parameter =
    parameter("dryRun", "string", "All: everything is done and checked except storing the result.");
static FIELD_MANAGER: Parameter =
    parameter("fieldManager", "string", "The name of the client that makes the change.");
static FIELD_VALIDATION: Parameter = parameter(
    "fieldValidation",
    "string",
    "What to do with unknown and duplicate fields: Strict refuses them, Warn (the default) drops them with a \
     warning, Ignore drops them silently.",
);
static FORCE: Parameter =
    parameter("force", "boolean", "For server-side apply: take over fields of other managers.");
static GRACE_PERIOD: Parameter = parameter(
    "gracePeriodSeconds",
    "integer",
    "Seconds until the object is deleted; 0 deletes it at once. Without it, what the kind defines.",
);
static ORPHAN: Parameter = parameter("orphanDependents", "boolean", "Deprecated: use propagationPolicy.");
static PROPAGATION: Parameter = parameter(
    "propagationPolicy",
    "string",
    "What happens to objects owned by this one: Orphan, Background or Foreground.",
);
static CONTINUE: Parameter =
    parameter("continue", "string", "Goes on with a list where the answer before ended.");
static FIELD_SELECTOR: Parameter =
    parameter("fieldSelector", "string", "Only objects whose fields match, e.g. metadata.name=web.");
static LABEL_SELECTOR: Parameter =
    parameter("labelSelector", "string", "Only objects whose labels match, e.g. app=web.");
static LIMIT: Parameter = parameter("limit", "integer", "At most this many objects in one answer.");
static RESOURCE_VERSION: Parameter =
    parameter("resourceVersion", "string", "The version of the data to answer from, or to watch after.");
static RESOURCE_VERSION_MATCH: Parameter =
    parameter("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan.");
static TIMEOUT: Parameter = parameter("timeoutSeconds", "integer", "Ends a watch after this long.");
static WATCH: Parameter = parameter("watch", "boolean", "Answers with a stream of changes.");
static BOOKMARKS: Parameter =
    parameter("allowWatchBookmarks", "boolean", "A watch may send bookmarks, which carry only a version.");
static INITIAL: Parameter = parameter(
    "sendInitialEvents",
    "boolean",
    "A watch begins with all objects there are, followed by a bookmark.",
);
static LIST_PARAMETERS: &[&Parameter] = &[
    &BOOKMARKS,
    &CONTINUE,
    &FIELD_SELECTOR,
    &LABEL_SELECTOR,
    &LIMIT,
    &RESOURCE_VERSION,
    &RESOURCE_VERSION_MATCH,
    &INITIAL,
    &TIMEOUT,
    &WATCH,
];

const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

struct Writer<'a> {
    resource: &'a Resource,
    dialect: Dialect,
}

impl Writer<'_> {
    /// The operations of a subresource, with its name.
    fn subresource(
        &self,
        subresource: &Subresource,
        own: Gvk<'_>,
    ) -> (&'static str, Vec<(&'static str, Value)>) {
        let body = body_of(self.resource, subresource);
        let (gvk, schema) = body.unwrap_or((own, ""));
        let operation = |verb: &Verb, name: &str| self.operation(verb, gvk, schema, &capitalised(name));
        match subresource {
            Subresource::Own(name) | Subresource::Other { name, .. } => {
                let all = [("get", &Verb::READ), ("put", &Verb::REPLACE), ("patch", &Verb::PATCH)];
                (name, all.into_iter().map(|(m, verb)| (m, operation(verb, name))).collect())
            }
            Subresource::Write { name, method, .. } => match *method {
                "put" => (name, vec![("put", operation(&Verb::REPLACE, name))]),
                "patch" => (name, vec![("patch", operation(&Verb::PATCH, name))]),
                _ => (name, vec![("post", operation(&Verb::CREATE, name))]),
            },
            Subresource::Connect(name) if body.is_some() => {
                (name, vec![("post", operation(&Verb::CREATE, name))])
            }
            Subresource::Connect("log") => ("log", vec![("get", operation(&Verb::READ, "log"))]),
            Subresource::Connect(name) => {
                let all = [("get", &Verb::CONNECT_GET), ("post", &Verb::CONNECT_POST)];
                (name, all.into_iter().map(|(m, verb)| (m, operation(verb, name))).collect())
            }
        }
    }

    /// A path's item: its operations and the parameters in its path.
    fn item(
        &self,
        namespaced: bool,
        named: bool,
        operations: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Value {
        let mut item: Map<String, Value> = operations.into_iter().map(|(m, o)| (m.to_owned(), o)).collect();
        let mut parameters = Vec::new();
        if named {
            parameters.push(self.path_parameter("name", "The name of the object."));
        }
        if namespaced {
            parameters.push(self.path_parameter("namespace", "The object's namespace."));
        }
        parameters.push(self.query_parameter(&PRETTY));
        item.insert("parameters".into(), parameters.into());
        Value::Object(item)
    }

    /// `schema`: the type it takes and answers with, "" for text. `suffix` keeps its id unique.
    fn operation(&self, verb: &Verb, gvk: Gvk<'_>, schema: &str, suffix: &str) -> Value {
        let Resource { group, version, kind, namespaced, .. } = self.resource;
        let tag = if group.is_empty() {
            format!("core_{version}")
        } else {
            format!("{}_{version}", camel(group, false))
        };
        let title = if group.is_empty() { "Core".to_owned() } else { camel(group, true) };
        let scope = if *namespaced && suffix != "ForAllNamespaces" { "Namespaced" } else { "" };
        let mut out = json!({
            "operationId": format!("{}{title}{}{scope}{kind}{suffix}", verb.name, capitalised(version)),
            "tags": [tag],
            "description": format!("{} {kind}{}", verb.name, if suffix.is_empty() { "" } else { " " }.to_owned() + suffix),
            "x-kubernetes-action": verb.action,
            "x-kubernetes-group-version-kind": gvk.value(),
        });
        let mut parameters: Vec<Value> = verb.parameters.iter().map(|p| self.query_parameter(p)).collect();
        let answer = match verb.body {
            Body::DeleteOptions => self.dialect.reference(&format!("{META}.Status")),
            _ if schema.is_empty() => json!({"type": "string"}),
            _ => self.dialect.reference(schema),
        };
        let body = match verb.body {
            Body::None => None,
            Body::Object => Some(self.dialect.reference(schema)),
            Body::Patch => Some(self.dialect.reference(&format!("{META}.Patch"))),
            Body::DeleteOptions => Some(self.dialect.reference(&format!("{META}.DeleteOptions"))),
        };
        let required = verb.body != Body::DeleteOptions;
        let types: &[&str] = if verb.body == Body::Patch { &PATCH_TYPES } else { &["*/*"] };
        let mut codes = vec!["200"];
        codes.extend(verb.codes);
        match self.dialect {
            Dialect::V2 => {
                out["consumes"] = types.into();
                out["produces"] = json!(["application/json"]);
                out["schemes"] = json!(["https"]);
                if let Some(body) = body {
                    let place = json!({"name": "body", "in": "body", "required": required, "schema": body});
                    parameters.insert(0, place);
                }
                for code in codes {
                    out["responses"][code] = json!({"description": phrase(code), "schema": answer});
                }
            }
            Dialect::V3 => {
                if let Some(body) = body {
                    out["requestBody"] = json!({"content": {}, "required": required});
                    for content in types {
                        out["requestBody"]["content"][content] = json!({"schema": body});
                    }
                }
                for code in codes {
                    let content = json!({"application/json": {"schema": answer}});
                    out["responses"][code] = json!({"description": phrase(code), "content": content});
                }
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        out
    }

    fn query_parameter(&self, parameter: &Parameter) -> Value {
        let Parameter { name, kind, description } = parameter;
        self.typed(json!({"name": name, "in": "query", "description": description}), kind)
    }

    fn path_parameter(&self, name: &str, description: &str) -> Value {
        self.typed(
            json!({"name": name, "in": "path", "description": description, "required": true}),
            "string",
        )
    }

    fn typed(&self, mut parameter: Value, kind: &str) -> Value {
        match self.dialect {
            Dialect::V2 => {
                parameter["type"] = kind.into();
                parameter["uniqueItems"] = true.into();
            }
            Dialect::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
        }
        parameter
    }
}

fn phrase(code: &str) -> &'static str {
    match code {
        "201" => "Created",
        "202" => "Accepted",
        _ => "OK",
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `rbac.authorization.k8s.io` is `rbacAuthorization`.
fn camel(group: &str, upper: bool) -> String {
    let parts = group.strip_suffix(".k8s.io").unwrap_or(group).split('.');
    let words = parts.enumerate().map(|(i, p)| if i == 0 && !upper { p.to_owned() } else { capitalised(p) });
    words.collect()
}
