//! StatefulSet: pods with lasting names, and the claims that go with them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::check::{
    self, At, Errors, Unique, invalid_each, label_name, nonnegative, one_of, only_supported, same,
};
use super::columns::{self, each_container, text};
use super::{Kind, NameRule, Subresource, default, names, persistent_volume_claim, pod_spec};
use crate::field::FieldError;
use crate::object;
use crate::quantity::Quantity;
use crate::selector::Selector;
use crate::statefulset::annotations;

/// What an update may change.
const MUTABLE: [&str; 8] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
    // Where that is harmless: see `claim_templates_update`.
    "volumeClaimTemplates",
];

/// The longest name whose pods can carry `controller-revision-hash=<name>-<hash>`, a label of at most 63.
const MAX_NAME: usize = 52;

pub static STATEFUL_SET: Kind = Kind {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.StatefulSet",
    subresources: &[Subresource::Status, Subresource::Scale],
    name_rule: NameRule::Label,
    has_status: true,
    has_generation: true,
    default: defaults,
    prepare_create: |set| {
        if let Some(set) = set.as_object_mut() {
            set.insert("status".into(), json!({"replicas": 0, "availableReplicas": 0}));
        }
    },
    validate: |set| {
        let mut errors = Errors::from_iter(name(&At::root(set).get("metadata").get("name")));
        errors.extend(validate_spec(&At::root(set).get("spec")));
        errors.extend(own_annotations(&At::root(set).get("metadata").get("annotations")));
        errors
    },
    validate_update,
    columns: &[
        columns::NAME,
        text("Ready", "Pods that are ready, and pods that are wanted.", |set, _| {
            let ready = set["status"]["readyReplicas"].as_i64().unwrap_or_default();
            format!("{ready}/{}", set["spec"]["replicas"].as_i64().unwrap_or_default()).into()
        }),
        columns::AGE,
        text("Containers", "Names of the template's containers.", |set, _| {
            each_container(&set["spec"]["template"]["spec"]["containers"], "name")
        })
        .wide(),
        text("Images", "Images of the template's containers.", |set, _| {
            each_container(&set["spec"]["template"]["spec"]["containers"], "image")
        })
        .wide(),
        text("Rejected", "The revision that missed its progress deadline and was left again.", |set, _| {
            columns::or_none(&set["metadata"]["annotations"][annotations::REJECTED_REVISION])
        })
        .wide(),
    ],
    ..Kind::COMMON
};

fn defaults(set: &mut Value) {
    let spec = default::map(set, "spec");
    default::if_absent(spec, "replicas", 1);
    default::if_zero(spec, "podManagementPolicy", "OrderedReady");
    default::if_absent(spec, "revisionHistoryLimit", 10);

    let retention = default::map(spec, "persistentVolumeClaimRetentionPolicy");
    default::if_zero(retention, "whenDeleted", "Retain");
    default::if_zero(retention, "whenScaled", "Retain");

    let strategy = default::map(spec, "updateStrategy");
    if check::is_zero(&strategy["type"]) {
        default::if_zero(strategy, "type", "RollingUpdate");
        default::empty_map(strategy, "rollingUpdate");
    }
    if strategy["type"] == "RollingUpdate"
        && let Some(rolling) = default::existing(strategy, "rollingUpdate")
    {
        default::if_absent(rolling, "partition", 0);
    }

    pod_spec::defaults::template(default::map(default::map(spec, "template"), "spec"));
    for claim in default::each(spec, "volumeClaimTemplates") {
        default::if_zero(claim, "apiVersion", "v1");
        default::if_zero(claim, "kind", "PersistentVolumeClaim");
        persistent_volume_claim::defaults(claim);
    }
}

/// How the generic rule's 63 fall short of what the pods' labels need.
fn name(at: &At) -> Option<FieldError> {
    let long = (MAX_NAME + 1..=63).contains(&at.len());
    long.then(|| {
        at.invalid(format!(
            "must be no more than {MAX_NAME} bytes: its pods carry the label controller-revision-hash=<name>-<hash>"
        ))
    })
}

/// What asks for more than Kubernetes has is checked, as a field would be.
fn own_annotations(at: &At) -> Errors {
    let wrong = |key: &str, check: &dyn Fn(&str) -> Result<(), &'static str>| {
        let value = at.key(key);
        value.value.as_str().and_then(|text| check(text).err()).map(|why| value.invalid(why))
    };
    [
        wrong(annotations::PROGRESS_DEADLINE, &|v| annotations::progress_deadline(v).map(drop)),
        wrong(annotations::AUTO_ROLLBACK, &|v| annotations::auto_rollback(v).map(drop)),
        wrong(annotations::RESERVE_ORDINALS, &|v| annotations::reserved(v).map(drop)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn validate_spec(spec: &At) -> Errors {
    let mut errors = Errors::new();
    let policy = spec.get("podManagementPolicy");
    if !matches!(policy.str(), "OrderedReady" | "Parallel") {
        errors.push(policy.invalid("must be 'OrderedReady' or 'Parallel'"));
    }
    errors.extend(update_strategy(&spec.get("updateStrategy")));
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        errors.extend(one_of(&retention.get(field), &["Retain", "Delete"]));
    }
    errors.extend(nonnegative(&spec.get("replicas")));
    errors.extend(nonnegative(&spec.get("minReadySeconds")));
    errors.extend(nonnegative(&spec.get("ordinals").get("start")));
    errors.extend(nonnegative(&spec.get("revisionHistoryLimit")));
    let service = spec.get("serviceName");
    if !service.str().is_empty() {
        errors.extend(invalid_each(&service, names::label(service.str())));
    }

    let (selector, template) = (spec.get("selector"), spec.get("template"));
    if selector.is_null() {
        errors.push(selector.required(""));
    } else {
        errors.extend(check::label_selector(&selector));
        if selector.get("matchLabels").is_empty() && selector.get("matchExpressions").is_empty() {
            errors.push(selector.invalid("empty selector is invalid for statefulset"));
        } else if let Ok(selector) = Selector::from_object(selector.value) {
            let labels = template.get("metadata").get("labels");
            if !selector.matches(labels.value) {
                let shown = if labels.is_null() { json!({}) } else { labels.value.clone() };
                errors.push(FieldError::invalid(
                    &labels.path,
                    shown,
                    "`selector` does not match template `labels`",
                ));
            }
        }
    }
    let meta = template.get("metadata");
    errors.extend(check::labels(&meta.get("labels")));
    errors.extend(check::annotations(&meta.get("annotations")));

    let (claims, wrong) = claim_templates(&spec.get("volumeClaimTemplates"));
    errors.extend(wrong);
    let pod = template.get("spec");
    errors.extend(pod_spec::validate(&pod, &claims));
    let restart = pod.get("restartPolicy");
    if matches!(restart.str(), "OnFailure" | "Never") {
        errors.push(restart.not_supported(&["Always"]));
    }
    errors
}

fn update_strategy(at: &At) -> Errors {
    let rolling = at.get("rollingUpdate");
    match at.get("type").str() {
        "OnDelete" if rolling.is_set() => {
            vec![rolling.invalid("only allowed for updateStrategy 'RollingUpdate'")]
        }
        "OnDelete" => Errors::new(),
        "RollingUpdate" => {
            let mut errors: Errors = nonnegative(&rolling.get("partition")).into_iter().collect();
            errors.extend(max_unavailable(&rolling.get("maxUnavailable")));
            errors.extend(only_supported(&rolling, &["partition", "maxUnavailable"]));
            errors
        }
        _ => vec![at.invalid("must be 'RollingUpdate' or 'OnDelete'")],
    }
}

/// A number above zero, or a percentage of the replicas.
fn max_unavailable(at: &At) -> Errors {
    const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' \
                           (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
    let number = match at.value {
        Value::Null => return Errors::new(),
        Value::String(text) => {
            let digits = text.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return vec![at.invalid(PERCENT)];
            }
            let percent = digits.parse().unwrap_or(i64::MAX);
            if percent > 100 {
                return vec![at.invalid("must not be greater than 100%")];
            }
            percent
        }
        other => other.as_i64().unwrap_or_default(),
    };
    let mut errors: Errors = nonnegative(at).into_iter().collect();
    if number == 0 {
        errors.push(at.invalid("cannot be 0"));
    }
    errors
}

/// The names of the claim templates, which containers may mount, and what is wrong with them.
fn claim_templates<'a>(at: &At<'a>) -> (BTreeSet<&'a str>, Errors) {
    let mut errors = Errors::new();
    let mut claims = BTreeSet::new();
    let mut unique = Unique::default();
    for claim in at.items() {
        let name = claim.get("metadata").get("name");
        // The volume in the pod has the claim's name, so the stricter rule of volumes holds.
        errors.extend(label_name(&name));
        errors.extend(unique.check(&name));
        errors.extend(check::labels(&claim.get("metadata").get("labels")));
        errors.extend(check::annotations(&claim.get("metadata").get("annotations")));
        errors.extend(persistent_volume_claim::validate_spec(&claim.get("spec")));
        claims.insert(name.str());
    }
    (claims, errors)
}

fn validate_update(old: &Value, new: &Value) -> Errors {
    let (old, new) = (At::root(old).get("spec"), At::root(new).get("spec"));
    let fixed = |spec: &At| {
        let mut spec = spec.value.clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|field, _| !MUTABLE.contains(&field.as_str()));
        }
        spec
    };
    let templates = "volumeClaimTemplates";
    let mut errors = claim_templates_update(&old.get(templates), &new.get(templates));
    if !same(&fixed(&old), &fixed(&new)) {
        errors.push(new.forbidden(
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
    errors
}

/// Claim templates may be added, ask for more storage, and carry other labels and annotations; Kubernetes
/// refuses all of that (kubernetes/kubernetes#68737, KEP-4650). What would cost somebody their data, or would
/// never reach the volumes there are, is refused, and it is said what to do instead.
fn claim_templates_update(old: &At, new: &At) -> Errors {
    let name = |template: &At| object::name(template.value).to_owned();
    let storage = |template: &At| {
        let requests = template.get("spec").get("resources").get("requests");
        requests.get("storage").value.clone()
    };
    let fixed = |template: &At| {
        let mut spec = template.get("spec").value.clone();
        if let Some(requests) = spec.pointer_mut("/resources/requests").and_then(Value::as_object_mut) {
            requests.remove("storage");
        }
        (spec, persistent_volume_claim::class(template.value).to_owned())
    };
    let mut errors = Errors::new();
    for before in old.items() {
        let Some(now) = new.items().find(|t| name(t) == name(&before)) else {
            errors.push(new.forbidden(format!(
                "the template {:?} may not be removed or renamed: existing pods use its claims. To do without it, \
                 delete the set with --cascade=orphan and create it again without the template; the claims stay \
                 until you delete them",
                name(&before)
            )));
            continue;
        };
        let (had, wanted) = (storage(&before), storage(&now));
        let ((spec, class), (spec_now, class_now)) = (fixed(&before), fixed(&now));
        if Quantity::or_zero(&wanted) < Quantity::or_zero(&had) {
            errors.push(now.get("spec").get("resources").get("requests").get("storage").forbidden(format!(
                "may not be less than {}: volumes do not shrink. Add a template of another name and move the data, \
                 or leave the request as it is",
                had.as_str().unwrap_or("before")
            )));
        }
        if class != class_now || !same(&spec, &spec_now) {
            errors.push(now.get("spec").forbidden(
                "only resources.requests.storage may change, besides labels and annotations: the existing claims \
                 could not follow. Add a template of another name and move the data",
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: impl Fn(&mut Value)) -> Value {
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "serviceName": "nginx", "replicas": 3, "selector": {"matchLabels": {"app": "nginx"}},
                "template": {
                    "metadata": {"labels": {"app": "nginx"}},
                    "spec": {"containers": [{"name": "nginx", "image": "nginx",
                        "ports": [{"containerPort": 80, "name": "web"}],
                        "volumeMounts": [{"name": "www", "mountPath": "/usr/share/nginx/html"}]}]},
                },
                "volumeClaimTemplates": [{"metadata": {"name": "www"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
            },
        });
        change(&mut set);
        defaults(&mut set);
        set
    }

    fn errors(change: impl Fn(&mut Value)) -> Vec<String> {
        (STATEFUL_SET.validate)(&set(change)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_set_gets_kubernetes_defaults() {
        let set = set(|s| {
            s["spec"].as_object_mut().unwrap().remove("replicas");
        });
        let spec = &set["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(spec["podManagementPolicy"], "OrderedReady");
        assert_eq!(
            spec["updateStrategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
        );
        assert_eq!(spec["revisionHistoryLimit"], 10);
        assert_eq!(
            spec["persistentVolumeClaimRetentionPolicy"],
            json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
        );
        let claim = &spec["volumeClaimTemplates"][0];
        assert_eq!(
            (&claim["kind"], &claim["status"]),
            (&json!("PersistentVolumeClaim"), &json!({"phase": "Pending"}))
        );
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
        assert_eq!(spec["template"]["spec"]["enableServiceLinks"], Value::Null);
        assert_eq!((STATEFUL_SET.validate)(&set), []);
    }

    #[test]
    fn a_rolling_update_without_a_partition_stays_without() {
        let set = set(|s| s["spec"]["updateStrategy"] = json!({"type": "RollingUpdate"}));
        assert_eq!(set["spec"]["updateStrategy"], json!({"type": "RollingUpdate"}));
    }

    #[test]
    fn replicas_are_not_negative() {
        assert_eq!(
            errors(|s| s["spec"]["replicas"] = json!(-1)),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
    }

    #[test]
    fn the_selector_must_match_the_template() {
        assert_eq!(
            errors(|s| s["spec"]["template"]["metadata"]["labels"]["app"] = "other".into()),
            [
                r#"spec.template.metadata.labels: Invalid value: {"app":"other"}: `selector` does not match template `labels`"#
            ]
        );
        assert_eq!(errors(|s| s["spec"]["selector"] = Value::Null), ["spec.selector: Required value"]);
        assert_eq!(
            errors(|s| s["spec"]["selector"] = json!({})),
            ["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"]
        );
    }

    #[test]
    fn a_container_may_mount_a_claim_and_nothing_unknown() {
        assert_eq!(
            errors(|s| s["spec"]["volumeClaimTemplates"] = json!([])),
            [r#"spec.template.spec.containers[0].volumeMounts[0].name: Not found: "www""#]
        );
    }

    #[test]
    fn faults_of_templates_are_named_where_they_are() {
        assert_eq!(
            errors(|s| s["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] = json!([])),
            [
                "spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required"
            ]
        );
        let volume = json!({"name": "v", "emptyDir": {}});
        assert_eq!(
            errors(|s| s["spec"]["template"]["spec"]["volumes"] = json!([volume, volume])),
            [r#"spec.template.spec.volumes[1].name: Duplicate value: "v""#]
        );
        assert_eq!(
            errors(|s| s["spec"]["template"]["spec"]["restartPolicy"] = "Never".into()),
            [r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#]
        );
        assert_eq!(
            errors(|s| s["spec"]["podManagementPolicy"] = "Random".into()),
            [r#"spec.podManagementPolicy: Invalid value: "Random": must be 'OrderedReady' or 'Parallel'"#]
        );
    }

    #[test]
    fn max_unavailable_is_a_number_above_zero_or_a_percentage() {
        let errors = |value: Value| {
            errors(|s| s["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": value}}))
        };
        for fine in [json!(1), json!(7), json!("1%"), json!("100%")] {
            assert!(errors(fine).is_empty());
        }
        let field = "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value";
        assert_eq!(errors(json!(0)), [format!("{field}: 0: cannot be 0")]);
        assert_eq!(errors(json!("0%")), [format!("{field}: \"0%\": cannot be 0")]);
        assert_eq!(errors(json!(-1)), [format!("{field}: -1: must be greater than or equal to 0")]);
        assert_eq!(errors(json!("101%")), [format!("{field}: \"101%\": must not be greater than 100%")]);
        for wrong in ["", "%", "two", "5", "-5%"] {
            assert!(errors(json!(wrong))[0].contains("a valid percent string"), "{wrong}");
        }
    }

    #[test]
    fn berths_own_annotations_are_checked_like_fields() {
        let with = |key: &str, value: &str| errors(|s| s["metadata"]["annotations"] = json!({key: value}));
        for (key, fine, wrong) in [
            ("berth.dev/progress-deadline-seconds", "60", "1m"),
            ("berth.dev/auto-rollback", "true", "yes"),
            ("berth.dev/reserve-ordinals", "1,3-5", "one"),
        ] {
            assert!(with(key, fine).is_empty());
            let told = with(key, wrong);
            assert!(
                told[0]
                    .starts_with(&format!("metadata.annotations[{key}]: Invalid value: {wrong:?}: must be")),
                "{told:?}"
            );
        }
    }

    #[test]
    fn a_name_leaves_room_for_the_revision_in_its_pods_labels() {
        assert!(errors(|s| s["metadata"]["name"] = "a".repeat(52).into()).is_empty());
        assert!(
            errors(|s| s["metadata"]["name"] = "a".repeat(53).into())[0].contains("no more than 52 bytes")
        );
    }

    #[test]
    fn only_what_may_change_changes() {
        let old = set(|_| {});
        for fine in [
            |s: &mut Value| s["spec"]["replicas"] = json!(5),
            |s: &mut Value| s["spec"]["template"]["spec"]["containers"][0]["image"] = "nginx:2".into(),
            |s: &mut Value| s["spec"]["minReadySeconds"] = json!(3),
            |s: &mut Value| s["spec"]["ordinals"] = json!({"start": 2}),
            |s: &mut Value| s["spec"]["updateStrategy"]["type"] = "OnDelete".into(),
        ] {
            assert_eq!(validate_update(&old, &set(fine)), []);
        }
        for fixed in [
            |s: &mut Value| s["spec"]["serviceName"] = "other".into(),
            |s: &mut Value| s["spec"]["podManagementPolicy"] = "Parallel".into(),
            |s: &mut Value| s["spec"]["selector"]["matchLabels"]["x"] = "y".into(),
        ] {
            assert_eq!(
                validate_update(&old, &set(fixed))[0].to_string(),
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', \
                 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden"
            );
        }
    }

    /// Whether Kubernetes refuses this change: of anything in the spec but these fields.
    fn kubernetes_refuses(old: &Value, new: &Value) -> bool {
        let fixed = |set: &Value| {
            let mut spec = set["spec"].clone();
            let may_change = MUTABLE.iter().filter(|field| **field != "volumeClaimTemplates");
            may_change.for_each(|field| drop(spec.as_object_mut().unwrap().remove(*field)));
            spec
        };
        fixed(old) != fixed(new)
    }

    fn change_templates(change: fn(&mut Value)) -> (Value, Value) {
        (set(|_| {}), set(|s| change(&mut s["spec"]["volumeClaimTemplates"])))
    }

    /// "StatefulSet: support resize pvc storage", KEP-4650.
    #[test]
    fn issue_68737_a_claim_template_may_ask_for_more_and_carry_other_labels() {
        for fine in [
            |t: &mut Value| t[0]["spec"]["resources"]["requests"]["storage"] = "2Gi".into(),
            |t: &mut Value| t[0]["metadata"]["labels"] = json!({"tier": "gold"}),
            |t: &mut Value| t[0]["metadata"]["annotations"] = json!({"note": "x"}),
        ] {
            let (old, new) = change_templates(fine);
            assert_eq!(validate_update(&old, &new), []);
            assert!(kubernetes_refuses(&old, &new));
        }
        // The same quantity in other words is no change.
        let (old, new) =
            change_templates(|t| t[0]["spec"]["resources"]["requests"]["storage"] = "1024Mi".into());
        assert_eq!(validate_update(&old, &new), []);
    }

    /// "Allow adding more volumeClaimTemplates to an existing statefulSet"
    #[test]
    fn issue_69041_a_claim_template_may_be_added() {
        let (old, new) = change_templates(|t| {
            let mut more = t[0].clone();
            more["metadata"]["name"] = "more".into();
            t.as_array_mut().unwrap().insert(0, more);
        });
        assert_eq!(validate_update(&old, &new), []);
        assert!(kubernetes_refuses(&old, &new));
    }

    #[test]
    fn what_would_cost_data_or_reach_no_volume_is_refused_and_it_is_said_what_to_do_instead() {
        let templates = |change: fn(&mut Value)| {
            let (old, new) = change_templates(change);
            let errors = validate_update(&old, &new);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for (harmful, field, why) in [
            (
                (|t| t[0]["spec"]["resources"]["requests"]["storage"] = "1Mi".into()) as fn(&mut Value),
                "spec.volumeClaimTemplates[0].spec.resources.requests.storage: Forbidden",
                "may not be less than 1Gi: volumes do not shrink. Add a template of another name",
            ),
            (
                |t| t[0]["metadata"]["name"] = "other".into(),
                "spec.volumeClaimTemplates: Forbidden",
                "the template \"www\" may not be removed or renamed: existing pods use its claims. To do without it, \
                 delete the set with --cascade=orphan",
            ),
            (
                |t| t[0]["spec"]["storageClassName"] = "other".into(),
                "spec.volumeClaimTemplates[0].spec: Forbidden",
                "only resources.requests.storage may change",
            ),
            (
                |t| t[0]["spec"]["accessModes"] = json!(["ReadWriteMany"]),
                "spec.volumeClaimTemplates[0].spec: Forbidden",
                "only resources.requests.storage may change",
            ),
        ] {
            let told = templates(harmful);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].starts_with(field) && told[0].contains(why), "{told:?}");
        }
    }

    #[test]
    fn the_row_shows_ready_over_wanted() {
        let mut set = set(|_| {});
        set["status"] = json!({"readyReplicas": 2});
        let cell = |i: usize| (STATEFUL_SET.columns[i].cell)(&set, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!((cell(1), cell(3), cell(4)), (json!("2/3"), json!("nginx"), json!("nginx")));
    }
}
