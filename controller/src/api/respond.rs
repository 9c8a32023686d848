//! Answers: JSON, Kubernetes' Status, warnings.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use berth_controller_core::status::Status;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

pub fn json(code: StatusCode, value: &Value) -> Response {
    bytes(code, serde_json::to_vec(value).unwrap_or_default().into())
}

/// JSON that is encoded already.
pub fn bytes(code: StatusCode, body: Bytes) -> Response {
    body_of(code, Body::from(body))
}

pub fn body_of(code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub fn text(code: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// A refusal.
pub fn status(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_json());
    // Clients wait for so long and ask again by themselves.
    if let Some(seconds) = status.details["retryAfterSeconds"].as_u64().filter(|seconds| *seconds > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// For a path that leads nowhere.
pub fn no_such_path() -> Status {
    Status {
        details: serde_json::json!({}),
        ..Status::new(404, "NotFound", "the server could not find the requested resource")
    }
}

pub fn no_such_method() -> Status {
    Status {
        details: serde_json::json!({}),
        ..Status::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }
}

/// Adds `Warning: 299` headers.
pub fn warn(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let quoted: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Keeps a permit for as long as the body is being sent.
pub fn hold(response: Response, permit: OwnedSemaphorePermit) -> Response {
    response.map(|body| Body::new(Held { body, _permit: permit }))
}

struct Held {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        let mut response = text(StatusCode::OK, String::new());
        warn(&mut response, &["unknown field \"spec.foo\"\n".to_owned()]);
        assert_eq!(response.headers()["warning"], "299 - \"unknown field \\\"spec.foo\\\"\"");
    }
}
