//! Quantities as the scheduler and the cgroups count them: milli-cores and bytes.

use berth_proto::Resources;
use serde_json::Value;

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
    scaled(quantity, 1000)
}

/// A quantity in whole units, rounded up.
pub fn whole(quantity: &Value) -> u64 {
    scaled(quantity, 1)
}

fn scaled(quantity: &Value, scale: i128) -> u64 {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return 0,
    };
    parse(&text, scale).unwrap_or(0)
}

fn parse(text: &str, scale: i128) -> Option<u64> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut mantissa: i128 = format!("{integer}{fraction}").parse().ok()?;
    let mut divisor: i128 = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let power = |base: i128, exponent: u32| base.checked_pow(exponent);
    match suffix {
        "" => {}
        "n" => divisor = divisor.checked_mul(power(10, 9)?)?,
        "u" => divisor = divisor.checked_mul(power(10, 6)?)?,
        "m" => divisor = divisor.checked_mul(1000)?,
        "k" => mantissa = mantissa.checked_mul(1000)?,
        "M" => mantissa = mantissa.checked_mul(power(10, 6)?)?,
        "G" => mantissa = mantissa.checked_mul(power(10, 9)?)?,
        "T" => mantissa = mantissa.checked_mul(power(10, 12)?)?,
        "P" => mantissa = mantissa.checked_mul(power(10, 15)?)?,
        "E" => mantissa = mantissa.checked_mul(power(10, 18)?)?,
        "Ki" => mantissa = mantissa.checked_mul(power(1024, 1)?)?,
        "Mi" => mantissa = mantissa.checked_mul(power(1024, 2)?)?,
        "Gi" => mantissa = mantissa.checked_mul(power(1024, 3)?)?,
        "Ti" => mantissa = mantissa.checked_mul(power(1024, 4)?)?,
        "Pi" => mantissa = mantissa.checked_mul(power(1024, 5)?)?,
        "Ei" => mantissa = mantissa.checked_mul(power(1024, 6)?)?,
        exponent => match exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()? {
            e if e >= 0 => mantissa = mantissa.checked_mul(power(10, e.unsigned_abs())?)?,
            e => divisor = divisor.checked_mul(power(10, e.unsigned_abs())?)?,
        },
    }
    let scaled = mantissa.checked_mul(scale)?;
    u64::try_from((scaled + divisor - 1).div_euclid(divisor)).ok()
}
