//! The query of a URL: pairs in order, percent-decoded, with Kubernetes' way to read them.

use berth_controller_core::status::Status;

#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// All values of a parameter (`command`).
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    /// A boolean as Kubernetes reads it: `?watch` and `?watch=1` are true, `0` and `false` are not.
    pub fn flag(&self, name: &str) -> bool {
        match self.0.iter().find(|(n, _)| n == name) {
            None => false,
            Some((_, value)) => !matches!(value.to_lowercase().as_str(), "0" | "false" | "f"),
        }
    }

    /// A whole number, or the BadRequest that says it is none.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("invalid query parameter {name}: {text:?} is not a whole number"))
            }),
        }
    }
}

/// Percent-decoding; `plus` also makes `+` a space. What is not UTF-8 is replaced.
pub(super) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', ..) if plus => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_kubernetes_reads_them() {
        let query = Query::parse("command=ls&command=-l%20a+b&stdin=0&tty&watch=true&limit=x&empty=");
        assert_eq!(query.all("command"), ["ls", "-l a b"]);
        assert!(!query.flag("stdin") && query.flag("tty") && query.flag("watch") && !query.flag("absent"));
        assert_eq!(query.get("empty"), None);
        assert!(query.number("limit").is_err());
        assert_eq!(decode("%zz%4", true), "%zz%4");
        assert_eq!(decode("%41+", false), "A+");
    }
}
