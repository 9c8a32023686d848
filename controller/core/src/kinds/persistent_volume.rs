//! PersistentVolume: one directory, on a host or an NFS server.

use serde_json::{Value, json};

use super::check::{
    At, Errors, immutable, invalid_each, one_of_if_set, only_supported, positive_quantity, same, unsupported,
};
use super::columns::{self, or, text};
use super::persistent_volume_claim::{
    CLASS_ANNOTATION, access_modes, phase, storage, validate_access_modes, volume_mode,
};
use super::{Kind, Subresource, default, names};
use crate::claims;
use crate::field::{FieldError, Path};

/// Where a volume may be. Berth knows a directory of one host (`local`), of every host (`hostPath`), and of an
/// NFS server (`nfs`, or `csi` by the NFS driver's name).
const SOURCES: &[&str] = &["hostPath", "nfs", "local", "csi"];
const NFS_DRIVER: &str = "nfs.csi.k8s.io";

pub static PERSISTENT_VOLUME: Kind = Kind {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.PersistentVolume",
    subresources: &[Subresource::Status],
    has_status: true,
    finalizers: &["kubernetes.io/pv-protection"],
    default: |volume| {
        let spec = default::map(volume, "spec");
        default::if_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
        default::if_absent(spec, "volumeMode", "Filesystem");
        default::quantities(spec, "capacity");
        if let Some(host_path) = default::existing(spec, "hostPath") {
            default::if_absent(host_path, "type", "");
        }
        default::if_zero(default::map(volume, "status"), "phase", "Pending");
    },
    prepare_create: |volume| {
        if let Some(volume) = volume.as_object_mut() {
            volume.insert("status".into(), json!({"phase": "Pending"}));
        }
    },
    validate: |volume| {
        let mut errors = validate_spec(&At::root(volume).get("spec"));
        if errors.is_empty()
            && let Err(why) = claims::location(volume)
        {
            errors.push(At::root(volume).get("spec").invalid(why));
        }
        errors
    },
    validate_update,
    columns: &[
        columns::NAME,
        text("Capacity", "The size of the volume.", |volume, _| storage(&volume["spec"]["capacity"])),
        text("Access Modes", "How the volume may be mounted.", |volume, _| {
            access_modes(&volume["spec"]["accessModes"]).into()
        }),
        text("Reclaim Policy", "What becomes of the data once the claim is deleted.", |volume, _| {
            or(&volume["spec"]["persistentVolumeReclaimPolicy"], "")
        }),
        text("Status", "The volume's phase.", |volume, _| phase(volume)),
        text("Claim", "The claim the volume is bound to.", |volume, _| {
            let claim = &volume["spec"]["claimRef"];
            let part = |field: &str| claim[field].as_str().unwrap_or_default();
            if claim.is_object() {
                format!("{}/{}", part("namespace"), part("name")).into()
            } else {
                "".into()
            }
        }),
        text("StorageClass", "The class the volume belongs to.", |volume, _| {
            let annotated = volume["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
            annotated.map_or_else(|| or(&volume["spec"]["storageClassName"], ""), Value::from)
        }),
        text("VolumeAttributesClass", "Not used by Berth.", |_, _| "<unset>".into()),
        text("Reason", "Why the volume is in its phase.", |volume, _| or(&volume["status"]["reason"], "")),
        columns::AGE,
        text("VolumeMode", "Whether the volume is a file system or a device.", |volume, _| {
            or(&volume["spec"]["volumeMode"], "<unset>")
        })
        .wide(),
    ],
    ..Kind::COMMON
};

fn validate_spec(spec: &At) -> Errors {
    const OTHERS: &[&str] = &[
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeMode",
    ];
    let refused = only_supported(spec, &[OTHERS, SOURCES].concat());
    let mut errors = validate_access_modes(&spec.get("accessModes"), "");

    let capacity = spec.get("capacity");
    if capacity.is_empty() {
        errors.push(capacity.required(""));
    } else if capacity.get("storage").is_null() || capacity.len() > 1 {
        errors.push(capacity.not_supported(&["storage"]));
    }
    errors.extend(capacity.entries().filter_map(|(_, amount)| positive_quantity(&amount)));

    let policy = spec.get("persistentVolumeReclaimPolicy");
    errors.extend(one_of_if_set(&policy, &["Delete", "Recycle", "Retain"]));
    if policy.str() == "Recycle" {
        errors.push(unsupported(&policy));
    }
    errors.extend(node_affinity(&spec.get("nodeAffinity")));
    errors.extend(sources(spec, !refused.is_empty()));
    let class = spec.get("storageClassName");
    if !class.str().is_empty() {
        errors.extend(invalid_each(&class, names::subdomain(class.str())));
    }
    errors.extend(volume_mode(&spec.get("volumeMode")));
    errors.extend(refused);
    errors
}

fn sources(spec: &At, others: bool) -> Errors {
    let mut errors = Errors::new();
    let mut given = 0;
    for source in SOURCES.iter().map(|source| spec.get(source)).filter(At::is_set) {
        given += 1;
        if given > 1 {
            errors.push(source.forbidden("may not specify more than 1 volume type"));
        }
    }
    if given == 0 && !others {
        errors.push(spec.required("must specify a volume type"));
    }

    let [host_path, nfs, local, csi] = ["hostPath", "nfs", "local", "csi"].map(|source| spec.get(source));
    for directory in [&host_path, &local].into_iter().filter(|d| d.is_set()) {
        let path = directory.get("path");
        if path.str().is_empty() {
            errors.push(path.required(""));
        } else if path.str().split('/').any(|part| part == "..") {
            errors.push(path.invalid("must not contain '..'"));
        }
    }
    if local.is_set() && spec.get("nodeAffinity").get("required").is_null() {
        errors.push(spec.get("nodeAffinity").required("Local volume requires node affinity"));
    }
    if nfs.is_set() {
        let (server, path) = (nfs.get("server"), nfs.get("path"));
        if server.str().is_empty() {
            errors.push(server.required(""));
        }
        if path.str().is_empty() {
            errors.push(path.required(""));
        }
        if !path.str().starts_with('/') {
            errors.push(FieldError::invalid(&path.path, path.str(), "must be an absolute path"));
        }
    }
    if csi.is_set() {
        let (driver, handle) = (csi.get("driver"), csi.get("volumeHandle"));
        match driver.str() {
            "" => errors.push(driver.required("")),
            NFS_DRIVER => {}
            _ => errors.push(unsupported(&driver)),
        }
        if handle.str().is_empty() {
            errors.push(handle.required(""));
        }
    }
    errors
}

fn node_affinity(at: &At) -> Errors {
    if at.is_null() {
        return Errors::new();
    }
    let required = at.get("required");
    if required.is_null() {
        return vec![required.required("must specify required node constraints")];
    }
    let terms = required.get("nodeSelectorTerms");
    if terms.is_empty() {
        return vec![terms.required("must have at least one node selector term")];
    }
    let mut errors = Errors::new();
    for term in terms.items() {
        for field in ["matchExpressions", "matchFields"] {
            errors.extend(term.get(field).items().flat_map(|expression| node_requirement(&expression)));
        }
    }
    errors
}

fn node_requirement(at: &At) -> Errors {
    let (key, operator, values) = (at.get("key"), at.get("operator"), at.get("values"));
    let mut errors = invalid_each(&At::new(key.path.clone(), key.value), names::qualified(key.str()));
    match operator.str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors
                .push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
    }
    errors
}

fn validate_update(old: &Value, new: &Value) -> Errors {
    let (old, new) = (At::root(old).get("spec"), At::root(new).get("spec"));
    let mut errors = Errors::new();
    if SOURCES.iter().any(|source| !same(old.get(source).value, new.get(source).value)) {
        let path = Path::new("spec").child("persistentvolumesource");
        errors.push(FieldError::forbidden(&path, "spec.persistentvolumesource is immutable after creation"));
    }
    errors.extend(immutable(&old.get("volumeMode"), &new.get("volumeMode")));
    if old.get("nodeAffinity").is_set() {
        errors.extend(immutable(&old.get("nodeAffinity"), &new.get("nodeAffinity")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let mut volume = json!({"metadata": {"name": "v"}, "spec": spec});
        (PERSISTENT_VOLUME.default)(&mut volume);
        (PERSISTENT_VOLUME.validate)(&volume).iter().map(ToString::to_string).collect()
    }

    fn nfs() -> Value {
        json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"],
               "nfs": {"server": "nas", "path": "/data"}, "mountOptions": ["nfsvers=4.2"]})
    }

    #[test]
    fn a_volume_is_somewhere_and_has_a_size() {
        assert_eq!(errors(nfs()), [""; 0]);
        assert_eq!(
            errors(json!({})),
            [
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec: Required value: must specify a volume type",
            ]
        );
        let mut both = nfs();
        both["hostPath"] = json!({"path": "/x"});
        assert_eq!(errors(both), ["spec.nfs: Forbidden: may not specify more than 1 volume type"]);
        let mut relative = nfs();
        relative["nfs"]["path"] = "data".into();
        assert_eq!(errors(relative), [r#"spec.nfs.path: Invalid value: "data": must be an absolute path"#]);
    }

    #[test]
    fn a_path_or_option_that_leads_elsewhere_is_refused() {
        let refused = |change: fn(&mut Value)| {
            let mut volume = nfs();
            change(&mut volume);
            errors(volume).join("; ")
        };
        assert!(refused(|v| v["nfs"]["path"] = "/data/../etc".into()).contains("has the part \"..\""));
        assert!(refused(|v| v["nfs"]["server"] = "-o x".into()).contains("neither a name nor an address"));
        assert!(refused(|v| v["mountOptions"] = json!(["remount,rw"])).contains("remount"));
        let csi = |attributes: Value| {
            let mut volume = nfs();
            volume.as_object_mut().unwrap().remove("nfs");
            volume["csi"] = json!({
                "driver": "nfs.csi.k8s.io", "volumeHandle": "x", "volumeAttributes": attributes,
            });
            errors(volume).join("; ")
        };
        assert_eq!(csi(json!({"server": "nas", "share": "/", "subDir": "a/b"})), "");
        assert!(csi(json!({"server": "nas", "share": "/", "subDir": "../b"})).contains("below the share"));
        assert!(csi(json!({"server": "nas"})).contains("volumeAttributes.share is missing"));
        assert!(csi(json!({"server": "nas", "share": "/", "mountPermissions": "rwx"})).contains("octal"));
    }

    #[test]
    fn a_local_volume_names_its_host() {
        let local = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/d"}});
        assert_eq!(errors(local), ["spec.nodeAffinity: Required value: Local volume requires node affinity"]);
    }

    #[test]
    fn other_storage_is_refused_with_its_path() {
        let mut csi = nfs();
        csi.as_object_mut().unwrap().remove("nfs");
        csi["csi"] = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "x"});
        assert_eq!(errors(csi), ["spec.csi.driver: Forbidden: not supported by Berth yet"]);
        let iscsi =
            json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "iscsi": {"iqn": "x"}});
        assert_eq!(errors(iscsi), ["spec.iscsi: Forbidden: not supported by Berth yet"]);
    }

    #[test]
    fn where_a_volume_is_never_changes() {
        let old = json!({"spec": nfs()});
        let mut new = old.clone();
        new["spec"]["nfs"]["server"] = "other".into();
        assert_eq!(
            validate_update(&old, &new)[0].to_string(),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
        );
        let mut bound = old.clone();
        bound["spec"]["claimRef"] = json!({"name": "c"});
        assert_eq!(validate_update(&old, &bound), []);
    }
}
