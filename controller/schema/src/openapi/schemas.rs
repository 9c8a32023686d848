//! The definitions: how a type of the table is written in OpenAPI.

use serde_json::{Map, Value, json};

use super::Dialect;
use crate::layout;
use crate::table::{Field, Schema, ShapeId, TypeId};

/// The definition of a type.
pub fn definition(schema: &Schema, id: TypeId, dialect: Dialect) -> Value {
    let mut out = match schema.leaf(id) {
        layout::QUANTITY if dialect == Dialect::V3 => {
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
        }
        layout::QUANTITY => json!({"type": "string"}),
        layout::INT_OR_STRING if dialect == Dialect::V3 => {
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
        }
        layout::INT_OR_STRING => json!({"type": "string", "format": "int-or-string"}),
        layout::TIME | layout::MICRO_TIME => json!({"type": "string", "format": "date-time"}),
        _ => json!({"type": "object"}),
    };
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in schema.fields_of(id) {
        properties.insert(field.name.to_owned(), property(schema, &field, dialect));
        if field.required {
            required.push(field.name);
        }
    }
    if !properties.is_empty() {
        out["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        out["required"] = required.into();
    }
    describe(&mut out, schema.description(id));
    out
}

/// The types that a type's fields refer to.
pub fn references(schema: &Schema, id: TypeId) -> impl Iterator<Item = TypeId> + '_ {
    schema.fields_of(id).filter_map(|field| {
        let mut shape = field.shape_id;
        loop {
            match schema.raw_shape(shape) {
                (layout::LIST | layout::MAP, element) => shape = ShapeId(element),
                (tag, target) => return (tag >= layout::TYPE).then_some(TypeId(target)),
            }
        }
    })
}

fn property(schema: &Schema, field: &Field, dialect: Dialect) -> Value {
    let mut out = shape(schema, field.shape_id, field.values, dialect);
    // Next to a $ref, OpenAPI 3.0 ignores everything else.
    if dialect == Dialect::V3 && out.get("$ref").is_some() && !field.description.is_empty() {
        out = json!({"allOf": [out]});
    }
    describe(&mut out, field.description);
    let mut strategy = Vec::new();
    for (flag, name) in
        [(layout::MERGE, "merge"), (layout::RETAIN_KEYS, "retainKeys"), (layout::REPLACE, "replace")]
    {
        if field.flags & flag != 0 {
            strategy.push(name);
        }
    }
    if !strategy.is_empty() {
        out["x-kubernetes-patch-strategy"] = strategy.join(",").into();
    }
    if !field.merge_key.is_empty() {
        out["x-kubernetes-patch-merge-key"] = field.merge_key.into();
    }
    match field.list_type.split_once([':', '=']) {
        Some(("map", kind @ ("atomic" | "granular"))) => out["x-kubernetes-map-type"] = kind.into(),
        Some((_, keys)) => {
            out["x-kubernetes-list-type"] = "map".into();
            out["x-kubernetes-list-map-keys"] = keys.split(',').collect();
        }
        None if !field.list_type.is_empty() => out["x-kubernetes-list-type"] = field.list_type.into(),
        None => {}
    }
    out
}

/// `values`: the enumeration of its innermost scalars, "" if it is none.
fn shape(schema: &Schema, id: ShapeId, values: &str, dialect: Dialect) -> Value {
    match schema.raw_shape(id) {
        (layout::STRING, _) if !values.is_empty() => {
            json!({"type": "string", "enum": values.split(',').collect::<Vec<_>>()})
        }
        (layout::STRING, _) => json!({"type": "string"}),
        (layout::BOOL, _) => json!({"type": "boolean"}),
        (layout::INT32, _) => json!({"type": "integer", "format": "int32"}),
        (layout::INT64, _) => json!({"type": "integer", "format": "int64"}),
        (layout::NUMBER, _) => json!({"type": "number", "format": "double"}),
        (layout::BYTES, _) => json!({"type": "string", "format": "byte"}),
        (layout::LIST, element) => {
            json!({"type": "array", "items": shape(schema, ShapeId(element), values, dialect)})
        }
        (layout::MAP, element) => {
            json!({"type": "object", "additionalProperties": shape(schema, ShapeId(element), values, dialect)})
        }
        (_, target) => dialect.reference(schema.type_name(TypeId(target))),
    }
}

fn describe(out: &mut Value, description: &str) {
    if !description.is_empty() {
        out["description"] = description.into();
    }
}
