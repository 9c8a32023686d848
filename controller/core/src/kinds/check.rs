//! Walking an object while checking it: a value together with its path, and the rules that many fields share.
//!
//! Everything here is total: a field that is absent or of another type reads as empty, so validation never
//! panics and never needs to be told what `decode` has already ruled out.

use std::collections::BTreeSet;

use serde_json::Value;

use super::names;
use crate::field::{FieldError, Path};
use crate::quantity::Quantity;

/// What was found wrong so far. Rules return an `Option` or a `Vec` of errors; both go in with `extend`.
pub type Errors = Vec<FieldError>;

static NULL: Value = Value::Null;

/// A value and where it is.
#[derive(Clone, Debug)]
pub struct At<'a> {
    pub path: Path,
    pub value: &'a Value,
}

impl<'a> At<'a> {
    pub fn root(value: &'a Value) -> At<'a> {
        At { path: Path::default(), value }
    }

    pub fn new(path: Path, value: &'a Value) -> At<'a> {
        At { path, value }
    }

    /// The field `name`; Null if absent.
    pub fn get(&self, name: &str) -> At<'a> {
        At { path: self.path.child(name), value: self.value.get(name).unwrap_or(&NULL) }
    }

    /// The map's entry `key`, written `path[key]`.
    pub fn key(&self, key: &str) -> At<'a> {
        At { path: self.path.key(key), value: self.value.get(key).unwrap_or(&NULL) }
    }

    /// The elements of a list; none if it is no list.
    pub fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(i, value)| At { path: path.index(i), value })
    }

    /// The entries of a map, each at `path[key]`; none if it is no map.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let entries = self.value.as_object().into_iter().flatten();
        entries.map(move |(key, value)| (key.as_str(), At { path: path.key(key), value }))
    }

    pub fn str(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn is_true(&self) -> bool {
        *self.value == Value::Bool(true)
    }

    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    pub fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// Absent, or Go's zero value, which Kubernetes' types cannot tell from absent.
    pub fn is_zero(&self) -> bool {
        is_zero(self.value)
    }

    pub fn len(&self) -> usize {
        match self.value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            Value::String(text) => text.len(),
            _ => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn required(&self, detail: &str) -> FieldError {
        FieldError::required(&self.path, detail)
    }

    pub fn invalid(&self, detail: impl Into<String>) -> FieldError {
        FieldError::invalid(&self.path, self.value.clone(), detail)
    }

    pub fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        FieldError::forbidden(&self.path, detail)
    }

    pub fn duplicate(&self) -> FieldError {
        FieldError::duplicate(&self.path, self.value.clone())
    }

    pub fn not_found(&self) -> FieldError {
        FieldError::not_found(&self.path, self.value.clone())
    }

    pub fn not_supported(&self, supported: &[&str]) -> FieldError {
        FieldError::not_supported(&self.path, self.value.clone(), supported)
    }
}

/// Go's zero value, at any depth: null, "", 0, false, and lists and maps of nothing else.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_zero),
    }
}

/// Equal as Kubernetes compares objects: an absent field, null and an empty list, map or string are the same.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(key, value)| same(value, y.get(key).unwrap_or(&NULL)))
                && y.iter().all(|(key, value)| x.contains_key(key) || same(&NULL, value))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        _ => a == b || (hollow(a) && hollow(b)),
    }
}

/// Paths of what is not the same in two values, at most ten, the deepest that tell them apart.
pub fn differences(path: &Path, old: &Value, new: &Value) -> Vec<String> {
    let mut out = Vec::new();
    collect_differences(path, old, new, &mut out);
    out
}

fn collect_differences(path: &Path, old: &Value, new: &Value, out: &mut Vec<String>) {
    if out.len() >= 10 || same(old, new) {
        return;
    }
    match (old, new) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let [old, new] = [x, y].map(|map| map.get(key).unwrap_or(&NULL));
                collect_differences(&path.child(key), old, new, out);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (i, (old, new)) in x.iter().zip(y).enumerate() {
                collect_differences(&path.index(i), old, new, out);
            }
        }
        _ => out.push(path.to_string()),
    }
}

fn hollow(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(hollow),
        _ => false,
    }
}

/// One error a message: `Invalid value: "x": <message>`.
pub fn invalid_each(at: &At, messages: Vec<String>) -> Errors {
    messages.into_iter().map(|message| at.invalid(message)).collect()
}

/// A number that is not negative; absent is fine.
pub fn nonnegative(at: &At) -> Option<FieldError> {
    at.int().filter(|n| *n < 0).map(|_| at.invalid("must be greater than or equal to 0"))
}

/// A number that is not negative, or a percentage up to 100; absent is fine.
pub fn number_or_percentage(at: &At) -> Errors {
    let Value::String(text) = at.value else { return nonnegative(at).into_iter().collect() };
    let digits = text.strip_suffix('%').unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return vec![at.invalid(
            "a valid percent string must be a numeric string followed by an ending '%' \
             (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        )];
    }
    match digits.parse::<u32>() {
        Ok(0..=100) => Errors::new(),
        _ => vec![at.invalid("must not be greater than 100%")],
    }
}

/// One of a closed set of strings, and not empty.
pub fn one_of(at: &At, supported: &[&str]) -> Option<FieldError> {
    match at.str() {
        "" => Some(at.required("")),
        text if supported.contains(&text) => None,
        _ => Some(at.not_supported(supported)),
    }
}

/// As [`one_of`], but may be absent.
pub fn one_of_if_set(at: &At, supported: &[&str]) -> Option<FieldError> {
    if at.str().is_empty() { None } else { one_of(at, supported) }
}

/// A name that must be there and be an RFC 1123 label.
pub fn label_name(at: &At) -> Errors {
    if at.str().is_empty() { vec![at.required("")] } else { invalid_each(at, names::label(at.str())) }
}

/// What may not change.
pub fn immutable(old: &At, new: &At) -> Option<FieldError> {
    (!same(old.value, new.value)).then(|| new.invalid("field is immutable"))
}

/// Every field that is set and that Berth does not implement: refused with its path, never ignored.
pub fn only_supported(at: &At, supported: &[&str]) -> Errors {
    let fields = at.value.as_object().into_iter().flatten();
    fields
        .filter(|(name, value)| !supported.contains(&name.as_str()) && !is_zero(value))
        .map(|(name, _)| unsupported(&at.get(name)))
        .collect()
}

pub fn unsupported(at: &At) -> FieldError {
    at.forbidden("not supported by Berth yet")
}

/// At most `max` bytes, else `Too long`.
pub fn too_long(path: &Path, max: usize) -> FieldError {
    FieldError {
        path: path.clone(),
        reason: crate::field::Reason::TooLong,
        value: None,
        detail: format!("may not be more than {max} bytes"),
    }
}

/// Names seen so far; says which ones come twice.
#[derive(Debug, Default)]
pub struct Unique<'a>(BTreeSet<&'a str>);

impl<'a> Unique<'a> {
    /// `Duplicate value` if `at` was here before. Empty names are another rule's business.
    pub fn check(&mut self, at: &At<'a>) -> Option<FieldError> {
        (!at.str().is_empty() && !self.0.insert(at.str())).then(|| at.duplicate())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Keys and values of labels, a selector's matchLabels or a nodeSelector.
pub fn labels(at: &At) -> Errors {
    let mut errors = Errors::new();
    for (key, value) in at.entries() {
        errors.extend(names::qualified(key).into_iter().map(|m| FieldError::invalid(&at.path, key, m)));
        let messages = names::label_value(value.str()).into_iter();
        errors.extend(messages.map(|m| FieldError::invalid(&at.path, value.str(), m)));
    }
    errors
}

/// Keys of annotations, and their size together.
pub fn annotations(at: &At) -> Errors {
    const MAX: usize = 256 * 1024;
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in at.entries() {
        let messages = names::qualified(&key.to_lowercase()).into_iter();
        errors.extend(messages.map(|m| FieldError::invalid(&at.path, key, m)));
        size += key.len() + value.len();
    }
    if size > MAX {
        errors.push(too_long(&at.path, MAX));
    }
    errors
}

/// A LabelSelector object.
pub fn label_selector(at: &At) -> Errors {
    let mut errors = labels(&at.get("matchLabels"));
    for expression in at.get("matchExpressions").items() {
        let (operator, values) = (expression.get("operator"), expression.get("values"));
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors
                .push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'")),
            "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
        }
        let key = expression.get("key");
        errors.extend(
            names::qualified(key.str()).into_iter().map(|m| FieldError::invalid(&key.path, key.str(), m)),
        );
        for value in values.items() {
            errors.extend(invalid_each(&value, names::label_value(value.str())));
        }
    }
    errors
}

/// A quantity that is not negative. (One that does not parse is refused with Kubernetes' words.)
pub fn quantity(at: &At) -> Option<FieldError> {
    match Quantity::of(at.value) {
        Err(why) => Some(at.invalid(why.to_string())),
        Ok(q) if q.is_negative() => {
            Some(FieldError::invalid(&at.path, q.to_string(), "must be greater than or equal to 0"))
        }
        Ok(_) => None,
    }
}

/// A quantity above zero.
pub fn positive_quantity(at: &At) -> Option<FieldError> {
    match Quantity::of(at.value) {
        Err(why) => Some(at.invalid(why.to_string())),
        Ok(q) if !q.is_positive() => {
            Some(FieldError::invalid(&at.path, q.to_string(), "must be greater than zero"))
        }
        Ok(_) => None,
    }
}

/// A port as number (1 to 65535) or as name.
pub fn port_number_or_name(at: &At) -> Errors {
    match at.value {
        Value::String(name) => invalid_each(at, names::port_name(name)),
        Value::Number(_) => port_number(at),
        _ => vec![FieldError::invalid(&at.path, 0, "must be between 1 and 65535, inclusive")],
    }
}

pub fn port_number(at: &At) -> Errors {
    in_range(at, 1, 65535)
}

pub fn in_range(at: &At, min: i64, max: i64) -> Errors {
    match at.int() {
        Some(n) if (min..=max).contains(&n) => Vec::new(),
        _ => vec![at.invalid(format!("must be between {min} and {max}, inclusive"))],
    }
}
