//! Which objects a request or a controller means: label selectors, as kubectl writes them (`a=b,c in (d,e),!x`)
//! and as LabelSelector objects, and field selectors (`status.phase=Running,metadata.name!=x`).

use std::fmt;

use serde_json::Value;

use crate::kinds::names;

/// All requirements must hold. None at all: everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    /// An absent LabelSelector object selects nothing, unlike an empty one.
    nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    /// One of these values; several only if written as `in (..)`.
    In(Vec<String>),
    /// None of these values; an absent label passes.
    NotIn(Vec<String>),
    Exists,
    Absent,
    GreaterThan(i64),
    LessThan(i64),
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Test::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Test::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::GreaterThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n),
            Test::LessThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
        }
    }
}

impl Selector {
    /// Matches every object.
    pub fn everything() -> Selector {
        Selector::default()
    }

    /// Matches no object.
    pub fn nothing() -> Selector {
        Selector { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// The selector in a LabelSelector object (`spec.selector` of a StatefulSet). Null selects nothing, `{}`
    /// everything. Fails on an operator or key that validation would have refused.
    pub fn from_object(selector: &Value) -> Result<Selector, ParseError> {
        if selector.is_null() {
            return Ok(Selector::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let test = Test::In(vec![value.as_str().unwrap_or_default().to_owned()]);
            requirements.push(Requirement { key: checked_key(key)?, test });
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let strings = expression["values"].as_array().into_iter().flatten();
            let values: Vec<String> = strings.filter_map(Value::as_str).map(str::to_owned).collect();
            let test = match expression["operator"].as_str().unwrap_or_default() {
                "In" if !values.is_empty() => Test::In(values),
                "NotIn" if !values.is_empty() => Test::NotIn(values),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Absent,
                other => return Err(ParseError(format!("{other:?} is not a valid label selector operator"))),
            };
            requirements.push(Requirement {
                key: checked_key(expression["key"].as_str().unwrap_or_default())?,
                test,
            });
        }
        Ok(Selector { requirements, nothing: false })
    }

    /// The selector in a plain map of labels (a Service's `spec.selector`). Empty selects nothing, as Services do.
    pub fn from_map(labels: &Value) -> Selector {
        match labels.as_object() {
            Some(map) if !map.is_empty() => {
                let requirements = map.iter().map(|(key, value)| Requirement {
                    key: key.clone(),
                    test: Test::In(vec![value.as_str().unwrap_or_default().to_owned()]),
                });
                Selector { requirements: requirements.collect(), nothing: false }
            }
            _ => Selector::nothing(),
        }
    }

    /// The same, and this label too.
    pub fn and(mut self, key: &str, value: &str) -> Selector {
        self.requirements.push(Requirement { key: key.to_owned(), test: Test::In(vec![value.to_owned()]) });
        self
    }

    /// The same, but not this label with this value.
    pub fn and_not(mut self, key: &str, value: &str) -> Selector {
        self.requirements
            .push(Requirement { key: key.to_owned(), test: Test::NotIn(vec![value.to_owned()]) });
        self
    }

    /// A label that everything selected has with one value, if there is one: what to look in an index for.
    pub fn pair(&self) -> Option<(&str, &str)> {
        self.requirements.iter().find_map(|r| match &r.test {
            Test::In(values) if values.len() == 1 => Some((r.key.as_str(), values[0].as_str())),
            _ => None,
        })
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// Whether labels match, given how to look one up.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.test.holds(label(&r.key)))
    }

    /// Whether a map of labels (`metadata.labels`) matches.
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels[key].as_str())
    }
}

fn checked_key(key: &str) -> Result<String, ParseError> {
    match names::qualified(key).into_iter().next() {
        None => Ok(key.to_owned()),
        Some(why) => Err(ParseError(format!("key: Invalid value: {key:?}: {why}"))),
    }
}

impl fmt::Display for Selector {
    /// As kubectl writes it; parses back to the same selector.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Requirement { key, test }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Test::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Test::Exists => write!(f, "{key}")?,
                Test::Absent => write!(f, "!{key}")?,
                Test::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Test::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

/// What is wrong with a selector's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

impl std::str::FromStr for Selector {
    type Err = ParseError;

    /// `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    fn from_str(text: &str) -> Result<Selector, ParseError> {
        let mut tokens = Tokens { rest: text };
        let mut requirements = Vec::new();
        loop {
            match tokens.next() {
                Token::End if requirements.is_empty() => break,
                Token::Comma => return Err(expected(Token::Comma, "identifier after ','")),
                Token::Not => {
                    let key = checked_key(tokens.identifier("!, identifier")?)?;
                    requirements.push(Requirement { key, test: Test::Absent });
                }
                Token::Text(key) => {
                    requirements.push(Requirement { key: checked_key(key)?, test: tokens.test()? })
                }
                other => return Err(expected(other, "!, identifier, or 'end of string'")),
            }
            match tokens.next() {
                Token::End => break,
                Token::Comma => {}
                other => return Err(expected(other, "',' or 'end of string'")),
            }
        }
        Ok(Selector { requirements, nothing: false })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Text(&'a str),
    Comma,
    Open,
    Close,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
    End,
}

fn expected(found: Token, what: &str) -> ParseError {
    let found = match found {
        Token::Text(text) => text,
        Token::Comma => ",",
        Token::Open => "(",
        Token::Close => ")",
        Token::Not => "!",
        Token::Equals => "=",
        Token::NotEquals => "!=",
        Token::Greater => ">",
        Token::Less => "<",
        Token::End => "",
    };
    ParseError(format!("unable to parse requirement: found '{found}', expected: {what}"))
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Token<'a> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let symbols = [
            ("==", Token::Equals),
            ("!=", Token::NotEquals),
            ("=", Token::Equals),
            ("!", Token::Not),
            (",", Token::Comma),
            ("(", Token::Open),
            (")", Token::Close),
            (">", Token::Greater),
            ("<", Token::Less),
        ];
        for (symbol, token) in symbols {
            if let Some(rest) = self.rest.strip_prefix(symbol) {
                self.rest = rest;
                return token;
            }
        }
        let special = |c: char| " \t\r\n=!,()><".contains(c);
        let (word, rest) = self.rest.split_at(self.rest.find(special).unwrap_or(self.rest.len()));
        self.rest = rest;
        if word.is_empty() { Token::End } else { Token::Text(word) }
    }

    fn peek(&self) -> Token<'a> {
        Tokens { rest: self.rest }.next()
    }

    fn identifier(&mut self, what: &str) -> Result<&'a str, ParseError> {
        match self.next() {
            Token::Text(text) => Ok(text),
            other => Err(expected(other, what)),
        }
    }

    /// What stands after a key.
    fn test(&mut self) -> Result<Test, ParseError> {
        match self.peek() {
            Token::End | Token::Comma => return Ok(Test::Exists),
            _ => {}
        }
        match self.next() {
            Token::Equals => Ok(Test::In(vec![self.value()?])),
            Token::NotEquals => Ok(Test::NotIn(vec![self.value()?])),
            Token::Text("in") => Ok(Test::In(self.values()?)),
            Token::Text("notin") => Ok(Test::NotIn(self.values()?)),
            Token::Greater => Ok(Test::GreaterThan(self.number()?)),
            Token::Less => Ok(Test::LessThan(self.number()?)),
            other => Err(expected(other, "in, notin, =, ==, !=, gt, lt")),
        }
    }

    /// A single value; may be empty (`a=`).
    fn value(&mut self) -> Result<String, ParseError> {
        match self.peek() {
            Token::Text(text) => {
                self.next();
                checked_value(text)
            }
            Token::End | Token::Comma => Ok(String::new()),
            other => Err(expected(other, "identifier")),
        }
    }

    fn number(&mut self) -> Result<i64, ParseError> {
        let text = self.identifier("identifier")?;
        let why = "for 'Gt', 'Lt' operators, the value must be an integer";
        text.parse().map_err(|_| ParseError(format!("values[0]: Invalid value: {text:?}: {why}")))
    }

    /// `(a,b)`.
    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        match self.next() {
            Token::Open => {}
            other => return Err(expected(other, "'('")),
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Text(text) => {
                    values.push(checked_value(text)?);
                    match self.next() {
                        Token::Comma => {}
                        Token::Close => break,
                        other => return Err(expected(other, "',' or ')'")),
                    }
                }
                // An empty value between commas or before the end counts as "".
                Token::Comma => values.push(String::new()),
                Token::Close => {
                    values.push(String::new());
                    break;
                }
                other => return Err(expected(other, "',', ')' or identifier")),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

fn checked_value(value: &str) -> Result<String, ParseError> {
    match names::label_value(value).into_iter().next() {
        None => Ok(value.to_owned()),
        Some(why) => Err(ParseError(format!("values[0][0]: Invalid value: {value:?}: {why}"))),
    }
}

/// A field selector: all terms must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub path: String,
    /// False: `!=`.
    pub equals: bool,
    pub value: String,
}

impl FieldSelector {
    /// Whether the fields match, given how to read one.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|term| (field(&term.path) == term.value) == term.equals)
    }

    /// The value a field must have, if the selector says so (`metadata.name=x`).
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equals && t.path == path).map(|t| t.value.as_str())
    }
}

impl std::str::FromStr for FieldSelector {
    type Err = ParseError;

    /// `a=b,c!=d`; `\`, `,` and `=` in a value are escaped with `\`.
    fn from_str(text: &str) -> Result<FieldSelector, ParseError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let invalid = || ParseError(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let at = part.find('=').filter(|at| *at > 0).ok_or_else(invalid)?;
            let (path, value) = (&part[..at], &part[at + 1..]);
            let (path, equals) = match path.strip_suffix('!') {
                Some(path) => (path, false),
                None => (path, true),
            };
            let value = if equals { value.strip_prefix('=').unwrap_or(value) } else { value };
            if path.is_empty() {
                return Err(invalid());
            }
            terms.push(FieldTerm { path: path.to_owned(), equals, value: unescape(value)? });
        }
        Ok(FieldSelector { terms })
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> Result<String, ParseError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(ParseError(format!(
                        "invalid field selector: invalid escape sequence: \\{c}"
                    )));
                }
                None => return Err(ParseError("invalid field selector: invalid escape sequence: \\".into())),
            },
            '=' => return Err(ParseError(format!("invalid field selector: unescaped '=' in {value:?}"))),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: Value) -> bool {
        selector.parse::<Selector>().unwrap().matches(&labels)
    }

    #[test]
    fn a_label_selector_reads_as_kubectl_writes_it() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        for yes in [
            "",
            "app=web",
            "app==web",
            "app!=db",
            "other!=x",
            "app",
            "!other",
            "app in (db, web)",
            "tier notin (back)",
            "other notin (x)",
            "n>4",
            "n<6",
            "app=web,tier=front,!x",
            " app = web , tier ",
        ] {
            assert!(matches(yes, labels.clone()), "{yes}");
        }
        for no in [
            "app=db",
            "app!=web",
            "other",
            "!app",
            "app in (db)",
            "tier notin (front)",
            "n>5",
            "app>1",
            "app=",
        ] {
            assert!(!matches(no, labels.clone()), "{no}");
        }
    }

    #[test]
    fn a_bad_label_selector_is_refused_and_says_where() {
        for bad in [",", "a,,b", "a=b=c", "a in b", "a in (b", "=b", "a b", "a>x", "-a=b", "a=@", "!", "(a)"]
        {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
        let error = "app web".parse::<Selector>().unwrap_err().to_string();
        assert_eq!(error, "unable to parse requirement: found 'web', expected: in, notin, =, ==, !=, gt, lt");
    }

    #[test]
    fn a_label_selector_object_selects_nothing_when_absent_and_everything_when_empty() {
        let labels = json!({"app": "web"});
        assert!(!Selector::from_object(&Value::Null).unwrap().matches(&labels));
        assert!(Selector::from_object(&json!({})).unwrap().matches(&labels));
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "x", "operator": "DoesNotExist"}, {"key": "app", "operator": "In", "values": ["web", "db"]}]});
        let selector = Selector::from_object(&selector).unwrap();
        assert!(selector.matches(&labels));
        assert_eq!(selector.to_string(), "app=web,!x,app in (web,db)");
        assert!(
            Selector::from_object(&json!({"matchExpressions": [{"key": "x", "operator": "Is"}]})).is_err()
        );
    }

    #[test]
    fn a_field_selector_compares_text_and_may_escape() {
        let selector: FieldSelector =
            r"status.phase=Running,spec.nodeName!=,metadata.name=a\,b".parse().unwrap();
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
        let fields = |path: &str| match path {
            "status.phase" => "Running".to_owned(),
            "spec.nodeName" => "n1".to_owned(),
            _ => "a,b".to_owned(),
        };
        assert!(selector.matches(fields));
        assert!(!selector.matches(|_| String::new()));
        assert!("status.phase".parse::<FieldSelector>().is_err());
        assert_eq!("a==b".parse::<FieldSelector>().unwrap().exact("a"), Some("b"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_parses_is_written_back(text in "[a-z=!,()>< 0-9./-]{0,30}") {
            let _ = text.parse::<FieldSelector>();
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
            }
        }
    }
}
