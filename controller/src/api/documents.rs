//! What is served, told to clients: discovery and the OpenAPI documents.

use axum::extract::Request;
use axum::response::Response;
use berth_controller_core::kinds::{self, Kind, Subresource};
use berth_controller_core::status::Status;
use berth_controller_schema::Schema;
use berth_controller_schema::openapi::{OpenApi, Resource, Subresource as Documented};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;

use super::accept::{Form, Offer, negotiate};
use super::route::Target;
use super::{discovery, respond};
use crate::objects::scale;

/// Not the name it is asked for with, whose `@` no parser of media types takes.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents of all kinds.
pub fn openapi(schema: &'static Schema) -> OpenApi {
    OpenApi::new(schema, kinds::ALL.iter().map(|kind| resource(kind)).collect())
}

fn resource(kind: &Kind) -> Resource {
    let subresources = kind.subresources.iter().map(|sub| match sub {
        Subresource::Status => Documented::Own("status"),
        Subresource::Scale => Documented::Other {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            schema: scale::SCHEMA,
        },
        Subresource::Finalize => Documented::Write {
            name: "finalize",
            method: "put",
            group: kind.group,
            version: kind.version,
            kind: kind.kind,
            schema: kind.schema,
        },
        Subresource::Connect(name) => Documented::Connect(name),
    });
    Resource {
        group: kind.group,
        version: kind.version,
        kind: kind.kind,
        plural: kind.plural,
        namespaced: kind.namespaced,
        schema: kind.schema,
        subresources: subresources.collect(),
    }
}

/// Serves a request for a document; `address` is where clients find this server.
pub fn serve(openapi: &OpenApi, target: &Target, request: &Request) -> Result<Response, Status> {
    let known = match target {
        Target::Unknown | Target::Objects(_) => false,
        Target::Group(group) => discovery::group(group).is_some(),
        Target::Resources { group, version } => discovery::resource_list(group, version).is_some(),
        _ => true,
    };
    if known && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(respond::no_such_method());
    }
    let headers = request.headers();
    let found = match target {
        Target::Root => {
            let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
            for kind in kinds::ALL {
                let path = if kind.group.is_empty() {
                    format!("/api/{}", kind.version)
                } else {
                    format!("/apis/{}/{}", kind.group, kind.version)
                };
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
            paths.extend(
                ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
                    .map(str::to_owned),
            );
            paths.sort();
            Some(json!({"paths": paths}))
        }
        Target::CoreVersions | Target::Groups => {
            let core = matches!(target, Target::CoreVersions);
            if let Form::Discovery(version) = negotiate(headers, Offer::Discovery)? {
                return Ok(aggregated(core, version));
            }
            Some(if core { discovery::core_versions(&host(request)) } else { discovery::group_list() })
        }
        Target::Group(group) => discovery::group(group),
        Target::Resources { group, version } => discovery::resource_list(group, version),
        Target::OpenApiV3Index => {
            return Ok(document(openapi, request, "application/json", || openapi.v3_index()));
        }
        Target::OpenApiV3(path) => {
            let Some(body) = openapi.v3(path) else { return Err(respond::no_such_path()) };
            return Ok(document(openapi, request, "application/json", || body));
        }
        Target::OpenApiV2 => {
            return Ok(match negotiate(headers, Offer::OpenApi)? {
                Form::OpenApiV2Protobuf => document(openapi, request, V2_PROTOBUF, || openapi.v2_protobuf()),
                _ => document(openapi, request, "application/json", || openapi.v2_json()),
            });
        }
        Target::Objects(_) | Target::Unknown => None,
    };
    match found {
        Some(value) => {
            negotiate(headers, Offer::Nothing)?;
            Ok(respond::json(StatusCode::OK, &value))
        }
        None => Err(respond::no_such_path()),
    }
}

fn aggregated(core: bool, version: &'static str) -> Response {
    let mut response = respond::json(StatusCode::OK, &discovery::aggregated(core, version));
    let content = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// Where the client reached us.
fn host(request: &Request) -> String {
    let named = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    named.or(request.uri().authority().map(|a| a.as_str())).unwrap_or_default().to_owned()
}

/// A document that clients may keep for as long as its ETag holds.
fn document(
    openapi: &OpenApi,
    request: &Request,
    content: &'static str,
    body: impl FnOnce() -> Vec<u8>,
) -> Response {
    let tag = format!("\"{}\"", openapi.etag());
    let known =
        request.headers().get_all(header::IF_NONE_MATCH).iter().any(|v| {
            v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().trim_start_matches("W/") == tag))
        });
    let mut response = if known {
        respond::bytes(StatusCode::NOT_MODIFIED, Bytes::new())
    } else {
        respond::bytes(StatusCode::OK, body().into())
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}
