//! Lease: who leads, or that somebody is there; for programs that agree among themselves. Berth only keeps it.

use serde_json::Value;

use super::Kind;
use super::check::{At, Errors};
use super::columns::{self, or, text};

pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    validate,
    columns: &[
        columns::NAME,
        text("Holder", "Who holds it.", |lease, _| or(&lease["spec"]["holderIdentity"], "")),
        columns::AGE,
    ],
    ..Kind::COMMON
};

fn validate(lease: &Value) -> Errors {
    let spec = At::root(lease).get("spec");
    let mut errors = Errors::new();
    let (seconds, transitions) = (spec.get("leaseDurationSeconds"), spec.get("leaseTransitions"));
    if seconds.int().is_some_and(|n| n <= 0) {
        errors.push(seconds.invalid("must be greater than 0"));
    }
    if transitions.int().is_some_and(|n| n < 0) {
        errors.push(transitions.invalid("must be greater than or equal to 0"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_lasts_longer_than_nothing() {
        let errors = |spec: Value| -> Vec<String> {
            validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
        };
        assert_eq!(errors(json!({"leaseDurationSeconds": 15, "holderIdentity": "a"})), [""; 0]);
        assert_eq!(
            errors(json!({"leaseDurationSeconds": 0, "leaseTransitions": -1})),
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }
}
