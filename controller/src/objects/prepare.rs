//! What an object is made into before it is written: the rules of creation and change, without I/O.
//!
//! The order is Kubernetes': what the system owns is put in place first, then defaults, then everything
//! that is wrong is gathered and told at once.

use berth_controller_core::kinds::{self, Kind, Subresource};
use berth_controller_core::object;
use berth_controller_core::status::Status;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{meta, scale};

/// Set by the system alone; what a client says there is not heard.
const SYSTEM: &[&str] =
    &["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Spec finalizer of what has a `finalize` subresource.
const CONTENT: &str = "kubernetes";

/// `metav1.Time`: whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Fills in kind and apiVersion, or refuses others than this endpoint's.
pub fn type_meta(kind: &Kind, value: &mut Value) -> Result<(), Status> {
    let wanted = kind.api_version();
    let Some(map) = value.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "couldn't get version/kind; json parse error: cannot unmarshal a value that is not an object into a {}",
            kind.kind
        )));
    };
    let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind_name) = (text("apiVersion"), text("kind"));
    if !kind_name.is_empty() && kind_name != kind.kind {
        let version = if api_version.is_empty() { &wanted } else { &api_version };
        return Err(Status::bad_request(format!(
            "{kind_name} in version {version:?} cannot be handled as a {}: the kind in the data does not match the kind of the URL",
            kind.kind
        )));
    }
    if !api_version.is_empty() && api_version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
        )));
    }
    map.insert("apiVersion".to_owned(), wanted.into());
    map.insert("kind".to_owned(), kind.kind.into());
    Ok(())
}

/// A new object, given what the client sent (decoded).
pub fn create(
    kind: &Kind,
    namespace: &str,
    mut value: Value,
    now: Timestamp,
    uid: &Uuid,
) -> Result<Value, Status> {
    type_meta(kind, &mut value)?;
    same_namespace(kind, namespace, &value)?;
    let metadata = object::metadata_mut(&mut value);
    match metadata.remove("resourceVersion") {
        Some(Value::String(version)) if !version.is_empty() => {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        _ => {}
    }
    for field in SYSTEM.iter().chain(&["managedFields", "selfLink"]) {
        metadata.remove(*field);
    }
    if kind.namespaced {
        metadata.insert("namespace".to_owned(), namespace.into());
    } else {
        metadata.remove("namespace");
    }
    metadata.insert("uid".to_owned(), uid.to_string().into());
    metadata.insert("creationTimestamp".to_owned(), time(now).into());
    if kind.has_generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
    let text =
        |m: &Map<String, Value>, f: &str| m.get(f).and_then(Value::as_str).unwrap_or_default().to_owned();
    let base = text(metadata, "generateName");
    if text(metadata, "name").is_empty() && !base.is_empty() {
        metadata.insert("name".to_owned(), meta::generate_name(&base, Uuid::new_v4().as_bytes()).into());
    }
    if !kind.finalizers.is_empty() {
        let mut finalizers =
            metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        for finalizer in kind.finalizers {
            if !finalizers.iter().any(|f| f == finalizer) {
                finalizers.push((*finalizer).into());
            }
        }
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
    if kind.has_status
        && let Some(map) = value.as_object_mut()
    {
        map.remove("status");
    }
    if kind.subresources.contains(&Subresource::Finalize) {
        object::map_mut(&mut value, "spec").insert("finalizers".to_owned(), json!([CONTENT]));
    }
    (kind.default)(&mut value);
    (kind.prepare_create)(&mut value);
    meta::tidy(&mut value);
    let mut errors = kinds::meta::validate(kind, &value);
    errors.extend((kind.validate)(&value));
    refuse(kind, &value, &errors)?;
    Ok(value)
}

/// The next state of an object, given what the client sent (decoded). `sub` says which part of it counts.
pub fn update(
    kind: &Kind,
    sub: Option<Subresource>,
    namespace: &str,
    name: &str,
    old: &Value,
    mut value: Value,
) -> Result<Value, Status> {
    same_namespace(kind, namespace, &value)?;
    match object::name(&value) {
        "" => {
            object::metadata_mut(&mut value).insert("name".to_owned(), name.into());
        }
        other if other != name => {
            return Err(Status::bad_request(format!(
                "the name of the object ({other}) does not match the name on the URL ({name})"
            )));
        }
        _ => {}
    }
    let (uid, version) = (object::uid(&value), super::resource_version(&value));
    if !uid.is_empty() && uid != object::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::uid(old)
        );
        return Err(Status::conflict(&kind.resource(), name, &why));
    }
    if !version.is_empty() && version != super::resource_version(old) {
        return Err(Status::modified(&kind.resource(), name));
    }
    let mut new = match sub {
        None => whole(kind, old, value),
        Some(Subresource::Status) => with_field(old, "status", value.get("status")),
        Some(Subresource::Scale) => {
            let mut new = old.clone();
            scale::write(&value, &mut new)?;
            new
        }
        Some(Subresource::Finalize) => {
            let mut new = old.clone();
            let finalizers = value["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
            let spec = object::map_mut(&mut new, "spec");
            if finalizers.is_empty() {
                spec.remove("finalizers");
            } else {
                spec.insert("finalizers".to_owned(), finalizers.into());
            }
            new
        }
        Some(Subresource::Connect(sub)) => {
            return Err(Status::internal(format!("{sub} is not written like an object")));
        }
    };
    (kind.default)(&mut new);
    if sub.is_none() {
        (kind.prepare_update)(old, &mut new);
    }
    meta::tidy(&mut new);
    let mut errors = Vec::new();
    // A status is written by those who observe, often beside an object that was valid under older rules.
    if matches!(sub, None | Some(Subresource::Scale)) {
        errors.extend(kinds::meta::validate(kind, &new));
        errors.extend(kinds::meta::validate_update(old, &new));
        errors.extend((kind.validate)(&new));
        if errors.is_empty() {
            errors.extend((kind.validate_update)(old, &new));
        }
    }
    refuse(kind, &new, &errors)?;
    if kind.has_generation && new.get("spec") != old.get("spec") {
        let generation = object::generation(old) + 1;
        object::metadata_mut(&mut new).insert("generation".to_owned(), generation.into());
    }
    Ok(new)
}

/// Whether two states differ in nothing that counts.
pub fn same(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return old == new };
    old.len() == new.len()
        && old.iter().all(|(field, before)| match (field.as_str(), new.get(field)) {
            (_, None) => false,
            ("metadata", Some(after)) => same_metadata(before, after),
            (_, Some(after)) => before == after,
        })
}

fn same_metadata(old: &Value, new: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        if let Some(map) = v.as_object_mut() {
            map.remove("resourceVersion");
        }
        v
    };
    strip(old) == strip(new)
}

/// Whether an object has no reason left to be there: its deletion was asked for, its grace is over, and
/// nobody's finalizer holds it.
pub fn removable(kind: &Kind, value: &Value) -> bool {
    let metadata = &value["metadata"];
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    object::deleting(value)
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or_default() == 0
        && none(&metadata["finalizers"])
        && (!kind.subresources.contains(&Subresource::Finalize) || none(&value["spec"]["finalizers"]))
}

/// The whole object as sent, but what the system owns as it was.
fn whole(kind: &Kind, old: &Value, mut value: Value) -> Value {
    if kind.has_status {
        value = with_field(&value, "status", old.get("status"));
    }
    let before = &old["metadata"];
    let metadata = object::metadata_mut(&mut value);
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    for field in SYSTEM.iter().chain(&["resourceVersion", "namespace", "generateName"]) {
        match before.get(*field) {
            Some(kept) => {
                metadata.insert((*field).to_owned(), kept.clone());
            }
            None => {
                metadata.remove(*field);
            }
        }
    }
    value
}

fn with_field(object: &Value, field: &str, content: Option<&Value>) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        match content {
            Some(content) => {
                map.insert(field.to_owned(), content.clone());
            }
            None => {
                map.remove(field);
            }
        }
    }
    object
}

fn same_namespace(kind: &Kind, namespace: &str, value: &Value) -> Result<(), Status> {
    let said = object::namespace(value);
    if kind.namespaced && !said.is_empty() && said != namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({said} and {namespace})"
        )));
    }
    Ok(())
}

fn refuse(
    kind: &Kind,
    value: &Value,
    errors: &[berth_controller_core::field::FieldError],
) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(kind.kind, kind.group, object::name(value), errors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_controller_core::kinds::by_resource;
    use proptest::prelude::*;

    fn kind(group: &str, plural: &str) -> Kind {
        // The generic rules alone: what this kind adds is tested where it is defined.
        Kind {
            default: |_| {},
            prepare_create: |_| {},
            prepare_update: |_, _| {},
            validate: |_| Vec::new(),
            validate_update: |_, _| Vec::new(),
            ..*by_resource(group, "v1", plural).unwrap()
        }
    }

    fn sets() -> Kind {
        Kind { has_status: true, has_generation: true, ..kind("apps", "statefulsets") }
    }

    fn made(value: Value) -> Value {
        create(&sets(), "ns", value, "2026-11-21T08:45:09.5Z".parse().unwrap(), &Uuid::nil()).unwrap()
    }

    #[test]
    fn the_system_owns_uid_times_generation_and_status_of_a_new_object() {
        let object = made(json!({
            "metadata": {"name": "web", "uid": "mine", "creationTimestamp": "x", "generation": 7,
                         "deletionTimestamp": "2026-11-21T08:45:09Z", "managedFields": [{}]},
            "spec": {"replicas": 1}, "status": {"replicas": 5},
        }));
        assert_eq!(
            object,
            json!({
                "apiVersion": "apps/v1", "kind": "StatefulSet",
                "metadata": {"name": "web", "namespace": "ns", "uid": Uuid::nil().to_string(),
                             "creationTimestamp": "2026-11-21T08:45:09Z", "generation": 1},
                "spec": {"replicas": 1},
            })
        );
    }

    #[test]
    fn a_generated_name_keeps_its_beginning() {
        let object = made(json!({"metadata": {"generateName": "job-"}}));
        let name = object["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("job-") && name.len() == 9, "{name}");
    }

    #[test]
    fn the_generation_counts_changes_of_the_spec_only() {
        let old = made(json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}}));
        let change = |sub, f: &dyn Fn(&mut Value)| {
            let mut value = old.clone();
            f(&mut value);
            update(&sets(), sub, "ns", "web", &old, value).unwrap()
        };
        let labelled = change(None, &|v| v["metadata"]["labels"] = json!({"a": "b"}));
        assert_eq!(object::generation(&labelled), 1);
        let scaled = change(None, &|v| v["spec"]["replicas"] = json!(2));
        assert_eq!(object::generation(&scaled), 2);
        let status = change(Some(Subresource::Status), &|v| {
            v["spec"]["replicas"] = json!(3);
            v["status"] = json!({"replicas": 1});
        });
        assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(1), &json!(1)));
        assert_eq!(object::generation(&status), 1);
        let kept = update(&sets(), None, "ns", "web", &status, old.clone()).unwrap();
        assert_eq!(kept["status"]["replicas"], 1, "a write of the object leaves the status alone");
    }

    #[test]
    fn a_scale_writes_replicas_and_nothing_else() {
        let old = made(json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}}));
        let mut view = scale::of(&old);
        view["spec"]["replicas"] = json!(4);
        view["metadata"]["labels"] = json!({"a": "b"});
        let new = update(&sets(), Some(Subresource::Scale), "ns", "web", &old, view).unwrap();
        assert_eq!(new["spec"]["replicas"], 4);
        assert_eq!(object::generation(&new), 2);
        assert!(new["metadata"]["labels"].is_null());
    }

    #[test]
    fn another_uid_version_name_or_namespace_is_refused() {
        let mut old = made(json!({"metadata": {"name": "web"}}));
        old["metadata"]["resourceVersion"] = json!("5");
        let refused = |f: &dyn Fn(&mut Value)| {
            let mut value = old.clone();
            f(&mut value);
            update(&sets(), None, "ns", "web", &old, value).unwrap_err()
        };
        assert_eq!(refused(&|v| v["metadata"]["uid"] = json!("other")).code, 409);
        assert_eq!(refused(&|v| v["metadata"]["resourceVersion"] = json!("4")).code, 409);
        assert_eq!(
            refused(&|v| v["metadata"]["name"] = json!("other")).message,
            "the name of the object (other) does not match the name on the URL (web)"
        );
        assert_eq!(refused(&|v| v["metadata"]["namespace"] = json!("other")).code, 400);
    }

    #[test]
    fn nothing_changed_is_seen_whatever_the_version_says() {
        let old = made(json!({"metadata": {"name": "web", "labels": {}}, "spec": {"replicas": 1}}));
        let mut stored = old.clone();
        stored["metadata"]["resourceVersion"] = json!("5");
        assert!(same(&stored, &old));
        stored["spec"]["replicas"] = json!(2);
        assert!(!same(&stored, &old));
    }

    #[test]
    fn finalizers_and_grace_hold_a_deleted_object() {
        let kind = sets();
        let deleted = |more: Value| {
            let mut v = json!({"metadata": {"deletionTimestamp": "2026-11-21T08:45:09Z"}});
            for (k, x) in more.as_object().unwrap() {
                v["metadata"][k] = x.clone();
            }
            v
        };
        assert!(removable(&kind, &deleted(json!({}))));
        assert!(removable(&kind, &deleted(json!({"deletionGracePeriodSeconds": 0, "finalizers": []}))));
        assert!(!removable(&kind, &deleted(json!({"deletionGracePeriodSeconds": 30}))));
        assert!(!removable(&kind, &deleted(json!({"finalizers": ["x/y"]}))));
        assert!(!removable(&kind, &json!({"metadata": {}})));
    }

    #[test]
    fn a_namespace_is_held_by_its_content() {
        let kind = kind("", "namespaces");
        let kind = Kind { subresources: &[Subresource::Finalize], ..kind };
        let value =
            create(&kind, "", json!({"metadata": {"name": "a"}}), Timestamp::UNIX_EPOCH, &Uuid::nil())
                .unwrap();
        assert_eq!(value["spec"]["finalizers"], json!(["kubernetes"]));
        let mut old = value.clone();
        old["metadata"]["deletionTimestamp"] = json!("2026-11-21T08:45:09Z");
        assert!(!removable(&kind, &old));
        let done = json!({"metadata": {"name": "a"}, "spec": {"finalizers": []}});
        let new = update(&kind, Some(Subresource::Finalize), "", "a", &old, done).unwrap();
        assert!(removable(&kind, &new));
    }

    #[test]
    fn another_kind_than_the_url_says_is_refused() {
        let error = type_meta(&sets(), &mut json!({"apiVersion": "v1", "kind": "Pod"})).unwrap_err();
        assert!(
            error.message.starts_with("Pod in version \"v1\" cannot be handled as a StatefulSet"),
            "{error}"
        );
        let error =
            type_meta(&sets(), &mut json!({"apiVersion": "apps/v2", "kind": "StatefulSet"})).unwrap_err();
        assert_eq!(
            error.message,
            "the API version in the data (apps/v2) does not match the expected API version (apps/v1)"
        );
    }

    /// Metadata that a client might send, sane or not.
    fn metadata() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            Just(json!("2026-11-21T08:45:09Z")),
            Just(json!(["a.b/c"])),
            Just(json!({"a": "b"})),
            (0..9i64).prop_map(Value::from),
        ];
        let field = prop::sample::select(
            SYSTEM
                .iter()
                .chain(&["labels", "annotations", "finalizers", "selfLink", "managedFields"])
                .copied()
                .collect::<Vec<_>>(),
        );
        prop::collection::btree_map(field, leaf, 0..6).prop_map(|fields| json!(fields))
    }

    proptest! {
        #[test]
        fn no_client_changes_what_the_system_owns(
            mut sent in metadata(),
            deleted in any::<bool>(),
            replicas in 0..3,
            sub in prop::sample::select(vec![None, Some(Subresource::Status), Some(Subresource::Scale)]),
        ) {
            let mut old = made(json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}}));
            if deleted {
                old["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                old["metadata"]["deletionGracePeriodSeconds"] = json!(30);
            }
            sent["name"] = json!("web");
            sent.as_object_mut().unwrap().remove("uid");
            let value = json!({"metadata": sent, "spec": {"replicas": replicas}, "status": {"replicas": 1}});
            if let Ok(new) = update(&sets(), sub, "ns", "web", &old, value) {
                for field in SYSTEM.iter().filter(|f| **f != "generation") {
                    prop_assert_eq!(&new["metadata"][*field], &old["metadata"][*field]);
                }
                let changed = new["spec"] != old["spec"];
                prop_assert_eq!(object::generation(&new), object::generation(&old) + i64::from(changed));
                let again = update(&sets(), sub, "ns", "web", &new, new.clone());
                if sub != Some(Subresource::Scale) {
                    prop_assert!(same(&new, &again.unwrap()), "an object written back is the same object");
                }
            }
        }
    }
}
