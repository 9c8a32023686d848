//! Credentials for image registries, out of `imagePullSecrets`.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use berth_proto::RegistryAuth;
use serde_json::Value;

use super::volumes::secret_data;
use super::{Sources, list, text};

/// In the order of the secrets; a secret that is missing or of another type gives none, as in Kubernetes.
pub(super) fn credentials(pod: &Value, sources: &Sources) -> Vec<RegistryAuth> {
    let mut all: Vec<RegistryAuth> = Vec::new();
    for reference in list(&pod["spec"]["imagePullSecrets"]) {
        let name = reference["name"].as_str().unwrap_or_default();
        let Some(secret) = sources.own("secrets", name) else { continue };
        let data = secret_data(&secret);
        let parse = |key: &str| serde_json::from_slice::<Value>(data.get(key)?).ok();
        // The newer format has the same entries one level down.
        let entries = match (parse(".dockerconfigjson"), parse(".dockercfg")) {
            (Some(config), _) => config["auths"].clone(),
            (None, Some(config)) => config,
            (None, None) => continue,
        };
        for (registry, entry) in entries.as_object().into_iter().flatten() {
            if let Some((username, password)) = login(entry) {
                all.push(RegistryAuth { registry: host(registry), username, password });
            }
        }
    }
    all
}

fn login(entry: &Value) -> Option<(String, String)> {
    let (username, password) = (text(&entry["username"]), text(&entry["password"]));
    if !username.is_empty() {
        return Some((username, password));
    }
    let auth = entry["auth"].as_str()?.trim();
    let decoded = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).ok()?;
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// `https://index.docker.io/v1/` -> `docker.io`; a path is kept only where it names a repository.
fn host(registry: &str) -> String {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.trim_end_matches('/');
    let bare = ["/v1", "/v2"].iter().find_map(|version| bare.strip_suffix(version)).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}
