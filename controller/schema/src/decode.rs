//! Decoding a body into an object of a known type, with the complaints of Kubernetes' own decoder.
//!
//! Kubernetes reads into Go structs with sigs.k8s.io/json. Its rules, which hold here too: names match exactly; null
//! is as good as absent; the first value of a wrong type (in the order of the body) is the error; unknown and
//! repeated fields are collected on the side; and what a struct would leave out when written again (`omitempty`) is
//! left out, so that equal objects look equal.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::layout;
use crate::scalar;
use crate::table::{Field, Schema, Shape, TypeId};

/// Kubernetes collects no more than these.
const MOST_PROBLEMS: usize = 100;

/// Nesting beyond this is refused (serde_json's own limit when parsing text).
const DEEPEST: usize = 128;

/// What happens to unknown and duplicate fields (`fieldValidation`). They are dropped in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// They fail the decoding.
    Strict,
    /// They are told as warnings.
    Warn,
    /// They go unsaid.
    Ignore,
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Known fields only, nulls dropped, times and quantities in their canonical form.
    pub value: Value,
    /// Texts for `Warning` headers, e.g. `unknown field "spec.foo"`; empty unless [`Strictness::Warn`].
    pub warnings: Vec<String>,
}

/// Why a body is no object of the type asked for. Displays as Kubernetes' decoder words it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or nested too deeply.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Syntax(String),
    /// A value of the wrong type:
    /// `json: cannot unmarshal string into Go struct field StatefulSetSpec.spec.replicas of type int32`.
    #[error("{0}")]
    Type(String),
    /// Unknown or duplicate fields under [`Strictness::Strict`], e.g. `unknown field "spec.foo"`.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    /// The table does not know the type: a fault of the caller.
    #[error("no kind {0:?} is registered")]
    NoSuchType(String),
}

impl DecodeError {
    /// The message of the BadRequest that answers a create or update with this body.
    /// `kind` and `version` (without its group) are what the body says, `wanted` the kind of this endpoint:
    /// `StatefulSet in version "v1" cannot be handled as a StatefulSet: json: cannot unmarshal ...`.
    pub fn bad_request(&self, kind: &str, version: &str, wanted: &str) -> String {
        match self {
            DecodeError::Syntax(_) => {
                format!("the object provided is unrecognized (must be of type {wanted}): {self}")
            }
            _ => format!("{kind} in version {version:?} cannot be handled as a {wanted}: {self}"),
        }
    }
}

impl Schema {
    /// Decodes a JSON body.
    pub fn decode(
        &self,
        type_name: &str,
        body: &[u8],
        strictness: Strictness,
    ) -> Result<Decoded, DecodeError> {
        let mut source = serde_json::Deserializer::from_slice(body);
        let mut decoder = Decoder::new(self);
        let root = decoder.root(type_name)?;
        let value = Seed { decoder: &mut decoder, shape: Shape::Type(root), go: "" }
            .deserialize(&mut source)
            .and_then(|value| source.end().map(|()| value));
        decoder.finish(value, strictness)
    }

    /// Decodes a value, e.g. what a patch produced.
    pub fn decode_value(
        &self,
        type_name: &str,
        value: Value,
        strictness: Strictness,
    ) -> Result<Decoded, DecodeError> {
        let mut decoder = Decoder::new(self);
        let root = decoder.root(type_name)?;
        if too_deep(&value, DEEPEST) {
            return Err(DecodeError::Syntax("exceeded max depth".into()));
        }
        let value = Seed { decoder: &mut decoder, shape: Shape::Type(root), go: "" }.deserialize(value);
        decoder.finish(value, strictness)
    }
}

/// Parses a JSON body whose type is not known yet (a patch, or to see its apiVersion and kind): the value, and
/// what it repeats (`duplicate field "spec.replicas"`; the last one wins).
pub fn parse(body: &[u8]) -> Result<(Value, Vec<String>), DecodeError> {
    let mut source = serde_json::Deserializer::from_slice(body);
    let mut problems = Problems::default();
    let value = AnySeed(&mut problems)
        .deserialize(&mut source)
        .and_then(|value| source.end().map(|()| value))
        .map_err(|e| DecodeError::Syntax(e.to_string()))?;
    Ok((value, problems.list))
}

fn too_deep(value: &Value, left: usize) -> bool {
    match value {
        Value::Array(items) => left == 0 || items.iter().any(|v| too_deep(v, left - 1)),
        Value::Object(map) => left == 0 || map.values().any(|v| too_deep(v, left - 1)),
        _ => false,
    }
}

/// Unknown and repeated fields, and where in the body the decoder is, as their messages write it.
#[derive(Default)]
struct Problems {
    list: Vec<String>,
    path: String,
}

impl Problems {
    /// Enters a field or a map's entry; give what it returns to [`Problems::leave`].
    fn enter(&mut self, name: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        length
    }

    fn enter_index(&mut self, index: usize) -> usize {
        let length = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        length
    }

    fn leave(&mut self, length: usize) {
        self.path.truncate(length);
    }

    fn add(&mut self, what: &str, name: &str) {
        if self.list.len() >= MOST_PROBLEMS {
            return;
        }
        let length = self.enter(name);
        let problem = format!("{what} {}", scalar::go_quote(&self.path));
        self.leave(length);
        if !self.list.contains(&problem) {
            self.list.push(problem);
        }
    }
}

/// The state of one decoding.
struct Decoder<'s> {
    schema: &'s Schema,
    problems: Problems,
    /// The first value of a wrong type.
    wrong: Option<String>,
    /// The first value that a type with a decoder of its own (Quantity, Time, ...) refused: it ends Kubernetes'
    /// decoding at once, so it goes before `wrong`.
    refused: Option<String>,
    /// The struct whose field is being read, and the names of all fields on the way there, as Go's messages say.
    owner: &'static str,
    stack: Vec<&'static str>,
}

impl<'s> Decoder<'s> {
    fn new(schema: &'s Schema) -> Decoder<'s> {
        Decoder {
            schema,
            problems: Problems::default(),
            wrong: None,
            refused: None,
            owner: "",
            stack: Vec::new(),
        }
    }

    fn root(&self, type_name: &str) -> Result<TypeId, DecodeError> {
        self.schema.find_type(type_name).ok_or_else(|| DecodeError::NoSuchType(type_name.to_owned()))
    }

    fn finish(
        self,
        value: Result<Option<Value>, serde_json::Error>,
        strictness: Strictness,
    ) -> Result<Decoded, DecodeError> {
        let value = value.map_err(|e| DecodeError::Syntax(e.to_string()))?;
        if let Some(error) = self.refused.or(self.wrong) {
            return Err(DecodeError::Type(error));
        }
        let problems = self.problems.list;
        if strictness == Strictness::Strict && !problems.is_empty() {
            return Err(DecodeError::Strict(problems));
        }
        let warnings = if strictness == Strictness::Warn { problems } else { Vec::new() };
        Ok(Decoded { value: value.unwrap_or_else(|| Value::Object(Map::new())), warnings })
    }

    /// `cannot unmarshal <found> into ... of type <wanted>`, where the decoder is now.
    fn mismatch(&self, found: &str, wanted: &str) -> String {
        if self.stack.is_empty() {
            return format!("json: cannot unmarshal {found} into Go value of type {wanted}");
        }
        let (owner, path) = (self.owner, self.stack.join("."));
        format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")
    }

    /// Go's name of the type of `shape`; `go` if the table says it.
    fn go_type(&self, shape: Shape, go: &str) -> String {
        if !go.is_empty() {
            return go.to_owned();
        }
        match shape {
            Shape::String => "string".into(),
            Shape::Bool => "bool".into(),
            Shape::Int32 => "int32".into(),
            Shape::Int64 => "int64".into(),
            Shape::Number => "float64".into(),
            Shape::IntOrString => "intstr.IntOrString".into(),
            Shape::Quantity => "resource.Quantity".into(),
            Shape::Time => "v1.Time".into(),
            Shape::MicroTime => "v1.MicroTime".into(),
            Shape::Bytes => "[]uint8".into(),
            Shape::Free => "runtime.RawExtension".into(),
            Shape::Type(id) => {
                let mut parts = self.schema.type_name(id).rsplit('.');
                let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                format!("{package}.{name}")
            }
            Shape::List(element) => format!("[]{}", self.go_type(self.schema.element(element), "")),
            Shape::Map(element) => {
                format!("map[string]{}", self.go_type(self.schema.element(element), ""))
            }
        }
    }

    /// The value Go's decoder leaves where null stands in a list or map.
    fn zero(shape: Shape) -> Value {
        match shape {
            Shape::String => "".into(),
            Shape::Bool => false.into(),
            Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => 0.into(),
            Shape::Quantity => "0".into(),
            Shape::Type(_) => Value::Object(Map::new()),
            Shape::Bytes => "".into(),
            Shape::Time | Shape::MicroTime | Shape::Free | Shape::List(_) | Shape::Map(_) => Value::Null,
        }
    }
}

/// The Go type of the elements of a list or map of type `go` ("" if the table does not say).
fn element_go(go: &'static str) -> &'static str {
    match go.strip_prefix("[]") {
        Some(element) => element,
        None => go.split_once(']').map_or("", |(_, element)| element),
    }
}

/// Reads one value of a shape. None: null, or nothing usable (the error is noted).
struct Seed<'a, 's> {
    decoder: &'a mut Decoder<'s>,
    shape: Shape,
    go: &'static str,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        if self.shape == Shape::Free {
            let value = Value::deserialize(deserializer)?;
            return Ok(Some(value).filter(|v| !v.is_null()));
        }
        deserializer.deserialize_any(self)
    }
}

impl Seed<'_, '_> {
    fn wrong<E>(self, found: &str) -> Result<Option<Value>, E> {
        // What went wrong first is told, so later ones need no words.
        if self.decoder.wrong.is_none() {
            let wanted = self.decoder.go_type(self.shape, self.go);
            self.decoder.wrong = Some(self.decoder.mismatch(found, &wanted));
        }
        Ok(None)
    }

    /// For types with a decoder of their own.
    fn refuse<E>(self, error: String) -> Result<Option<Value>, E> {
        self.decoder.refused.get_or_insert(error);
        Ok(None)
    }

    /// A type with a decoder of its own got something else than the `wanted` it reads.
    fn refuse_kind<E>(self, found: &str, wanted: &str) -> Result<Option<Value>, E> {
        let error = self.decoder.mismatch(found, wanted);
        self.refuse(error)
    }

    fn number<E>(self, number: serde_json::Number) -> Result<Option<Value>, E> {
        let as_int = number.as_i64();
        match self.shape {
            Shape::Int32 if as_int.is_some_and(|n| i32::try_from(n).is_ok()) => Ok(Some(number.into())),
            Shape::Int64 if as_int.is_some() => Ok(Some(number.into())),
            Shape::Int32 | Shape::Int64 => self.wrong(&format!("number {number}")),
            Shape::Number => Ok(Some(number.into())),
            Shape::IntOrString if as_int.is_some_and(|n| i32::try_from(n).is_ok()) => Ok(Some(number.into())),
            Shape::IntOrString => self.refuse_kind(&format!("number {number}"), "int32"),
            Shape::Quantity => match scalar::quantity(&number.to_string()) {
                Ok(text) => Ok(Some(text.into())),
                Err(error) => self.refuse(error),
            },
            Shape::Time | Shape::MicroTime => self.refuse_kind("number", "string"),
            _ => self.wrong("number"),
        }
    }

    fn text<E>(self, text: String) -> Result<Option<Value>, E> {
        let read = match self.shape {
            Shape::String | Shape::IntOrString => Ok(text),
            Shape::Quantity => scalar::quantity(&text),
            Shape::Time => scalar::time(&text),
            Shape::MicroTime => scalar::micro_time(&text),
            Shape::Bytes => match scalar::bytes(text) {
                Ok(text) => Ok(text),
                Err(error) => {
                    self.decoder.wrong.get_or_insert(error);
                    return Ok(None);
                }
            },
            _ => return self.wrong("string"),
        };
        match read {
            Ok(text) => Ok(Some(text.into())),
            Err(error) => self.refuse(error),
        }
    }

    fn structure<'de, A: MapAccess<'de>>(self, id: TypeId, mut map: A) -> Result<Option<Value>, A::Error> {
        let d = self.decoder;
        let schema = d.schema;
        let (outer, short) = (d.owner, schema.type_name(id).rsplit('.').next().unwrap_or_default());
        let mut seen: Vec<&'static str> = Vec::new();
        let mut out = Map::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let Some(field) = schema.field(id, &key) else {
                d.problems.add("unknown field", &key);
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&field.name) {
                d.problems.add("duplicate field", field.name);
            } else {
                seen.push(field.name);
            }
            let length = d.problems.enter(field.name);
            d.owner = short;
            let depth = d.stack.len();
            d.stack.extend(Some(field.via).filter(|via| !via.is_empty()));
            d.stack.push(field.name);
            let value = map.next_value_seed(Seed { decoder: &mut *d, shape: field.shape, go: field.go })?;
            d.stack.truncate(depth);
            d.owner = outer;
            d.problems.leave(length);
            match value.filter(|v| !left_out(&field, v)) {
                Some(value) => out.insert(key.into_owned(), value),
                None => out.remove(field.name),
            };
        }
        Ok(Some(Value::Object(out)))
    }
}

/// Whether a Go struct would not write this value of the field (`omitempty`).
fn left_out(field: &Field, value: &Value) -> bool {
    if field.flags & layout::KEEP != 0 {
        return false;
    }
    match field.shape {
        Shape::String | Shape::Bytes => value == "",
        Shape::Bool => *value == Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::Number => value.as_f64() == Some(0.0),
        Shape::List(_) => value.as_array().is_some_and(Vec::is_empty),
        Shape::Map(_) => value.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_none<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::Bool => Ok(Some(value.into())),
            Shape::IntOrString => self.refuse_kind("bool", "int32"),
            Shape::Time | Shape::MicroTime => self.refuse_kind("bool", "string"),
            Shape::Quantity => self.refuse(scalar::not_a_quantity()),
            _ => self.wrong("bool"),
        }
    }

    fn visit_i64<E>(self, value: i64) -> Result<Option<Value>, E> {
        self.number(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Option<Value>, E> {
        self.number(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Option<Value>, E> {
        match serde_json::Number::from_f64(value) {
            Some(number) => self.number(number),
            None => self.wrong("number"),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Option<Value>, E> {
        self.text(value.to_owned())
    }

    fn visit_string<E>(self, value: String) -> Result<Option<Value>, E> {
        self.text(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Value>, A::Error> {
        let Shape::List(element) = self.shape else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return match self.shape {
                Shape::IntOrString => self.refuse_kind("array", "int32"),
                Shape::Time | Shape::MicroTime => self.refuse_kind("array", "string"),
                Shape::Quantity => self.refuse(scalar::not_a_quantity()),
                _ => self.wrong("array"),
            };
        };
        let shape = self.decoder.schema.element(element);
        let go = element_go(self.go);
        let mut out = Vec::new();
        loop {
            let length = self.decoder.problems.enter_index(out.len());
            let item = seq.next_element_seed(Seed { decoder: &mut *self.decoder, shape, go })?;
            self.decoder.problems.leave(length);
            match item {
                Some(item) => out.push(item.unwrap_or_else(|| Decoder::zero(shape))),
                None => return Ok(Some(Value::Array(out))),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Value>, A::Error> {
        let element = match self.shape {
            Shape::Type(id) => return self.structure(id, map),
            Shape::Map(element) => element,
            _ => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return match self.shape {
                    Shape::IntOrString => self.refuse_kind("object", "int32"),
                    Shape::Time | Shape::MicroTime => self.refuse_kind("object", "string"),
                    Shape::Quantity => self.refuse(scalar::not_a_quantity()),
                    _ => self.wrong("object"),
                };
            }
        };
        let shape = self.decoder.schema.element(element);
        let go = element_go(self.go);
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                self.decoder.problems.add("duplicate field", &key);
            }
            let length = self.decoder.problems.enter(&key);
            let value = map.next_value_seed(Seed { decoder: &mut *self.decoder, shape, go })?;
            self.decoder.problems.leave(length);
            out.insert(key, value.unwrap_or_else(|| Decoder::zero(shape)));
        }
        Ok(Some(Value::Object(out)))
    }
}

/// A field's name, borrowed from the body where it can be.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = std::borrow::Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = std::borrow::Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(value.to_owned().into())
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(value.into())
    }
}

/// Reads anything, noting what is repeated.
struct AnySeed<'a>(&'a mut Problems);

impl<'de> DeserializeSeed<'de> for AnySeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnySeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let length = self.0.enter_index(out.len());
            let item = seq.next_element_seed(AnySeed(&mut *self.0))?;
            self.0.leave(length);
            match item {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                self.0.add("duplicate field", &key);
            }
            let length = self.0.enter(&key);
            let value = map.next_value_seed(AnySeed(&mut *self.0))?;
            self.0.leave(length);
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests;
