//! Where a pod may run: affinity and topology spread constraints, as Kubernetes validates them.

use std::collections::BTreeSet;

use super::super::check::{self, At, Errors, invalid_each, label_selector, one_of, one_of_if_set};
use super::super::names;
use crate::field::FieldError;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(at: &At) -> Errors {
    let mut errors = Errors::new();
    let node = at.get("nodeAffinity");
    if node.get(REQUIRED).is_set() {
        errors.extend(node_selector(&node.get(REQUIRED)));
    }
    for preferred in node.get(PREFERRED).items() {
        errors.extend(weight(&preferred.get("weight")));
        errors.extend(node_term(&preferred.get("preference")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at.get(kind);
        for term in pods.get(REQUIRED).items() {
            errors.extend(pod_term(&term));
        }
        for weighted in pods.get(PREFERRED).items() {
            errors.extend(weight(&weighted.get("weight")));
            errors.extend(pod_term(&weighted.get("podAffinityTerm")));
        }
    }
    errors
}

fn weight(at: &At) -> Option<FieldError> {
    let fine = at.int().is_some_and(|n| (1..=100).contains(&n));
    (!fine).then(|| at.invalid("must be in the range 1-100"))
}

/// A NodeSelector object.
pub fn node_selector(at: &At) -> Errors {
    let terms = at.get("nodeSelectorTerms");
    if terms.is_empty() {
        return vec![terms.required("must have at least one node selector term")];
    }
    terms.items().flat_map(|term| node_term(&term)).collect()
}

fn node_term(at: &At) -> Errors {
    let mut errors = Errors::new();
    for expression in at.get("matchExpressions").items() {
        let (key, operator, values) =
            (expression.get("key"), expression.get("operator"), expression.get("values"));
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors
                .push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'")),
            "Gt" | "Lt" if values.len() != 1 => {
                errors
                    .push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "Gt" | "Lt" => {
                let whole = |v: &At| v.str().parse::<i64>().is_ok();
                errors.extend(
                    values.items().filter(|v| !whole(v)).map(|v| v.invalid("must be a whole number")),
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
        }
        errors.extend(label_key(&key));
        if matches!(operator.str(), "In" | "NotIn") {
            for value in values.items() {
                errors.extend(invalid_each(&value, names::label_value(value.str())));
            }
        }
    }
    for field in at.get("matchFields").items() {
        let (key, operator, values) = (field.get("key"), field.get("operator"), field.get("values"));
        match operator.str() {
            "In" | "NotIn" if values.len() != 1 => errors.push(values.required(
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            )),
            "In" | "NotIn" => {}
            other => errors.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
        }
        if key.str() != "metadata.name" {
            errors.push(key.invalid("not a valid field selector key"));
        }
    }
    errors
}

fn pod_term(at: &At) -> Errors {
    let mut errors = label_selector(&at.get("labelSelector"));
    errors.extend(label_selector(&at.get("namespaceSelector")));
    for namespace in at.get("namespaces").items() {
        errors.extend(invalid_each(&namespace, names::label(namespace.str())));
    }
    let (same, other) = (at.get("matchLabelKeys"), at.get("mismatchLabelKeys"));
    errors.extend(label_keys(&same, &at.get("labelSelector")));
    errors.extend(label_keys(&other, &at.get("labelSelector")));
    let both: BTreeSet<&str> = same.items().map(|key| key.str()).collect();
    for key in other.items().filter(|key| both.contains(key.str())) {
        errors.push(key.invalid("exists in both matchLabelKeys and mismatchLabelKeys"));
    }
    errors.extend(topology_key(&at.get("topologyKey")));
    errors
}

fn topology_key(at: &At) -> Errors {
    if at.str().is_empty() { vec![at.required("can not be empty")] } else { label_key(at) }
}

fn label_key(at: &At) -> Errors {
    names::qualified(at.str()).into_iter().map(|m| FieldError::invalid(&at.path, at.str(), m)).collect()
}

/// Keys whose values come from the pod itself: they go with a selector, which does not speak of them.
fn label_keys(keys: &At, selector: &At) -> Errors {
    let mut errors = Errors::new();
    if keys.is_empty() {
        return errors;
    }
    if selector.is_null() {
        errors.push(keys.forbidden("must not be specified when labelSelector is not set"));
        return errors;
    }
    let mut seen = check::Unique::default();
    let labels = selector.get("matchLabels");
    let expressions = selector.get("matchExpressions");
    for key in keys.items() {
        errors.extend(label_key(&key));
        errors.extend(seen.check(&key));
        let named =
            labels.get(key.str()).is_set() || expressions.items().any(|e| e.get("key").str() == key.str());
        if named {
            errors.push(key.invalid("exists in both matchLabelKeys and labelSelector"));
        }
    }
    errors
}

pub fn spread(at: &At) -> Errors {
    const WHEN: &[&str] = &["DoNotSchedule", "ScheduleAnyway"];
    const POLICIES: &[&str] = &["Honor", "Ignore"];
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for constraint in at.items() {
        let [skew, key, when, domains] =
            ["maxSkew", "topologyKey", "whenUnsatisfiable", "minDomains"].map(|field| constraint.get(field));
        if skew.int().is_none_or(|n| n <= 0) {
            errors.push(skew.invalid("must be greater than zero"));
        }
        errors.extend(topology_key(&key));
        errors.extend(one_of(&when, WHEN));
        if !seen.insert((key.str(), when.str())) {
            let pair = format!("{{{}, {}}}", key.str(), when.str());
            errors.push(FieldError::duplicate(
                &constraint.path.child("{topologyKey, whenUnsatisfiable}"),
                pair,
            ));
        }
        if domains.is_set() {
            if domains.int().is_none_or(|n| n <= 0) {
                errors.push(domains.invalid("must be greater than zero"));
            }
            if when.str() != "DoNotSchedule" {
                errors.push(domains.invalid(format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    when.str()
                )));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.extend(one_of_if_set(&constraint.get(policy), POLICIES));
        }
        errors.extend(label_selector(&constraint.get("labelSelector")));
        errors.extend(label_keys(&constraint.get("matchLabelKeys"), &constraint.get("labelSelector")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(check: fn(&At) -> Errors, value: Value) -> Vec<String> {
        check(&At::root(&value)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn affinity_as_people_write_it_is_valid() {
        let term =
            json!({"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"});
        let all = json!({
            "nodeAffinity": {
                REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "disk", "operator": "In", "values": ["ssd"]}, {"key": "size", "operator": "Gt", "values": ["3"]}]},
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]},
                PREFERRED: [{"weight": 1, "preference": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}}],
            },
            "podAffinity": {REQUIRED: [term]},
            "podAntiAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": term}]},
        });
        assert_eq!(said(affinity, all), [""; 0]);
    }

    #[test]
    fn affinity_is_refused_in_kubernetes_words() {
        let required =
            |terms: Value| said(affinity, json!({"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}));
        let path = format!("nodeAffinity.{REQUIRED}.nodeSelectorTerms");
        assert_eq!(
            required(json!([])),
            [format!("{path}: Required value: must have at least one node selector term")]
        );
        assert_eq!(
            required(
                json!([{"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Is"}]}])
            ),
            [
                format!(
                    "{path}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
                format!(
                    r#"{path}[0].matchExpressions[1].operator: Invalid value: "Is": not a valid selector operator"#
                ),
            ]
        );
        let weighted = json!([{"weight": 0, "podAffinityTerm": {"topologyKey": ""}}]);
        assert_eq!(
            said(affinity, json!({"podAffinity": {PREFERRED: weighted}})),
            [
                format!("podAffinity.{PREFERRED}[0].weight: Invalid value: 0: must be in the range 1-100"),
                format!(
                    "podAffinity.{PREFERRED}[0].podAffinityTerm.topologyKey: Required value: can not be empty"
                ),
            ]
        );
        let keys = json!([{"topologyKey": "z", "matchLabelKeys": ["a"]}]);
        assert_eq!(said(affinity, json!({"podAffinity": {REQUIRED: keys}})).len(), 1);
    }

    #[test]
    fn a_spread_constraint_says_how_much_over_what_and_how_strictly() {
        let fine = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2,
            "labelSelector": {"matchLabels": {"app": "x"}}, "matchLabelKeys": ["rev"], "nodeTaintsPolicy": "Honor"});
        assert_eq!(said(spread, json!([fine])), [""; 0]);
        assert_eq!(
            said(spread, json!([{"maxSkew": 0, "whenUnsatisfiable": "Maybe"}])),
            [
                "[0].maxSkew: Invalid value: 0: must be greater than zero",
                "[0].topologyKey: Required value: can not be empty",
                r#"[0].whenUnsatisfiable: Unsupported value: "Maybe": supported values: "DoNotSchedule", "ScheduleAnyway""#,
            ]
        );
        assert_eq!(said(spread, json!([fine, fine])).len(), 1);
        let mut soft = fine;
        soft["whenUnsatisfiable"] = "ScheduleAnyway".into();
        assert_eq!(
            said(spread, json!([soft])),
            [
                "[0].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway"
            ]
        );
    }
}
