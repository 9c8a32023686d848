//! OpenAPI v2 as protobuf: `openapi.v2.Document` of gnostic, which is what kubectl asks for first.
//!
//! Written from the pieces of the JSON document, so the two cannot differ. Field numbers are those of gnostic's
//! openapiv2/OpenAPIv2.proto. Only what our documents hold is covered.

use serde_json::Value;

/// A document being written.
pub struct Document {
    head: Message,
    paths: Message,
    definitions: Message,
}

impl Document {
    pub fn new(info: &Value) -> Document {
        let mut head = Message::default();
        head.text(1, "2.0");
        let mut about = Message::default();
        about.text(1, text(info, "title"));
        about.text(2, text(info, "version"));
        head.message(2, about);
        Document { head, paths: Message::default(), definitions: Message::default() }
    }

    pub fn path(&mut self, name: &str, item: &Value) {
        self.paths.named(2, name, path_item(item));
    }

    pub fn definition(&mut self, name: &str, definition: &Value) {
        self.definitions.named(1, name, schema(definition));
    }

    pub fn finish(self) -> Vec<u8> {
        let mut document = self.head;
        document.message(8, self.paths);
        document.message(9, self.definitions);
        document.0
    }
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            out.message(field, operation(found));
        }
    }
    for found in list(item, "parameters") {
        out.message(9, parameter(found));
    }
    out
}

fn operation(operation: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, list(operation, "tags"));
    out.text(3, text(operation, "description"));
    out.text(5, text(operation, "operationId"));
    out.texts(6, list(operation, "produces"));
    out.texts(7, list(operation, "consumes"));
    for found in list(operation, "parameters") {
        out.message(8, parameter(found));
    }
    let mut responses = Message::default();
    for (code, found) in operation["responses"].as_object().into_iter().flatten() {
        let mut response = Message::default();
        response.text(1, text(found, "description"));
        if let Some(answer) = found.get("schema") {
            response.message(2, wrapped(1, schema(answer)));
        }
        responses.named(1, code, wrapped(1, response));
    }
    out.message(9, responses);
    out.texts(10, list(operation, "schemes"));
    out.extensions(13, operation);
    out
}

/// A `ParametersItem`.
fn parameter(parameter: &Value) -> Message {
    let place = text(parameter, "in");
    let required = parameter["required"] == true;
    let mut out = Message::default();
    let inner = if place == "body" {
        out.text(1, text(parameter, "description"));
        out.text(2, text(parameter, "name"));
        out.text(3, place);
        out.flag(4, required);
        out.message(5, schema(&parameter["schema"]));
        wrapped(1, out)
    } else {
        out.flag(1, required);
        out.text(2, place);
        out.text(3, text(parameter, "description"));
        out.text(4, text(parameter, "name"));
        let unique = parameter["uniqueItems"] == true;
        let in_path = place == "path";
        out.text(if in_path { 5 } else { 6 }, text(parameter, "type"));
        out.flag(if in_path { 18 } else { 20 }, unique);
        wrapped(2, wrapped(if in_path { 4 } else { 3 }, out))
    };
    wrapped(1, inner)
}

fn schema(schema: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, text(schema, "$ref"));
    out.text(2, text(schema, "format"));
    out.text(4, text(schema, "description"));
    out.texts(19, list(schema, "required"));
    for value in list(schema, "enum") {
        out.message(20, any(value));
    }
    if let Some(inner) = schema.get("additionalProperties") {
        out.message(21, wrapped(1, self::schema(inner)));
    }
    if let Some(kind) = schema["type"].as_str() {
        let mut item = Message::default();
        item.text(1, kind);
        out.message(22, item);
    }
    if let Some(inner) = schema.get("items") {
        out.message(23, wrapped(1, self::schema(inner)));
    }
    if let Some(fields) = schema["properties"].as_object() {
        let mut properties = Message::default();
        for (name, field) in fields {
            properties.named(1, name, self::schema(field));
        }
        out.message(25, properties);
    }
    out.extensions(31, schema);
    out
}

/// A value as gnostic keeps it: YAML, of which JSON is a part.
fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(2, &format!("{value}\n"));
    out
}

fn wrapped(field: u32, inner: Message) -> Message {
    let mut out = Message::default();
    out.message(field, inner);
    out
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The bytes of a message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// A string; "" is left out, as proto3 does.
    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, texts: &[Value]) {
        for text in texts.iter().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u32, flag: bool) {
        if flag {
            self.varint(u64::from(field << 3));
            self.0.push(1);
        }
    }

    fn message(&mut self, field: u32, message: Message) {
        self.bytes(field, &message.0);
    }

    /// An entry of what is a map in JSON: name 1, value 2.
    fn named(&mut self, field: u32, name: &str, value: Message) {
        let mut entry = Message::default();
        entry.text(1, name);
        entry.message(2, value);
        self.message(field, entry);
    }

    /// The `x-` members of a JSON object.
    fn extensions(&mut self, field: u32, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("x-")) {
            self.named(field, name, any(value));
        }
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
