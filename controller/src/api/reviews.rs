//! What a client may ask about itself: who am I, may I? Nothing is stored. Whoever gets as far as here is the
//! administrator, so the answer to "may I" is yes.

use axum::extract::Request;
use axum::response::Response;
use berth_controller_core::status::Status;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{body, respond};
use crate::pki::Identity;

/// Answers if the path is one of these; gives the request back if not.
pub async fn serve(request: Request) -> Result<Result<Response, Status>, Request> {
    let (api_version, kind) = match request.uri().path() {
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
            ("authorization.k8s.io/v1", "SelfSubjectAccessReview")
        }
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews" => {
            ("authorization.k8s.io/v1", "SelfSubjectRulesReview")
        }
        "/apis/authentication.k8s.io/v1/selfsubjectreviews" => {
            ("authentication.k8s.io/v1", "SelfSubjectReview")
        }
        _ => return Err(request),
    };
    if request.method() != Method::POST {
        return Ok(Err(respond::no_such_method()));
    }
    let user = request.extensions().get::<Identity>().cloned();
    let asked = match body::read(request.into_body()).await {
        Ok(bytes) => bytes,
        Err(status) => return Ok(Err(status)),
    };
    // A question in protobuf is answered too: only its echo is missing.
    let spec = match serde_json::from_slice::<Value>(&asked) {
        Ok(mut asked) => asked["spec"].take(),
        Err(_) => json!({}),
    };
    let status = match kind {
        "SelfSubjectAccessReview" => json!({"allowed": true}),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
        _ => {
            let user = user.map(|u| json!({"username": u.user, "groups": u.groups}));
            json!({"userInfo": user})
        }
    };
    let mut review = json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "status": status});
    if spec.is_object() {
        review["spec"] = spec;
    }
    Ok(Ok(respond::json(StatusCode::CREATED, &review)))
}
