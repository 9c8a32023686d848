//! How names must look, with Kubernetes' words for what is wrong (k8s.io/apimachinery util/validation).
//! Each rule returns what is wrong with a text; nothing means it is fine.

use super::NameRule;

/// Characters, and the regular expression shown to people. The rules are checked by hand: they are a few
/// lines each, and a regex engine would be the crate's largest dependency.
struct Pattern {
    says: &'static str,
    regex: &'static str,
    examples: &'static [&'static str],
}

impl Pattern {
    fn message(&self) -> String {
        let examples = self.examples.iter().map(|e| format!("'{e}', ")).collect::<Vec<_>>().join(" or ");
        format!("{} (e.g. {examples}regex used for validation is '{}')", self.says, self.regex)
    }
}

const LABEL: Pattern = Pattern {
    says: "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
    regex: "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    examples: &["my-name", "123-abc"],
};
const SUBDOMAIN: Pattern = Pattern {
    says: "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
    regex: "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    examples: &["example.com"],
};
const LABEL_1035: Pattern = Pattern {
    says: "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
    regex: "[a-z]([-a-z0-9]*[a-z0-9])?",
    examples: &["my-name", "abc-123"],
};
const QUALIFIED: Pattern = Pattern {
    says: "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    regex: "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
    examples: &["MyName", "my.name", "123-abc"],
};
const LABEL_VALUE: Pattern = Pattern {
    says: "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    regex: "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
    examples: &["MyValue", "my_value", "12345"],
};
const CONFIG_KEY: Pattern = Pattern {
    says: "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    regex: "[-._a-zA-Z0-9]+",
    examples: &["key.name", "KEY_NAME", "key-name"],
};
const HTTP_HEADER: Pattern = Pattern {
    says: "a valid HTTP header must consist of alphanumeric characters or '-'",
    regex: "[-A-Za-z0-9]+",
    examples: &["X-Header-Name"],
};

fn too_long(text: &str, max: usize) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} bytes"))
}

/// Not empty, made of `allowed`, with an alphanumeric first and last character.
fn bounded(text: &str, allowed: impl Fn(u8) -> bool, edge: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [only] => edge(*only),
        [first, middle @ .., last] => edge(*first) && edge(*last) && middle.iter().all(|b| allowed(*b)),
    }
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    bounded(text, |b| lower(b) || b == b'-', lower)
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// RFC 1123 label: a container, a volume, a host name.
pub fn label(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(text, 63).into_iter().collect();
    if !is_label(text) {
        wrong.push(if is_subdomain(text) { "must not contain dots".to_owned() } else { LABEL.message() });
    }
    wrong
}

/// RFC 1123 subdomain: most objects' names.
pub fn subdomain(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(text, 253).into_iter().collect();
    if !is_subdomain(text) {
        wrong.push(SUBDOMAIN.message());
    }
    wrong
}

/// RFC 1035 label: a Service.
pub fn label_1035(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(text, 63).into_iter().collect();
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        wrong.push(LABEL_1035.message());
    }
    wrong
}

fn qualified_char(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')
}

/// A label's or annotation's key: `name` or `prefix.example/name`.
pub fn qualified(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED.message()
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    }
    wrong.extend(too_long(name, 63).map(|m| format!("name part {m}")));
    if !bounded(name, qualified_char, |b| b.is_ascii_alphanumeric()) {
        wrong.push(format!("name part {}", QUALIFIED.message()));
    }
    wrong
}

/// A label's value; may be empty.
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(text, 63).into_iter().collect();
    if !text.is_empty() && !bounded(text, qualified_char, |b| b.is_ascii_alphanumeric()) {
        wrong.push(LABEL_VALUE.message());
    }
    wrong
}

/// Anything that is one segment of a URL's path: RBAC.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    let illegal = ["/", "%"].into_iter().filter(|c| text.contains(c));
    illegal.map(|c| format!("may not contain '{c}'")).collect()
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(text, 253).into_iter().collect();
    if text.is_empty() || !text.bytes().all(qualified_char) {
        wrong.push(CONFIG_KEY.message());
    }
    match text {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// The name of an environment variable.
pub fn env_var(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.is_empty() {
        wrong.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|b| (b == b' ' || b.is_ascii_graphic()) && b != b'=') {
        wrong.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    wrong
}

/// The name of a port (IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong: Vec<String> = too_long(text, 15).into_iter().collect();
    let mut must = |ok: bool, says: &str| {
        if !ok {
            wrong.push(says.to_owned());
        }
    };
    must(
        !text.is_empty() && text.bytes().all(|b| lower(b) || b == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    must(text.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    must(!text.contains("--"), "must not contain consecutive hyphens");
    must(!text.starts_with('-') && !text.ends_with('-'), "must not begin or end with a hyphen");
    wrong
}

pub fn http_header(text: &str) -> Vec<String> {
    let fine = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fine { Vec::new() } else { vec![HTTP_HEADER.message()] }
}

/// An object's name under its kind's rule. As a prefix (generateName) it may end with a dash.
pub fn object(rule: NameRule, text: &str, prefix: bool) -> Vec<String> {
    let masked;
    let text = match text.strip_suffix('-') {
        Some(stem) if prefix && !stem.is_empty() && rule != NameRule::PathSegment => {
            masked = format!("{}a", &stem[..stem.len() - stem.chars().next_back().map_or(0, char::len_utf8)]);
            masked.as_str()
        }
        _ => text,
    };
    match rule {
        NameRule::Subdomain => subdomain(text),
        NameRule::Label => label(text),
        NameRule::Label1035 => label_1035(text),
        NameRule::PathSegment => path_segment(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_lower_case_and_short() {
        assert!(label("web-0").is_empty());
        assert!(label("0").is_empty());
        for bad in ["", "-web", "web-", "Web", "web_0"] {
            assert_eq!(
                label(bad),
                [
                    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                  start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                  validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                ],
                "{bad}"
            );
        }
        assert_eq!(label("a.b"), ["must not contain dots"]);
        assert_eq!(label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn a_service_starts_with_a_letter_and_other_objects_need_not() {
        assert!(!label_1035("1web").is_empty());
        assert!(subdomain("1web.example").is_empty());
        assert!(!subdomain("web..example").is_empty());
    }

    #[test]
    fn a_label_key_may_have_a_domain_before_its_name() {
        assert!(qualified("statefulset.kubernetes.io/pod-name").is_empty());
        assert_eq!(qualified("/x")[0], "prefix part must be non-empty");
        assert_eq!(qualified("a.b/")[0], "name part must be non-empty");
        assert!(qualified("a/b/c")[0].starts_with("a qualified name must consist of"));
    }

    #[test]
    fn a_generated_name_may_end_with_a_dash_before_its_suffix() {
        assert!(object(NameRule::Label, "job-", true).is_empty());
        assert!(!object(NameRule::Label, "job-", false).is_empty());
        assert!(!object(NameRule::Label, "-", true).is_empty());
    }

    #[test]
    fn a_port_name_holds_a_letter_and_no_double_hyphen() {
        assert!(port_name("http-2").is_empty());
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
        assert_eq!(port_name("a--b"), ["must not contain consecutive hyphens"]);
        assert_eq!(port_name("averyverylongname"), ["must be no more than 15 bytes"]);
    }
}
