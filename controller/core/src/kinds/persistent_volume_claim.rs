//! PersistentVolumeClaim: what a pod asks storage for. The spec's rules also hold for a StatefulSet's claim
//! templates.

use serde_json::{Value, json};

use super::check::{
    self, At, Errors, differences, invalid_each, one_of_if_set, only_supported, positive_quantity,
    unsupported,
};
use super::columns::{self, list, or, text};
use super::{Kind, Subresource, default, names};
use crate::quantity::{self, Quantity};

/// The annotation that named a class before `storageClassName` did; still honoured.
pub const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
    subresources: &[Subresource::Status],
    has_status: true,
    finalizers: &["kubernetes.io/pvc-protection"],
    default: defaults,
    prepare_create: |claim| {
        if let Some(claim) = claim.as_object_mut() {
            claim.insert("status".into(), json!({"phase": "Pending"}));
        }
    },
    validate: |claim| validate_spec(&At::root(claim).get("spec")),
    validate_update,
    columns: &[
        columns::NAME,
        text("Status", "The claim's phase.", |claim, _| phase(claim)),
        text("Volume", "The volume the claim is bound to.", |claim, _| or(&claim["spec"]["volumeName"], "")),
        text("Capacity", "The size of the volume.", |claim, _| {
            if is_bound(claim) { storage(&claim["status"]["capacity"]) } else { "".into() }
        }),
        text("Access Modes", "How the volume may be mounted.", |claim, _| {
            if is_bound(claim) { access_modes(&claim["status"]["accessModes"]).into() } else { "".into() }
        }),
        text("StorageClass", "The class the volume comes from.", |claim, _| class(claim).into()),
        text("VolumeAttributesClass", "Not used by Berth.", |_, _| "<unset>".into()),
        columns::AGE,
        text("VolumeMode", "Whether the volume is a file system or a device.", |claim, _| {
            or(&claim["spec"]["volumeMode"], "<unset>")
        })
        .wide(),
    ],
    ..Kind::COMMON
};

/// Kubernetes' defaults of a claim or claim template.
pub fn defaults(claim: &mut Value) {
    let spec = default::map(claim, "spec");
    default::if_absent(spec, "volumeMode", "Filesystem");
    default::empty_map(spec, "resources");
    if let Some(resources) = default::existing(spec, "resources") {
        default::quantities(resources, "requests");
        default::quantities(resources, "limits");
    }
    default::if_zero(default::map(claim, "status"), "phase", "Pending");
}

/// The class a claim names, by annotation or field; "" if none.
pub fn class(claim: &Value) -> &str {
    let annotated = claim["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    annotated.or(claim["spec"]["storageClassName"].as_str()).unwrap_or_default()
}

fn is_bound(claim: &Value) -> bool {
    claim["spec"]["volumeName"].as_str().is_some_and(|name| !name.is_empty())
}

/// The phase of a claim or volume; Terminating while it is being deleted.
pub fn phase(object: &Value) -> Value {
    if crate::object::deleting(object) { "Terminating".into() } else { or(&object["status"]["phase"], "") }
}

/// The storage in a map of quantities.
pub fn storage(quantities: &Value) -> Value {
    quantity::canonical(&quantities["storage"]).unwrap_or_else(|| "0".into()).into()
}

/// `RWO,ROX`: access modes as kubectl abbreviates them.
pub fn access_modes(modes: &Value) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let given = list(modes);
    columns::joined(short.iter().filter(|(mode, _)| given.iter().any(|m| m == mode)).map(|(_, short)| *short))
}

/// Access modes of a claim or volume, which must not be empty.
pub fn validate_access_modes(modes: &At, required: &str) -> Errors {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let mut errors = Errors::new();
    if modes.is_empty() {
        errors.push(modes.required(required));
    }
    let known = |mode: &At| MODES.contains(&mode.str());
    for mode in modes.items().filter(|mode| !known(mode)) {
        // Kubernetes names the list here, not its element.
        errors.push(At::new(modes.path.clone(), mode.value).not_supported(MODES));
    }
    let alone = |mode: &At| mode.str() == "ReadWriteOncePod";
    if modes.items().any(|m| alone(&m)) && modes.items().any(|m| known(&m) && !alone(&m)) {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// Everything wrong with the spec of a claim or of a claim template.
pub fn validate_spec(spec: &At) -> Errors {
    const SUPPORTED: &[&str] =
        &["accessModes", "resources", "selector", "storageClassName", "volumeMode", "volumeName"];
    let mut errors = only_supported(spec, SUPPORTED);
    errors.extend(validate_access_modes(&spec.get("accessModes"), "at least 1 access mode is required"));
    errors.extend(check::label_selector(&spec.get("selector")));

    let storage = spec.get("resources").get("requests").get("storage");
    let storage = At::new(spec.path.child("resources").key("storage"), storage.value);
    if storage.is_null() {
        errors.push(storage.required(""));
    } else {
        errors.extend(positive_quantity(&storage));
    }

    let class = spec.get("storageClassName");
    if !class.str().is_empty() {
        errors.extend(invalid_each(&class, names::subdomain(class.str())));
    }
    errors.extend(volume_mode(&spec.get("volumeMode")));
    errors
}

/// A directory is a file system; block devices are not implemented.
pub fn volume_mode(at: &At) -> Errors {
    let mut errors: Errors = one_of_if_set(at, &["Block", "Filesystem"]).into_iter().collect();
    if at.str() == "Block" {
        errors.push(unsupported(at));
    }
    errors
}

fn validate_update(old: &Value, new: &Value) -> Errors {
    let mut errors = Errors::new();
    let annotation = |claim: &Value| crate::object::annotation(claim, CLASS_ANNOTATION).map(str::to_owned);
    let (old_annotation, new_annotation) = (annotation(old), annotation(new));
    let (old_at, new_at) = (At::root(old).get("spec"), At::root(new).get("spec"));
    let (old_class, new_class) = (old_at.get("storageClassName"), new_at.get("storageClassName"));
    // The field may take over what the annotation said.
    let upgraded = old_class.is_null()
        && old_annotation.as_deref() == Some(new_class.str())
        && (new_annotation.is_none() || new_annotation == old_annotation);
    if old_annotation != new_annotation && !upgraded {
        let annotations = At::root(new).get("metadata").get("annotations").get(CLASS_ANNOTATION);
        errors.push(crate::field::FieldError::invalid(
            &annotations.path,
            new_annotation.clone().unwrap_or_default(),
            "field is immutable",
        ));
    }

    // What may change is put back; then nothing may differ.
    let mut rest = new_at.value.clone();
    let mut put_back = |field: &str| {
        if let Some(rest) = rest.as_object_mut() {
            rest.insert(field.to_owned(), old_at.get(field).value.clone());
        }
    };
    if old_at.get("volumeName").str().is_empty() {
        put_back("volumeName");
    }
    let matches_annotation = old_annotation.is_none_or(|class| class == new_class.str());
    if old_class.is_null() && new_class.is_set() && matches_annotation {
        put_back("storageClassName");
    }
    let request = |spec: &At| Quantity::or_zero(spec.get("resources").get("requests").get("storage").value);
    let (before, after) = (request(&old_at), request(&new_at));
    if before == after || new["status"]["phase"] == "Bound" {
        put_back("resources");
    }
    let changed = differences(&new_at.path, old_at.value, &rest);
    if !changed.is_empty() {
        errors.push(new_at.forbidden(format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
             claims\nchanged: {}",
            changed.join(", ")
        )));
    } else if before != after {
        let storage = new_at.get("resources").get("requests").get("storage");
        if after < before {
            errors.push(storage.forbidden("field can not be less than status.capacity"));
        } else if crate::object::annotation(new, crate::claims::PROVISIONER).is_none() {
            // Whether its class allows it is not known here; the loop that grows the volume tells.
            errors.push(storage.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc \
                 must support resize",
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> Value {
        let mut claim = json!({"metadata": {"name": "data-web-0"}, "spec": spec});
        defaults(&mut claim);
        claim
    }

    fn plain() -> Value {
        claim(json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}))
    }

    fn errors(spec: Value) -> Vec<String> {
        validate_spec(&At::root(&claim(spec)).get("spec")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_claim_is_a_pending_file_system_with_a_canonical_size() {
        let claim = plain();
        assert_eq!(claim["spec"]["volumeMode"], "Filesystem");
        assert_eq!(claim["status"]["phase"], "Pending");
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "1Gi");
        assert_eq!((PERSISTENT_VOLUME_CLAIM.validate)(&claim), []);
    }

    #[test]
    fn a_claim_needs_an_access_mode_and_a_size() {
        assert_eq!(
            errors(json!({})),
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ]
        );
        assert_eq!(
            errors(json!({"accessModes": ["RWO"], "resources": {"requests": {"storage": "0"}}})),
            [
                r#"spec.accessModes: Unsupported value: "RWO": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod""#,
                r#"spec.resources[storage]: Invalid value: "0": must be greater than zero"#,
            ]
        );
    }

    #[test]
    fn a_claim_cannot_change_but_may_be_bound_and_named_its_class() {
        let update = |change: fn(&mut Value)| {
            let mut new = plain();
            change(&mut new);
            validate_update(&plain(), &new).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(update(|c| c["spec"]["volumeName"] = "pv-1".into()), [""; 0]);
        assert_eq!(update(|c| c["spec"]["storageClassName"] = "local".into()), [""; 0]);
        assert_eq!(
            update(|c| c["spec"]["accessModes"] = json!(["ReadWriteMany"])),
            ["spec: Forbidden: spec is immutable after creation except resources.requests and \
              volumeAttributesClassName for bound claims\nchanged: spec.accessModes[0]"]
        );
        let resized = update(|c| {
            c["status"]["phase"] = "Bound".into();
            c["spec"]["resources"]["requests"]["storage"] = "512Mi".into();
        });
        assert_eq!(
            resized,
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
    }

    #[test]
    fn access_modes_are_abbreviated_in_a_fixed_order() {
        assert_eq!(access_modes(&json!(["ReadWriteMany", "ReadWriteOnce"])), "RWO,RWX");
    }
}
