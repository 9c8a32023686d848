//! Objects in Kubernetes' protobuf encoding, as client-go's typed clients (`kubectl create namespace`) send
//! them. Only read: answers are JSON, which those clients accept too.
//!
//! A message is turned into the JSON that Go would write for the same struct; what that means is then decided
//! like for any other JSON. What types look like is the schema's; field numbers are in `protobuf.txt`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_controller_schema::{Schema, Shape};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
const DEPTH: usize = 64;
static NUMBERS: &str = include_str!("protobuf.txt");

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("the message is cut short or malformed")]
    Malformed,
    #[error("the message is nested too deeply")]
    Deep,
    #[error("a string of the message is not UTF-8")]
    Utf8,
    #[error("a raw value of the message is not JSON")]
    Raw,
    #[error("a message of this type is not understood in protobuf; send JSON")]
    Unknown,
}

/// The object in a body, which is to be of this type. Its apiVersion and kind are those of the envelope.
pub fn decode(schema: &Schema, type_name: &str, body: &[u8]) -> Result<Value, Error> {
    let body = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut api_version, mut kind, mut raw) = ("", "", &[][..]);
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = Map::new();
    for (field, text) in [("apiVersion", api_version), ("kind", kind)] {
        if !text.is_empty() {
            object.insert(field.to_owned(), text.into());
        }
    }
    let reader = Reader { schema };
    reader.message(type_name, numbers(type_name).ok_or(Error::Unknown)?, raw, &mut object, DEPTH)?;
    Ok(Value::Object(object))
}

/// The fields of a type: `1=name 2=(1=exec 2=httpGet) 3=port`.
fn numbers(type_name: &str) -> Option<&'static str> {
    NUMBERS.lines().find_map(|line| line.strip_prefix(type_name)?.strip_prefix(' '))
}

/// What a number stands for.
enum Named {
    Field(&'static str),
    /// An embedded struct, with its own numbers.
    Embedded(&'static str),
}

fn named(numbers: &'static str, wanted: u64) -> Option<Named> {
    let mut rest = numbers;
    while let Some((number, after)) = rest.split_once('=') {
        let (named, next) = match after.strip_prefix('(') {
            Some(inner) => {
                let end = closing(inner)?;
                (Named::Embedded(&inner[..end]), &inner[end + 1..])
            }
            None => {
                let end = after.find(' ').unwrap_or(after.len());
                (Named::Field(&after[..end]), &after[end..])
            }
        };
        if number.trim_start().parse() == Ok(wanted) {
            return Some(named);
        }
        rest = next;
    }
    None
}

/// Where the parenthesis that is open at the start of `text` closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => open += 1,
            b')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

struct Reader<'a> {
    schema: &'a Schema,
}

impl Reader<'_> {
    fn message(
        &self,
        type_name: &str,
        numbers: &'static str,
        bytes: &[u8],
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        let depth = depth.checked_sub(1).ok_or(Error::Deep)?;
        let id = self.schema.find_type(type_name).ok_or(Error::Unknown)?;
        for field in Fields(bytes) {
            let (number, wire) = field?;
            let name = match named(numbers, number) {
                None => continue,
                Some(Named::Embedded(inner)) => {
                    let Wire::Bytes(bytes) = wire else { return Err(Error::Malformed) };
                    self.message(type_name, inner, bytes, out, depth)?;
                    continue;
                }
                Some(Named::Field(name)) => name,
            };
            let Some(field) = self.schema.field(id, name) else { continue };
            match field.shape {
                Shape::List(element) => {
                    let value = self.value(self.schema.element(element), wire, depth)?;
                    if let Value::Array(list) = out.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
                        list.push(value);
                    }
                }
                Shape::Map(element) => {
                    let (key, value) = self.entry(self.schema.element(element), wire, depth)?;
                    if let Value::Object(map) = out.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                        map.insert(key, value);
                    }
                }
                shape => {
                    out.insert(name.to_owned(), self.value(shape, wire, depth)?);
                }
            }
        }
        Ok(())
    }

    /// An entry of a map: a message of key and value.
    fn entry(&self, shape: Shape, wire: Wire<'_>, depth: usize) -> Result<(String, Value), Error> {
        let Wire::Bytes(bytes) = wire else { return Err(Error::Malformed) };
        let (mut key, mut value) = ("", None);
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => key = string(text)?,
                (2, wire) => value = Some(self.value(shape, wire, depth)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            // Left out on the wire: the zero value.
            None => self.value(shape, Wire::Bytes(&[]), depth)?,
        };
        Ok((key.to_owned(), value))
    }

    fn value(&self, shape: Shape, wire: Wire<'_>, depth: usize) -> Result<Value, Error> {
        Ok(match (shape, wire) {
            (Shape::Bool, Wire::Number(n)) => Value::Bool(n != 0),
            // Negative numbers are sent as 64 bits, also those of 32.
            (Shape::Int32 | Shape::Int64, Wire::Number(n)) => n.cast_signed().into(),
            (Shape::Number, Wire::Fixed(n)) => f64::from_bits(n).into(),
            (Shape::String, Wire::Bytes(bytes)) => string(bytes)?.into(),
            (Shape::Bytes, Wire::Bytes(bytes)) => BASE64.encode(bytes).into(),
            (Shape::Quantity, Wire::Bytes(bytes)) => match first_bytes(bytes, 1)? {
                Some(text) => string(text)?.into(),
                None => "0".into(),
            },
            (Shape::Time, Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%SZ")?,
            (Shape::MicroTime, Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%S.%6fZ")?,
            (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
            (Shape::Free, Wire::Bytes(bytes)) => match first_bytes(bytes, 1)? {
                Some(json) if !json.is_empty() => serde_json::from_slice(json).map_err(|_| Error::Raw)?,
                _ => Value::Null,
            },
            (Shape::Type(id), Wire::Bytes(bytes)) => {
                let name = self.schema.type_name(id);
                let mut object = Map::new();
                self.message(name, numbers(name).ok_or(Error::Unknown)?, bytes, &mut object, depth)?;
                Value::Object(object)
            }
            // A list as the value of a map is a message with the list in it.
            (Shape::List(element), Wire::Bytes(bytes)) => {
                let element = self.schema.element(element);
                let mut list = Vec::new();
                for field in Fields(bytes) {
                    if let (1, wire) = field? {
                        list.push(self.value(element, wire, depth.checked_sub(1).ok_or(Error::Deep)?)?);
                    }
                }
                Value::Array(list)
            }
            _ => return Err(Error::Malformed),
        })
    }
}

fn string(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::Utf8)
}

/// The last occurrence of a field of bytes.
fn first_bytes(bytes: &[u8], wanted: u64) -> Result<Option<&[u8]>, Error> {
    let mut found = None;
    for field in Fields(bytes) {
        if let (number, Wire::Bytes(bytes)) = field?
            && number == wanted
        {
            found = Some(bytes);
        }
    }
    Ok(found)
}

/// Seconds and nanoseconds; nothing is Go's zero time, which JSON has as null.
fn time(bytes: &[u8], format: &str) -> Result<Value, Error> {
    let (mut seconds, mut nanos) = (0i64, 0i64);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(n)) => seconds = n.cast_signed(),
            (2, Wire::Number(n)) => nanos = n.cast_signed(),
            _ => {}
        }
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|_| Error::Malformed)?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| Error::Malformed)?;
    Ok(time.strftime(format).to_string().into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut is_string, mut number, mut text) = (false, 0i64, "");
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(n)) => is_string = n == 1,
            (2, Wire::Number(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_string { text.into() } else { number.into() })
}

/// A field's content as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire<'a> {
    Number(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Error::Malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Fixed(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_controller_core::kinds;
    use proptest::prelude::*;
    use serde_json::json;

    fn tagged(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn envelope(raw: &[u8]) -> Vec<u8> {
        let meta = [tagged(1, b"v1"), tagged(2, b"Pod")].concat();
        [MAGIC, &tagged(1, &meta), &tagged(2, raw)].concat()
    }

    /// `got` says what `want` says; beyond that only what is zero.
    fn same(got: &Value, want: &Value) -> bool {
        let zero = json!([null, "", 0, false, [], {}]);
        match (got, want) {
            (Value::Object(got), Value::Object(want)) => {
                got.iter().all(|(field, value)| match want.get(field) {
                    Some(want) => same(value, want),
                    None => zero.as_array().unwrap().contains(value) || same(value, &json!({})),
                }) && want.keys().all(|field| got.contains_key(field) || same(&json!({}), &want[field]))
            }
            (Value::Array(got), Value::Array(want)) => {
                got.len() == want.len() && got.iter().zip(want).all(|(got, want)| same(got, want))
            }
            (Value::Object(got), Value::Null) => got.is_empty(),
            _ => got == want,
        }
    }

    #[test]
    fn objects_read_as_their_json() {
        // As apimachinery's own serializers wrote them: in hexadecimal, and as JSON.
        for line in include_str!("testdata/protobuf.tsv").lines() {
            let (hex, json) = line.split_once('\t').unwrap();
            let bytes: Vec<u8> =
                (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
            let want: Value = serde_json::from_str(json).unwrap();
            let (version, kind) = (want["apiVersion"].as_str().unwrap(), want["kind"].as_str().unwrap());
            // What is sent but not kept (an Eviction, DeleteOptions) is no kind.
            let name = kinds::by_kind(version, kind).map_or_else(
                || {
                    let mut names = NUMBERS.lines().filter_map(|line| line.split(' ').next());
                    names.find(|name| name.ends_with(&format!(".{kind}"))).unwrap()
                },
                |kind| kind.schema,
            );
            let got = decode(Schema::get(), name, &bytes);
            assert!(got.as_ref().is_ok_and(|got| same(got, &want)), "{got:#?}\n{want:#}");
        }
    }

    #[test]
    fn a_namespace_as_kubectl_sends_it() {
        // `kubectl create namespace foo`, 1.32.
        let body = b"k8s\x00\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x1b\x0a\x13\x0a\x03foo\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x00\x1a\x02\x0a\x00\x1a\x00\"\x00";
        let value = decode(Schema::get(), "io.k8s.api.core.v1.Namespace", body).unwrap();
        assert_eq!(value["kind"], "Namespace");
        assert_eq!(value["metadata"]["name"], "foo");
        assert_eq!(value["metadata"]["creationTimestamp"], Value::Null);
        assert_eq!(value["status"], json!({"phase": ""}));
    }

    #[test]
    fn embedded_structs_lists_maps_and_special_types_are_read() {
        let port = [vec![1 << 3, 1], tagged(3, b"http")].concat();
        let get = tagged(2, &tagged(2, &port));
        let probe = [tagged(1, &get), vec![4 << 3, 5]].concat();
        let limits = tagged(1, &[tagged(1, b"cpu"), tagged(2, &tagged(1, b"50m"))].concat());
        let container =
            [tagged(1, b"c"), tagged(3, b"a"), tagged(3, b"b"), tagged(8, &limits), tagged(10, &probe)]
                .concat();
        let raw = tagged(2, &tagged(2, &container));
        let value = decode(Schema::get(), "io.k8s.api.core.v1.Pod", &envelope(&raw)).unwrap();
        assert_eq!(
            value["spec"]["containers"],
            json!([{
                "name": "c", "command": ["a", "b"], "resources": {"limits": {"cpu": "50m"}},
                "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 5},
            }])
        );
    }

    #[test]
    fn every_type_and_field_of_the_numbers_is_in_the_schema() {
        fn check(id: berth_controller_schema::TypeId, numbers: &'static str) {
            for number in 1..2000 {
                match named(numbers, number) {
                    Some(Named::Field(name)) => {
                        assert!(Schema::get().field(id, name).is_some(), "{name}");
                    }
                    Some(Named::Embedded(inner)) => check(id, inner),
                    None => {}
                }
            }
        }
        for line in NUMBERS.lines().filter(|l| !l.starts_with('#')) {
            let (name, numbers) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(id) = Schema::get().find_type(name) {
                check(id, numbers);
            }
        }
        for kind in berth_controller_core::kinds::ALL {
            assert!(numbers(kind.schema).is_some(), "{}", kind.schema);
        }
    }

    #[test]
    fn other_bodies_are_refused() {
        let read = |body: &[u8]| decode(Schema::get(), "io.k8s.api.core.v1.Pod", body);
        assert_eq!(read(b"{}"), Err(Error::Magic));
        assert_eq!(read(b"k8s\0\x0a\xff"), Err(Error::Malformed));
        assert_eq!(decode(Schema::get(), "nothing", MAGIC), Err(Error::Unknown));
        let mut nested = Vec::new();
        for _ in 0..20 {
            nested = tagged(1, &nested);
        }
        assert!(read(&envelope(&nested)).is_ok());
    }

    proptest! {
        #[test]
        fn no_body_is_too_strange_to_be_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Schema::get(), "io.k8s.api.core.v1.Pod", &envelope(&bytes[..bytes.len().min(120)]));
            let _ = decode(Schema::get(), "io.k8s.api.core.v1.Pod", &[MAGIC, &bytes].concat());
        }
    }
}
