//! EndpointSlice: the addresses behind a Service, in the newer form. Kept by the controller for services with a
//! selector; those without its label are people's own.

use serde_json::Value;

use super::check::{self, At, Errors, immutable, invalid_each, one_of};
use super::columns::{self, list, or, text};
use super::endpoints::{ip, ports, some_of};
use super::{Kind, default, names};
use crate::field::{FieldError, Reason};
use crate::services::MOST_ENDPOINTS;

const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 20_000;

pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    default: |slice| {
        for port in default::each(slice, "ports") {
            default::if_absent(port, "name", "");
            default::if_zero(port, "protocol", "TCP");
        }
    },
    validate,
    validate_update: |old, new| {
        let (old, new) = (At::root(old), At::root(new));
        immutable(&old.get("addressType"), &new.get("addressType")).into_iter().collect()
    },
    columns: &[
        columns::NAME,
        text("AddressType", "What the addresses are.", |slice, _| or(&slice["addressType"], "")),
        text("Ports", "The ports of all endpoints.", |slice, _| {
            let ports = list(&slice["ports"]).iter().map(|port| match &port["port"] {
                Value::Number(number) => number.to_string(),
                _ => port["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("*").to_owned(),
            });
            some_of(&ports.collect::<Vec<_>>(), "<unset>").into()
        }),
        text("Endpoints", "The first of the addresses.", |slice, _| {
            let addresses = list(&slice["endpoints"]).iter().flat_map(|e| list(&e["addresses"]));
            let addresses: Vec<String> = addresses.filter_map(|a| a.as_str().map(str::to_owned)).collect();
            some_of(&addresses, "<unset>").into()
        }),
        columns::AGE,
    ],
    ..Kind::COMMON
};

fn validate(slice: &Value) -> Errors {
    let slice = At::root(slice);
    let mut errors = Errors::new();
    let kind = slice.get("addressType");
    if kind.str().is_empty() {
        errors.push(kind.required(""));
    } else {
        errors.extend(one_of(&kind, &["FQDN", "IPv4", "IPv6"]));
    }
    let endpoints = slice.get("endpoints");
    errors.extend(too_many(&endpoints, MOST_ENDPOINTS));
    for endpoint in endpoints.items() {
        let addresses = endpoint.get("addresses");
        if addresses.is_empty() {
            errors.push(addresses.required("must contain at least 1 address"));
        }
        errors.extend(too_many(&addresses, MOST_ADDRESSES));
        for address in addresses.items() {
            errors.extend(self::address(&address, kind.str()));
        }
        let hostname = endpoint.get("hostname");
        if hostname.is_set() {
            errors.extend(invalid_each(&hostname, names::label(hostname.str())));
        }
        let node = endpoint.get("nodeName");
        if node.is_set() {
            errors.extend(invalid_each(&node, names::subdomain(node.str())));
        }
        errors.extend(check::labels(&endpoint.get("deprecatedTopology")));
    }
    errors.extend(too_many(&slice.get("ports"), MOST_PORTS));
    errors.extend(ports(&slice.get("ports"), false));
    errors
}

fn address(at: &At, kind: &str) -> Errors {
    match kind {
        "FQDN" => invalid_each(at, names::subdomain(at.str())),
        _ => match (ip(at), at.str().contains(':')) {
            (Some(wrong), _) => vec![wrong],
            (None, true) if kind == "IPv4" => vec![at.invalid("must be an IPv4 address")],
            (None, false) if kind == "IPv6" => vec![at.invalid("must be an IPv6 address")],
            _ => Vec::new(),
        },
    }
}

fn too_many(at: &At, most: usize) -> Option<FieldError> {
    (at.len() > most).then(|| FieldError {
        path: at.path.clone(),
        reason: Reason::TooMany,
        value: None,
        detail: format!("must have at most {most} items"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(more: Value) -> Value {
        let mut slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]});
        for (field, value) in more.as_object().unwrap() {
            slice[field] = value.clone();
        }
        (ENDPOINT_SLICE.default)(&mut slice);
        slice
    }

    fn errors(more: Value) -> Vec<String> {
        validate(&slice(more)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_slice_has_addresses_of_its_type() {
        assert_eq!(errors(json!({})), [""; 0]);
        assert_eq!(errors(json!({"addressType": ""})), ["addressType: Required value"]);
        assert_eq!(
            errors(json!({"endpoints": [{"addresses": []}, {"addresses": ["fd00::1"]}]})),
            [
                "endpoints[0].addresses: Required value: must contain at least 1 address",
                r#"endpoints[1].addresses[0]: Invalid value: "fd00::1": must be an IPv4 address"#,
            ]
        );
        let many = vec![json!({"addresses": ["10.0.0.1"]}); 1001];
        assert_eq!(errors(json!({"endpoints": many})), ["endpoints: Too many: must have at most 1000 items"]);
        let changed = slice(json!({"addressType": "IPv6"}));
        assert_eq!((ENDPOINT_SLICE.validate_update)(&slice(json!({})), &changed).len(), 1);
    }

    #[test]
    fn the_row_shows_ports_and_addresses() {
        let cell =
            |slice: &Value, i: usize| (ENDPOINT_SLICE.columns[i].cell)(slice, jiff::Timestamp::UNIX_EPOCH);
        let shown = slice(json!({"ports": [{"port": 80}, {"name": "x"}, {}]}));
        assert_eq!(
            (cell(&shown, 1), cell(&shown, 2), cell(&shown, 3)),
            ("IPv4".into(), "80,x,*".into(), "10.0.0.1".into())
        );
        let empty = slice(json!({"ports": [], "endpoints": []}));
        assert_eq!((cell(&empty, 2), cell(&empty, 3)), ("<unset>".into(), "<unset>".into()));
    }
}
