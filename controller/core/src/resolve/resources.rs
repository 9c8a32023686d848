//! Quantities as the scheduler and the cgroups count them: milli-cores and bytes.

use berth_proto::Resources;
use serde_json::Value;

use crate::quantity::Quantity;

/// What a pod asks for, or a node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

impl Request {
    /// As Kubernetes sums a pod: all containers together, or the largest init container if that is more.
    pub fn of_pod(pod: &Value) -> Request {
        let list = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
        let mut sum = Request::default();
        for container in list("containers") {
            sum = sum.plus(requests(container));
        }
        for container in list("initContainers") {
            let one = requests(container);
            sum.cpu_millis = sum.cpu_millis.max(one.cpu_millis);
            sum.memory_bytes = sum.memory_bytes.max(one.memory_bytes);
        }
        sum
    }

    pub fn plus(self, other: Request) -> Request {
        Request {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    pub fn minus(self, other: Request) -> Request {
        Request {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }
}

fn requests(container: &Value) -> Request {
    let resources = resources(container);
    Request { cpu_millis: resources.cpu_request_millis, memory_bytes: resources.memory_request_bytes }
}

/// What a node has for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub request: Request,
    pub pods: u64,
}

pub fn allocatable(node: &Value) -> Room {
    let there = &node["status"]["allocatable"];
    Room {
        request: Request { cpu_millis: millis(&there["cpu"]), memory_bytes: whole(&there["memory"]) },
        pods: whole(&there["pods"]),
    }
}

/// A container's `resources`; a limit without a request is also the request.
pub fn resources(container: &Value) -> Resources {
    let r = &container["resources"];
    let (cpu_limit, memory_limit) = (millis(&r["limits"]["cpu"]), whole(&r["limits"]["memory"]));
    let or = |request: &Value, read: fn(&Value) -> u64, limit: u64| {
        if request.is_null() { limit } else { read(request) }
    };
    Resources {
        cpu_request_millis: or(&r["requests"]["cpu"], millis, cpu_limit),
        cpu_limit_millis: cpu_limit,
        memory_request_bytes: or(&r["requests"]["memory"], whole, memory_limit),
        memory_limit_bytes: memory_limit,
    }
}

/// Guaranteed, Burstable or BestEffort.
pub fn qos_class(pod: &Value) -> &'static str {
    let both = ["containers", "initContainers"];
    let all = both.iter().flat_map(|f| pod["spec"][f].as_array().into_iter().flatten()).map(resources);
    let (mut any, mut guaranteed) = (false, true);
    for r in all {
        let full = |request: u64, limit: u64| limit > 0 && request == limit;
        any |= r.cpu_request_millis + r.cpu_limit_millis + r.memory_request_bytes + r.memory_limit_bytes > 0;
        guaranteed &= full(r.cpu_request_millis, r.cpu_limit_millis)
            && full(r.memory_request_bytes, r.memory_limit_bytes);
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Thousandths of a quantity, rounded up; 0 for what is none (validation has refused it).
fn millis(quantity: &Value) -> u64 {
    u64::try_from(Quantity::or_zero(quantity).milli_value()).unwrap_or(0)
}

/// A quantity in whole units, rounded up.
pub fn whole(quantity: &Value) -> u64 {
    u64::try_from(Quantity::or_zero(quantity).value()).unwrap_or(0)
}
