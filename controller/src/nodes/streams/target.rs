//! Which container of which pod a log or a command is about, in Kubernetes' words where it cannot be told.
//! Pure.

use berth_controller_core::object;
use berth_controller_core::status::Status;
use serde_json::Value;

const DEFAULT: &str = "kubectl.kubernetes.io/default-container";

/// The container meant: the one asked for, the only one, or the one the pod's annotation names.
pub fn container(pod: &Value, asked: Option<&str>) -> Result<String, Status> {
    let names = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let there = |name: &str| containers.contains(&name) || init.contains(&name);
    if let Some(asked) = asked.filter(|name| !name.is_empty()) {
        if there(asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!(
            "container {asked} is not valid for pod {}",
            object::name(pod)
        )));
    }
    if let [only] = containers[..] {
        return Ok(only.to_owned());
    }
    if let Some(default) = object::annotation(pod, DEFAULT).filter(|name| there(name)) {
        return Ok(default.to_owned());
    }
    let mut message = format!(
        "a container name must be specified for pod {}, choose one of: [{}]",
        object::name(pod),
        containers.join(" ")
    );
    if !init.is_empty() {
        message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    Err(Status::bad_request(message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: &[&str], init: &[&str]) -> Value {
        let list = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
        json!({
            "metadata": {"name": "x"},
            "spec": {"containers": list(containers), "initContainers": list(init)},
        })
    }

    #[test]
    fn the_only_container_needs_no_name() {
        assert_eq!(container(&pod(&["a"], &["i"]), None).unwrap(), "a");
        assert_eq!(container(&pod(&["a"], &["i"]), Some("i")).unwrap(), "i");
    }

    #[test]
    fn of_several_one_must_be_named() {
        let message = |pod: &Value| container(pod, Some("")).unwrap_err().message;
        assert_eq!(
            message(&pod(&["a", "b"], &[])),
            "a container name must be specified for pod x, choose one of: [a b]"
        );
        assert_eq!(
            message(&pod(&["a", "b"], &["i"])),
            "a container name must be specified for pod x, choose one of: [a b] or one of the init \
             containers: [i]"
        );
        let mut annotated = pod(&["a", "b"], &[]);
        annotated["metadata"]["annotations"] = json!({DEFAULT: "b"});
        assert_eq!(container(&annotated, None).unwrap(), "b");
    }

    #[test]
    fn a_name_the_pod_does_not_have_is_refused() {
        let refused = container(&pod(&["a"], &[]), Some("z")).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (400, "container z is not valid for pod x"));
    }
}
