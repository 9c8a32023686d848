//! The scale subresource: autoscaling/v1 Scale as a view on `spec.replicas`, `status.replicas` and
//! `spec.selector` of whatever has them.

use berth_controller_core::field::{FieldError, Path};
use berth_controller_core::object;
use berth_controller_core::selector::Selector;
use berth_controller_core::status::Status;
use serde_json::{Value, json};

/// The view's type.
pub const SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The Scale of an object.
pub fn of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or_default()},
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or_default(),
            "selector": selector(&object["spec"]["selector"]),
        },
    })
}

/// Writes a Scale back: only its `spec.replicas` counts.
pub(super) fn write(scale: &Value, object: &mut Value) -> Result<(), Status> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or_default();
    if replicas < 0 {
        let path = Path::new("spec").child("replicas");
        let error = FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("Scale", "autoscaling", object::name(scale), &[error]));
    }
    object::map_mut(object, "spec").insert("replicas".to_owned(), replicas.into());
    Ok(())
}

/// A label selector as one string; "" if there is none.
fn selector(selector: &Value) -> String {
    Selector::from_object(selector).map(|s| s.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_the_selector_as_one_string() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "5"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["x", "y"]}, {"key": "d", "operator": "DoesNotExist"},
            ]}},
            "status": {"replicas": 2},
        });
        let scale = of(&object);
        assert_eq!(scale["status"]["selector"], "a=1,b=2,c in (x,y),!d");
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"]["replicas"], 2);
        assert_eq!(scale["metadata"]["resourceVersion"], "5");
    }

    #[test]
    fn a_negative_scale_is_refused_as_kubernetes_does() {
        let scale = json!({"metadata": {"name": "web"}, "spec": {"replicas": -1}});
        let error = write(&scale, &mut json!({})).unwrap_err();
        assert_eq!(
            error.message,
            "Scale.autoscaling \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
