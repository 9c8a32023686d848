//! PodDisruptionBudget: how many pods of an application may be evicted at once. What it amounts to at a time is
//! counted by [`disruption`](crate::disruption).

use serde_json::{Value, json};

use super::check::{self, At, Errors, number_or_percentage, one_of_if_set};
use super::columns::{self, number, text};
use super::{Kind, Subresource};

pub static POD_DISRUPTION_BUDGET: Kind = Kind {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    schema: "io.k8s.api.policy.v1.PodDisruptionBudget",
    subresources: &[Subresource::Status],
    has_status: true,
    has_generation: true,
    prepare_create: |budget| {
        if let Some(budget) = budget.as_object_mut() {
            let none =
                json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
            budget.insert("status".into(), none);
        }
    },
    validate,
    columns: &[
        columns::NAME,
        text("Min Available", "Pods that must stay.", |budget, _| amount(&budget["spec"]["minAvailable"])),
        text("Max Unavailable", "Pods that may be away.", |budget, _| {
            amount(&budget["spec"]["maxUnavailable"])
        }),
        number("Allowed Disruptions", "Pods that may be evicted now.", |budget, _| {
            budget["status"]["disruptionsAllowed"].as_i64().unwrap_or_default().into()
        }),
        columns::AGE,
    ],
    ..Kind::COMMON
};

/// A number or a percentage as shown.
fn amount(value: &Value) -> Value {
    match value {
        Value::Null => "N/A".into(),
        Value::String(text) => text.as_str().into(),
        number => number.to_string().into(),
    }
}

fn validate(budget: &Value) -> Errors {
    let spec = At::root(budget).get("spec");
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    let mut errors = Errors::new();
    if least.is_set() && most.is_set() {
        errors.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
    }
    errors.extend(number_or_percentage(&least));
    errors.extend(number_or_percentage(&most));
    errors.extend(check::label_selector(&spec.get("selector")));
    let policy = spec.get("unhealthyPodEvictionPolicy");
    errors.extend(one_of_if_set(&policy, &["AlwaysAllow", "IfHealthyBudget"]));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_budget_is_a_number_or_a_percentage_one_way_or_the_other() {
        for fine in [
            json!({"minAvailable": 2}),
            json!({"maxUnavailable": "30%", "selector": {"matchLabels": {"app": "web"}}}),
            json!({"minAvailable": "100%", "unhealthyPodEvictionPolicy": "AlwaysAllow"}),
            json!({}),
        ] {
            assert_eq!(errors(fine), [""; 0]);
        }
        assert_eq!(
            errors(json!({"minAvailable": -1})),
            ["spec.minAvailable: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(
            errors(json!({"maxUnavailable": "101%"})),
            [r#"spec.maxUnavailable: Invalid value: "101%": must not be greater than 100%"#]
        );
        for wrong in ["", "%", "two", "5", "-5%"] {
            assert!(
                errors(json!({"maxUnavailable": wrong}))[0].contains("a valid percent string"),
                "{wrong}"
            );
        }
        assert!(
            errors(json!({"minAvailable": 1, "maxUnavailable": 1}))[0]
                .ends_with("minAvailable and maxUnavailable cannot be both set")
        );
        assert_eq!(
            errors(json!({"unhealthyPodEvictionPolicy": "Never"})),
            [
                r#"spec.unhealthyPodEvictionPolicy: Unsupported value: "Never": supported values: "AlwaysAllow", "IfHealthyBudget""#
            ]
        );
    }

    #[test]
    fn the_row_says_what_may_go() {
        let budget = json!({"spec": {"maxUnavailable": "30%"}, "status": {"disruptionsAllowed": 2}});
        let cells = [1, 2, 3]
            .map(|i: usize| (POD_DISRUPTION_BUDGET.columns[i].cell)(&budget, jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(cells, [json!("N/A"), json!("30%"), json!(2)]);
    }
}
