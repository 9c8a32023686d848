//! Image names as people write them, and as containerd and registries know them.

use std::net::IpAddr;

use oci_client::Reference;

use super::super::ImageError;

/// Kubernetes' (Docker's) rules: docker.io by default, `library/` for one-word names there, `:latest` when neither tag
/// nor digest is given; with both, the digest decides and the tag is dropped.
pub(crate) fn normalise(name: &str) -> Result<Reference, ImageError> {
    let invalid = |message: String| ImageError::InvalidName { name: name.to_owned(), message };
    let parsed: Reference = name.parse().map_err(|e: oci_client::ParseError| invalid(e.to_string()))?;
    // `UPPER/case` reads like a host without a dot; as a repository it is none.
    if parsed.repository().bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(invalid("repository name must be lowercase".into()));
    }
    Ok(match parsed.digest() {
        Some(digest) => parsed.clone_with_digest(digest.to_owned()),
        None => parsed,
    })
}

/// The name in containerd: docker.io/library/busybox:latest.
pub(crate) fn full_name(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{}@{digest}", repository(reference)),
        (None, tag) => format!("{}:{}", repository(reference), tag.unwrap_or("latest")),
    }
}

/// docker.io/library/busybox.
pub(crate) fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// Whether a registry is spoken to by plain HTTP: on this machine itself, or by configuration.
pub(crate) fn is_plain_http(registry: &str, insecure: &[String]) -> bool {
    if insecure.iter().any(|one| one == registry) {
        return true;
    }
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether credentials written for `written` are for this registry: Docker's configuration files call docker.io by
/// several names, with scheme and path.
pub(crate) fn is_for(written: &str, registry: &str) -> bool {
    fn plain(name: &str) -> &str {
        let name = name.trim_start_matches("https://").trim_start_matches("http://");
        match name.split('/').next().unwrap_or(name) {
            "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
            other => other,
        }
    }
    plain(written) == plain(registry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(written: &str) -> String {
        full_name(&normalise(written).unwrap())
    }

    #[test]
    fn short_names_are_dockers() {
        assert_eq!(name("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(name("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(name("grafana/loki"), "docker.io/grafana/loki:latest");
        assert_eq!(name("index.docker.io/busybox"), "docker.io/library/busybox:latest");
    }

    #[test]
    fn a_host_is_known_by_dot_port_or_localhost() {
        assert_eq!(name("quay.io/a/b:1"), "quay.io/a/b:1");
        assert_eq!(name("localhost/a"), "localhost/a:latest");
        assert_eq!(name("localhost:5000/a:x"), "localhost:5000/a:x");
        assert_eq!(name("registry:5000/a"), "registry:5000/a:latest");
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(name(&format!("busybox:1@{digest}")), format!("docker.io/library/busybox@{digest}"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "UPPER", "UPPER/case", "a b", "busybox:", "x@sha256:12", "http://x/y", ":tag"] {
            assert!(matches!(normalise(bad), Err(ImageError::InvalidName { .. })), "{bad:?}");
        }
    }

    #[test]
    fn plain_http_only_on_this_machine_or_where_told() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000", "reg.lan:80"]
        {
            assert!(is_plain_http(yes, &["reg.lan:80".into()]), "{yes}");
        }
        for no in ["docker.io", "10.0.0.1:5000", "reg.lan", "localhost.example"] {
            assert!(!is_plain_http(no, &["reg.lan:80".into()]), "{no}");
        }
    }

    #[test]
    fn credentials_for_docker_hub_go_by_many_names() {
        assert!(is_for("https://index.docker.io/v1/", "docker.io"));
        assert!(is_for("reg.example:5000", "reg.example:5000"));
        assert!(!is_for("reg.example", "reg.example:5000"));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(written in "[a-z0-9./:@-]{1,40}") {
            if let Ok(reference) = normalise(&written) {
                let once = full_name(&reference);
                prop_assert_eq!(name(&once), once);
            }
        }
    }
}
