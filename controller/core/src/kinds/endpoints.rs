//! Endpoints: the addresses behind a Service, in the older of its two forms. Kept by the controller for services
//! with a selector; people keep those of services without one.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use super::check::{self, At, Errors, Unique, invalid_each, label_name, one_of, port_number};
use super::columns::{self, list, text};
use super::{Kind, default, names};
use crate::field::FieldError;

pub static ENDPOINTS: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    default: |endpoints| {
        for subset in default::each(endpoints, "subsets") {
            for port in default::each(subset, "ports") {
                default::if_zero(port, "protocol", "TCP");
            }
        }
    },
    validate,
    columns: &[
        columns::NAME,
        text("Endpoints", "The first of the addresses that are ready.", |endpoints, _| {
            shown(endpoints).into()
        }),
        columns::AGE,
    ],
    ..Kind::COMMON
};

/// How many are shown before the rest is counted.
pub(super) const SHOWN: usize = 3;

fn shown(endpoints: &Value) -> String {
    let mut all: Vec<String> = Vec::new();
    for subset in list(&endpoints["subsets"]) {
        let ips: Vec<&str> = list(&subset["addresses"]).iter().filter_map(|a| a["ip"].as_str()).collect();
        let ports = list(&subset["ports"]);
        if ports.is_empty() {
            all.extend(ips.iter().map(|ip| (*ip).to_owned()));
        }
        for port in ports {
            all.extend(ips.iter().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{}", port["port"]),
                false => format!("{ip}:{}", port["port"]),
            }));
        }
    }
    some_of(&all, "<none>")
}

/// The first few, and how many more there are.
pub(super) fn some_of(all: &[String], none: &str) -> String {
    match all.len() {
        0 => none.to_owned(),
        n if n <= SHOWN => all.join(","),
        n => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN),
    }
}

fn validate(endpoints: &Value) -> Errors {
    let mut errors = Errors::new();
    for subset in At::root(endpoints).get("subsets").items() {
        let (ready, not_ready) = (subset.get("addresses"), subset.get("notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for address in ready.items().chain(not_ready.items()) {
            errors.extend(ip(&address.get("ip")));
            let hostname = address.get("hostname");
            if !hostname.str().is_empty() {
                errors.extend(invalid_each(&hostname, names::label(hostname.str())));
            }
            let node = address.get("nodeName");
            if node.is_set() {
                errors.extend(invalid_each(&node, names::subdomain(node.str())));
            }
        }
        errors.extend(ports(&subset.get("ports"), true));
    }
    errors
}

/// `named`: with more than one, each has a name.
pub(super) fn ports(ports: &At, named: bool) -> Errors {
    let mut errors = Errors::new();
    let mut names = Unique::default();
    for port in ports.items() {
        let name = port.get("name");
        if named && ports.len() > 1 && name.str().is_empty() {
            errors.push(name.required(""));
        } else if !name.str().is_empty() {
            errors.extend(label_name(&name));
            errors.extend(names.check(&name));
        }
        let number = port.get("port");
        if named || number.is_set() {
            errors.extend(port_number(&number));
        }
        errors.extend(one_of(&port.get("protocol"), &["SCTP", "TCP", "UDP"]));
        let application = port.get("appProtocol");
        if application.is_set() {
            errors.extend(invalid_each(&application, names::qualified(application.str())));
        }
    }
    errors
}

/// An address packets can be sent to from elsewhere.
pub(super) fn ip(at: &At) -> Option<FieldError> {
    let Ok(address) = at.str().parse::<IpAddr>() else { return super::pod_spec::ip(at) };
    let why = match address {
        a if a.is_unspecified() => format!("may not be unspecified ({a})"),
        a if a.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        IpAddr::V4(a) if a.is_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
        }
        IpAddr::V6(a) if a.is_unicast_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
        }
        IpAddr::V4(a) if a.octets()[..3] == Ipv4Addr::new(224, 0, 0, 0).octets()[..3] => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
        }
        _ => return None,
    };
    Some(check::At::invalid(at, why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(subsets: Value) -> Vec<String> {
        let mut endpoints = json!({"metadata": {"name": "e"}, "subsets": subsets});
        (ENDPOINTS.default)(&mut endpoints);
        validate(&endpoints).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn three_are_shown_and_the_rest_is_counted() {
        let row = |subsets: Value| shown(&json!({"subsets": subsets}));
        assert_eq!(row(json!([])), "<none>");
        let ips = |n: usize| (1..=n).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect::<Vec<_>>();
        assert_eq!(row(json!([{"addresses": ips(2), "ports": [{"port": 80}]}])), "10.0.0.1:80,10.0.0.2:80");
        assert_eq!(row(json!([{"addresses": ips(1)}])), "10.0.0.1");
        let many = row(json!([{"addresses": ips(3), "ports": [{"port": 80}, {"port": 81}]}]));
        assert_eq!(many, "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 3 more...");
    }

    #[test]
    fn an_address_is_one_that_can_be_reached() {
        assert_eq!(errors(json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}])), [""; 0]);
        assert_eq!(
            errors(json!([{"ports": [{"port": 0}]}])),
            [
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
        for (ip, why) in
            [("127.0.0.1", "loopback"), ("0.0.0.0", "unspecified"), ("169.254.1.1", "link-local")]
        {
            let refused = errors(json!([{"addresses": [{"ip": ip}]}]));
            assert!(refused.len() == 1 && refused[0].contains(why), "{refused:?}");
        }
        assert!(errors(json!([{"addresses": [{"ip": "web"}]}]))[0].contains("must be a valid IP address"));
    }

    #[test]
    fn several_ports_have_names() {
        let ports = json!([{"port": 80}, {"port": 81, "name": "b"}]);
        assert_eq!(
            errors(json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": ports}])),
            ["subsets[0].ports[0].name: Required value"]
        );
    }
}
