//! What anybody may ask: whether the server is well, and what it is.

use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::query::Query;
use super::respond;

/// Checks by name. Answering at all is most of what there is to check: memory holds everything that is read,
/// and a store that cannot write says so to the writer.
const CHECKS: &[&str] = &["ping", "store"];

/// Whether a path is served without credentials.
pub fn is_public(path: &str) -> bool {
    path == "/version" || path == "/version/" || health(path).is_some()
}

/// The check a path asks for: (`livez`, "" or its name).
fn health(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/').strip_prefix('/')?;
    let (endpoint, check) = path.split_once('/').unwrap_or((path, ""));
    ["healthz", "livez", "readyz"].contains(&endpoint).then_some((endpoint, check))
}

/// Answers if the path is one of these.
pub fn answer(path: &str, query: &Query) -> Option<Response> {
    if path.trim_end_matches('/') == "/version" {
        return Some(respond::json(StatusCode::OK, &version()));
    }
    let (endpoint, check) = health(path)?;
    if !check.is_empty() && !CHECKS.contains(&check) {
        return Some(respond::status(&respond::no_such_path()));
    }
    let mut text = "ok".to_owned();
    if query.flag("verbose") {
        let left_out = query.all("exclude");
        text = CHECKS.iter().filter(|c| !left_out.contains(c)).map(|c| format!("[+]{c} ok\n")).collect();
        text.push_str(&format!("{endpoint} check passed\n"));
    }
    Some(respond::text(StatusCode::OK, text))
}

/// The Kubernetes release whose API this is, and what serves it.
fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "36",
        "gitVersion": concat!("v1.36.0+berth-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_health_and_version_are_public() {
        for path in ["/healthz", "/livez", "/readyz/ping", "/livez/", "/version"] {
            assert!(is_public(path), "{path}");
        }
        for path in ["/", "/api", "/healthzz", "/versions", "/apis/healthz", "healthz"] {
            assert!(!is_public(path), "{path}");
        }
    }
}
