//! The Service `default/kubernetes`: the name under which pods find this controller's API. Written at each start,
//! since only then may its address have changed; nothing else depends on it.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use berth_controller_core::kinds::endpoint_slice::ENDPOINT_SLICE;
use berth_controller_core::kinds::endpoints::ENDPOINTS;
use berth_controller_core::kinds::service::SERVICE;
use berth_controller_core::services::allocate::AddressRange;
use berth_controller_core::services::{SERVICE_NAME, SKIP_MIRROR};
use berth_controller_core::status::Status;
use serde_json::{Value, json};

use super::endpoints;
use crate::objects::{Objects, Options};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Makes the Service, or brings it up to date; `api` is where others reach the API, and `port` the one it listens at.
pub async fn publish(
    objects: &Objects,
    range: AddressRange,
    api: Option<IpAddr>,
    port: u16,
) -> Result<(), Status> {
    let service = json!({
        "metadata": {"name": NAME, "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": range.first().to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    });
    match objects.create(&SERVICE, NAMESPACE, service.clone(), &Options::default()).await {
        // Somebody else has the address, or an operator has chosen another range since: theirs are left alone.
        Err(status) if status.code == 422 => {
            tracing::warn!(why = status.message, "the Service kubernetes cannot be made");
            return Ok(());
        }
        // The namespace was deleted on purpose.
        Err(status) if matches!(status.code, 403 | 404) => return Ok(()),
        Err(status) if status.code == 409 => {
            let change = |there: &mut Value| {
                there["spec"]["ports"] = service["spec"]["ports"].clone();
                Ok(())
            };
            objects.modify(&SERVICE, None, NAMESPACE, NAME, change).await?;
        }
        other => drop(other?),
    }
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let subsets: Vec<Value> =
        api.iter().map(|ip| json!({"addresses": [{"ip": ip}], "ports": ports})).collect();
    let metadata = |labels: Value| json!({"name": NAME, "namespace": NAMESPACE, "labels": labels});
    let of_endpoints = json!({"metadata": metadata(json!({SKIP_MIRROR: "true"})), "subsets": subsets});
    endpoints::put(objects, &ENDPOINTS, of_endpoints).await?;
    let ready: Vec<Value> =
        api.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let slice = json!({
        "metadata": metadata(json!({SERVICE_NAME: NAME})),
        "addressType": if api.is_some_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" },
        "endpoints": ready, "ports": ports,
    });
    endpoints::put(objects, &ENDPOINT_SLICE, slice).await
}

/// Where others than this host reach an API that listens there; None: nowhere. `advertised` are the operator's
/// names and addresses for it.
pub fn reached_at(listen: SocketAddr, advertised: &[String]) -> Option<IpAddr> {
    match listen.ip() {
        ip if ip.is_loopback() => None,
        ip if !ip.is_unspecified() => Some(ip),
        _ => advertised.iter().find_map(|name| name.parse().ok()).or_else(outgoing),
    }
}

/// The address this host speaks to the world with. Nothing is sent: connecting a datagram socket only chooses a route.
fn outgoing() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("203.0.113.1:9").ok()?;
    socket.local_addr().ok().map(|at| at.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}
