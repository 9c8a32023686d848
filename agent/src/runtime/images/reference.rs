//! Image names as people write them, and as containerd and registries know them.

use std::net::IpAddr;

use oci_client::Reference;

use super::super::ImageError;

/// Kubernetes' (Docker's) rules: docker.io by default, `library/` for one-word names there, `:latest` when neither tag
/// nor digest is given; with both, the digest decides and the tag is dropped.
///
/// The grammar is the distribution project's (reference.Parse), read by hand: as regular expressions it costs an agent
/// five megabytes of compiled tables for good.
pub(crate) fn normalise(name: &str) -> Result<Reference, ImageError> {
    let invalid =
        |message: &str| ImageError::InvalidName { name: name.to_owned(), message: message.to_owned() };
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    // A colon after the last slash begins a tag; one before it, a port.
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let (registry, repository) = match path.split_once('/') {
        Some((first, below)) if first.contains(['.', ':']) || first == "localhost" => (first, below),
        _ => (DOCKER_HUB, path),
    };
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    if repository.is_empty() {
        return Err(invalid("a repository's name is missing"));
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(invalid("repository name must be lowercase"));
    }
    if !is_host(registry) || !repository.split('/').all(is_path_component) {
        return Err(invalid("invalid reference format"));
    }
    let repository = match repository {
        word if registry == DOCKER_HUB && !word.contains('/') => format!("library/{word}"),
        path => path.to_owned(),
    };
    if registry.len() + 1 + repository.len() > 255 {
        return Err(invalid("repository name must not be more than 255 characters"));
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(invalid("invalid tag format"));
    }
    let registry = registry.to_owned();
    match digest {
        Some(digest) if !is_digest(digest) => {
            Err(invalid("invalid digest: algorithm:hex of full length is wanted"))
        }
        Some(digest) => Ok(Reference::with_digest(registry, repository, digest.to_owned())),
        None => Ok(Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned())),
    }
}

const DOCKER_HUB: &str = "docker.io";

/// A host name or an address (an IPv6 one in brackets), and perhaps a port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let label = |label: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        edge(label.as_bytes().first())
            && edge(label.as_bytes().last())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let named = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(label),
    };
    named && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Lower-case words with one separator between two of them: `.`, `_`, `__`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    let separators = component.split(|c: char| u8::try_from(c).is_ok_and(word));
    word(*first)
        && word(*last)
        && separators.into_iter().all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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

    #[test]
    fn separators_stand_alone_and_inside() {
        for good in
            ["a.b", "a_b", "a__b", "a---b", "a/b-c/d.e", "[::1]:5000/a", "127.0.0.1:5000/a", "a:5000/b"]
        {
            assert!(normalise(good).is_ok(), "{good:?}");
        }
        for bad in [
            "a..b", "a___b", "a._b", "-a", "a-", "a//b", "a/", "/a", "a.b:x/c", "[::g]/a", "-a.b/c", "\u{e9}",
        ] {
            assert!(normalise(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// Both read the same grammar; the library's own reading is by regular expressions.
        #[test]
        fn it_reads_as_the_library_does(written in "([a-z0-9]{1,3}[./:@_-]{0,2}){1,6}|[a-zA-Z0-9./:@_-]{1,20}") {
            let library: Result<Reference, _> = written.parse();
            // Where Docker makes upper case in front of a slash a host, a name without a dot is none here.
            if let Ok(theirs) = library && !theirs.repository().bytes().any(|b| b.is_ascii_uppercase()) {
                let ours = normalise(&written).unwrap();
                prop_assert_eq!((ours.registry(), ours.repository()), (theirs.registry(), theirs.repository()));
            }
        }

        #[test]
        fn normalising_twice_changes_nothing(written in "[a-z0-9./:@-]{1,40}") {
            if let Ok(reference) = normalise(&written) {
                let once = full_name(&reference);
                prop_assert_eq!(name(&once), once);
            }
        }
    }
}
