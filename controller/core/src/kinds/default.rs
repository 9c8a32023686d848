//! Filling in defaults: the few moves that every kind's defaults are made of.
//!
//! Kubernetes' types come in two sorts. A plain field cannot tell its zero value from absent, so `""` and `0`
//! are defaulted too ([`if_zero`]); a pointer can, so only absent (or null) is ([`if_absent`]).

use serde_json::{Map, Value};

use super::check::is_zero;
use crate::object;
use crate::quantity;

/// `value.<field>` as a map, made if absent.
pub fn map<'a>(value: &'a mut Value, field: &str) -> &'a mut Value {
    object::map_mut(value, field);
    // Just made: it is there.
    value.get_mut(field).unwrap_or_else(|| unreachable!("map_mut made {field}"))
}

/// `value.<field>` if it is a map.
pub fn existing<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    value.get_mut(field).filter(|v| v.is_object())
}

/// The elements of the list `value.<field>` that are maps.
pub fn each<'a>(value: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    let list = value.get_mut(field).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter(|v| v.is_object())
}

fn set_if(value: &mut Value, field: &str, unset: fn(&Value) -> bool, default: impl Into<Value>) {
    if let Some(map) = value.as_object_mut()
        && map.get(field).is_none_or(unset)
    {
        map.insert(field.to_owned(), default.into());
    }
}

pub fn if_absent(value: &mut Value, field: &str, default: impl Into<Value>) {
    set_if(value, field, Value::is_null, default);
}

pub fn if_zero(value: &mut Value, field: &str, default: impl Into<Value>) {
    set_if(value, field, is_zero, default);
}

/// An empty map at `value.<field>` if there is nothing.
pub fn empty_map(value: &mut Value, field: &str) {
    if_absent(value, field, Map::new());
}

/// Makes `to.<field>` what `from.<field>` is: also absent.
pub fn copy(from: &Value, to: &mut Value, field: &str) {
    if let Some(to) = to.as_object_mut() {
        match from.get(field).filter(|v| !v.is_null()) {
            Some(value) => to.insert(field.to_owned(), value.clone()),
            None => to.remove(field),
        };
    }
}

/// Writes every quantity in the map `value.<field>` canonically (`1024Mi` as `1Gi`). What is no quantity stays
/// as it is, for validation to name.
pub fn quantities(value: &mut Value, field: &str) {
    let entries = value.get_mut(field).and_then(Value::as_object_mut);
    for (_, entry) in entries.into_iter().flatten() {
        canonical(entry);
    }
}

/// Writes one quantity canonically.
pub fn canonical(entry: &mut Value) {
    if let Some(text) = quantity::canonical(entry) {
        *entry = text.into();
    }
}
