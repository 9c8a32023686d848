//! Subresources that are no part of an object but an act on it (`log`, `exec`): `main` registers who does it.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Request};
use axum::response::Response;
use berth_controller_core::kinds::Kind;
use berth_controller_core::status::Status;
use berth_controller_schema::Schema;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::body;
use super::query::Query;
use crate::objects::Options;
use crate::store::Object;

/// A registered subresource.
#[derive(Clone)]
pub struct Connect {
    /// The resource it belongs to, as `Kind::resource()`: `pods`.
    pub resource: &'static str,
    /// Its last path segment: `log`.
    pub subresource: &'static str,
    /// What discovery says of it: the kind of its options or body (`Pod`, `PodExecOptions`)...
    pub kind: &'static str,
    /// ... and its verbs: `get` allows GET, `create` allows POST.
    pub verbs: &'static [&'static str],
    pub handler: Handler,
}

/// Serves one request. May run as long as the client stays.
pub type Handler = Arc<dyn Fn(Connection) -> BoxFuture<'static, Result<Response, Status>> + Send + Sync>;

/// One request for a connect subresource.
pub struct Connection {
    pub kind: &'static Kind,
    /// The object named; it exists.
    pub object: Arc<Object>,
    pub query: Query,
    /// The request itself: to read its body, or to take the connection over (see [`remote_command`](super::remote_command)).
    pub request: Request,
}

impl Connection {
    /// The body as an object of this type of the schema (JSON or protobuf), for what is posted (`Eviction`),
    /// and what the query says about writing it. The options' warnings are to be sent with the answer.
    pub async fn body(self, kind: &str, version: &str, r#type: &str) -> Result<(Value, Options), Status> {
        let options = body::options(&self.query)?;
        let value = body::object(self.request, body::Expected { kind, version, r#type }, &options).await?;
        let decoded = Schema::get()
            .decode_value(r#type, value, options.strictness)
            .map_err(|e| Status::bad_request(e.bad_request(kind, version, kind)))?;
        decoded.warnings.into_iter().for_each(|warning| options.warnings.add(warning));
        Ok((decoded.value, options))
    }

    /// The request as a WebSocket's, or the BadRequest that says it is none.
    pub async fn websocket(self) -> Result<WebSocketUpgrade, Status> {
        let (mut parts, _body) = self.request.into_parts();
        WebSocketUpgrade::from_request_parts(&mut parts, &())
            .await
            .map_err(|e| Status::bad_request(format!("unable to upgrade: {e}")))
    }
}

impl Connect {
    pub fn new<F, R>(
        resource: &'static str,
        subresource: &'static str,
        kind: &'static str,
        verbs: &'static [&'static str],
        handler: F,
    ) -> Connect
    where
        F: Fn(Connection) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, Status>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |connection| Box::pin(handler(connection)));
        Connect { resource, subresource, kind, verbs, handler }
    }
}
