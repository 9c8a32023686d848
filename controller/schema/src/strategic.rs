//! Strategic merge patches, as k8s.io/apimachinery/pkg/util/strategicpatch applies them.
//!
//! A patch is shaped like the object. Objects merge, null deletes, and lists are replaced unless their field says
//! that they merge: scalars as a set, objects by a merge key. Directives steer it:
//! `$patch: replace|delete` (an object, or as an element its whole list or one element), `$retainKeys` (all other
//! keys go), `$deleteFromPrimitiveList/<list>`, and `$setElementOrder/<list>`.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use crate::layout;
use crate::table::{Field, Schema, Shape};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

/// Why a patch cannot be applied, in Kubernetes' words. All are the client's fault.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// A directive is not formed as it must be: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object or its type: 422.
    #[error("{0}")]
    Unfit(String),
    /// The table does not know the type: a fault of the caller.
    #[error("no kind {0:?} is registered")]
    NoSuchType(String),
}

impl PatchError {
    /// The HTTP status to answer with.
    pub fn code(&self) -> u16 {
        match self {
            PatchError::Malformed(_) => 400,
            PatchError::Unfit(_) => 422,
            PatchError::NoSuchType(_) => 500,
        }
    }
}

type Object = Map<String, Value>;
type List = Vec<Value>;

impl Schema {
    /// Applies `patch` to `original`, a decoded object of the type. The result is not decoded: pass it to
    /// [`Schema::decode_value`]. Both must be nested no deeper than a parsed body can be.
    pub fn strategic_merge(
        &self,
        type_name: &str,
        original: &Value,
        patch: &Value,
    ) -> Result<Value, PatchError> {
        let id = self.find_type(type_name).ok_or_else(|| PatchError::NoSuchType(type_name.to_owned()))?;
        match (original, patch) {
            (Value::Object(original), Value::Object(patch)) => {
                merge_objects(self, original.clone(), patch.clone(), Shape::Type(id)).map(Value::Object)
            }
            _ => Err(PatchError::Malformed("invalid JSON document".into())),
        }
    }
}

/// `patch` into `original`, both of `shape`.
fn merge_objects(
    schema: &Schema,
    mut original: Object,
    mut patch: Object,
    shape: Shape,
) -> Result<Object, PatchError> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(directive, patch)),
        };
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain_keys(&mut original, &patch, keys)?;
    }
    merge_ordered_lists(schema, &mut original, &mut patch, shape)?;

    for (key, value) in patch {
        let deletes = key.starts_with(DELETE_FROM);
        let key =
            if deletes { directive_target(&key, DELETE_FROM, BAD_PRIMITIVE_LIST)?.to_owned() } else { key };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(old) = original.remove(&key) else {
            if !deletes {
                original.extend(added(value).map(|v| (key, v)));
            }
            continue;
        };
        let merged = match (old, value) {
            (Value::Object(old), Value::Object(value)) => {
                let field = lookup(schema, shape, &key)?;
                Some(Value::Object(if field.flags & layout::REPLACE != 0 {
                    value
                } else {
                    merge_objects(schema, old, value, field.shape)?
                }))
            }
            (Value::Array(old), Value::Array(value)) => {
                let field = lookup(schema, shape, &key)?;
                let element = element_of(schema, shape, &field)?;
                Some(Value::Array(merge_lists(schema, old, value, &field, element, deletes)?))
            }
            (old, _) if deletes => Some(old),
            (_, value) => added(value),
        };
        original.extend(merged.map(|v| (key, v)));
    }
    Ok(original)
}

/// A value of the patch that has nothing to merge with: without nulls and what `$patch` marks.
fn added(mut value: Value) -> Option<Value> {
    drop_nulls(&mut value);
    without_directives(value)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// None: the value itself is a directive.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
const BAD_PRIMITIVE_LIST: &str = "invalid patch format of primitive list";
const BAD_SET_ORDER: &str = "invalid patch format of setElementOrder list";

/// `$retainKeys`: only these keys stay, and the patch may set no other.
fn retain_keys(original: &mut Object, patch: &Object, keys: Value) -> Result<(), PatchError> {
    let bad = || PatchError::Malformed(BAD_RETAIN_KEYS.into());
    let keys: BTreeSet<&str> = keys.as_array().ok_or_else(bad)?.iter().filter_map(Value::as_str).collect();
    let directive = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
    if patch.iter().any(|(k, v)| !v.is_null() && !directive(k) && !keys.contains(k.as_str())) {
        return Err(bad());
    }
    original.retain(|k, _| keys.contains(k.as_str()));
    Ok(())
}

/// `$setElementOrder/<list>`, together with the list itself, which leaves the patch.
fn merge_ordered_lists(
    schema: &Schema,
    original: &mut Object,
    patch: &mut Object,
    shape: Shape,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = list(patch.remove(&directive).unwrap_or_default())?;
        let key = directive_target(&directive, SET_ORDER, BAD_SET_ORDER)?;
        let old = original.remove(key).map(list).transpose()?;
        let new = patch.remove(key).map(list).transpose()?;
        let field = lookup(schema, shape, key)?;
        let element = element_of(schema, shape, &field)?;
        check_order(new.as_deref().unwrap_or_default(), &order, field.merge_key)?;

        let server_order =
            refilled(old.as_deref().unwrap_or_default(), new.as_deref().unwrap_or_default(), &field);
        let places = Places {
            order: positions(&order, field.merge_key)?,
            server: positions(&server_order, field.merge_key)?,
        };
        let merged = match (old, new) {
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(without_directives).collect(),
            (Some(old), Some(new)) => merge_lists(schema, old, new, &field, element, false)?,
            (None, None) => continue,
        };
        let sorted = places.sort(merged, field.merge_key)?;
        original.insert(key.to_owned(), Value::Array(sorted));
    }
    Ok(())
}

/// The server's list as Kubernetes sees it when it orders the merged one: new elements have taken the places that
/// deleted ones left at its end, so that they count as known to the server. Only the identities matter.
fn refilled(old: &[Value], new: &[Value], field: &Field) -> List {
    let key = field.merge_key;
    if !field.merges || key.is_empty() {
        return old.to_vec();
    }
    let directive = |item: &Value, wanted: &str| item.get(PATCH).is_some_and(|d| d == wanted);
    let gone: HashSet<String> = new
        .iter()
        .filter(|v| directive(v, "delete"))
        .filter_map(|v| v.get(key))
        .map(Value::to_string)
        .collect();
    let mut known: HashSet<String> = HashSet::new();
    let mut list: List = Vec::with_capacity(old.len());
    for item in old {
        let identity = item.get(key).map(Value::to_string).unwrap_or_default();
        if !gone.contains(&identity) {
            known.insert(identity);
            list.push(item.clone());
        }
    }
    if !new.iter().any(|v| directive(v, "replace")) {
        let added = new.iter().filter(|v| v.get(PATCH).is_none());
        let added = added.filter(|v| v.get(key).is_some_and(|id| known.insert(id.to_string())));
        list.extend(added.take(old.len() - list.len()).cloned());
    }
    list
}

/// The patch's elements must all be in the order, and in that order.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut left = order.iter();
    for item in patch {
        if item.get(PATCH).is_some() {
            continue;
        }
        loop {
            let Some(candidate) = left.next() else {
                return Err(PatchError::Unfit(format!(
                    "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                    go_list(patch),
                    go_list(order)
                )));
            };
            if identity(item, key)? == identity(candidate, key)? {
                break;
            }
        }
    }
    Ok(())
}

/// Merges two lists of one field; `deletes`: `patch` names scalars that go.
fn merge_lists(
    schema: &Schema,
    original: List,
    patch: List,
    field: &Field,
    element: Shape,
    deletes: bool,
) -> Result<List, PatchError> {
    if !field.merges && !deletes {
        return Ok(patch);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    if !of_objects(&original, &patch)? {
        if deletes {
            let gone: HashSet<String> = patch.iter().map(Value::to_string).collect();
            return Ok(original.into_iter().filter(|v| !gone.contains(&v.to_string())).collect());
        }
        let places = Places { order: positions(&patch, "")?, server: positions(&original, "")? };
        let mut seen = HashSet::new();
        let mut merged = original;
        merged.extend(patch);
        merged.retain(|v| seen.insert(v.to_string()));
        return places.sort(merged, "");
    }

    let key = field.merge_key;
    if key.is_empty() {
        return Err(PatchError::Unfit("cannot merge lists without merge key for struct".into()));
    }
    let (original, patch) = apply_element_directives(original, patch, key)?;
    let places = Places { order: positions(&patch, key)?, server: positions(&original, key)? };
    let mut known = places.server.clone();
    let mut merged = original;
    for item in patch {
        let identity = identity(&item, key)?;
        match known.get(&identity) {
            Some(at) => {
                let slot = &mut merged[*at];
                let both = merge_objects(schema, object(slot.take())?, object(item)?, element)?;
                *slot = Value::Object(both);
            }
            None => {
                known.insert(identity, merged.len());
                merged.push(item);
            }
        }
    }
    places.sort(merged, key)
}

/// Carries out the elements that are directives: what is left of both lists.
fn apply_element_directives(original: List, patch: List, key: &str) -> Result<(List, List), PatchError> {
    let mut original = original;
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        match item.get(PATCH) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    identity(&item, key)?;
                    original.retain(|v| v.get(key) != item.get(key));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(PatchError::Unfit(
                        "merging lists cannot yet be specified in the patch".into(),
                    ));
                }
                _ => return Err(unknown_directive(directive.clone(), object(item.clone())?)),
            },
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

/// Where elements stand, by identity: in the order the patch asks for, and in the list the server had.
struct Places {
    order: HashMap<String, usize>,
    server: HashMap<String, usize>,
}

impl Places {
    /// Puts a merged list in order: the elements that the patch names as it says, and all others, which keep the
    /// order the server had them in, each before the first of the named that it stood before.
    fn sort(&self, merged: List, key: &str) -> Result<List, PatchError> {
        let mut named = Vec::new();
        let mut others = Vec::new();
        for value in merged {
            let identity = identity(&value, key)?;
            let on_server = self.server.get(&identity).copied();
            match self.order.get(&identity) {
                Some(at) => named.push((*at, on_server, value)),
                None => others.push((on_server, value)),
            }
        }
        named.sort_by_key(|(at, _, _)| *at);
        others.sort_by_key(|(at, _)| at.unwrap_or(usize::MAX));

        let mut sorted = Vec::with_capacity(named.len() + others.len());
        let mut others = others.into_iter().peekable();
        for (_, at, value) in named {
            let before =
                |other: &(Option<usize>, Value)| matches!((other.0, at), (Some(o), Some(n)) if o < n);
            while let Some((_, other)) = others.next_if(before) {
                sorted.push(other);
            }
            sorted.push(value);
        }
        sorted.extend(others.map(|(_, value)| value));
        Ok(sorted)
    }
}

/// The place of each element, the first one where several have the same identity.
fn positions(list: &[Value], key: &str) -> Result<HashMap<String, usize>, PatchError> {
    let mut places = HashMap::with_capacity(list.len());
    for (at, value) in list.iter().enumerate() {
        places.entry(identity(value, key)?).or_insert(at);
    }
    Ok(places)
}

/// What tells an element apart: its merge key, or for scalars (no key) itself. As JSON, so that `80` is not `"80"`.
fn identity(value: &Value, key: &str) -> Result<String, PatchError> {
    if key.is_empty() {
        return Ok(value.to_string());
    }
    let Value::Object(map) = value else {
        return Err(bad_type("map[string]interface {}", value));
    };
    match map.get(key) {
        Some(found) => Ok(found.to_string()),
        None => Err(PatchError::Unfit(format!(
            "map: {} does not contain declared merge key: {key}",
            go_value(value)
        ))),
    }
}

/// Whether the elements of both lists are objects; all must be of one type.
fn of_objects(original: &[Value], patch: &[Value]) -> Result<bool, PatchError> {
    let mut all = original.iter().chain(patch);
    let first = all.next().map_or("", go_type);
    if first == "[]interface {}" {
        return Err(PatchError::Unfit("lists of lists are not supported".into()));
    }
    if first == GO_NIL || all.any(|v| go_type(v) != first) {
        let lists = format!("[{} {}]", go_list(original), go_list(patch));
        return Err(PatchError::Unfit(format!("list element types are not identical: {lists}")));
    }
    Ok(first == "map[string]interface {}")
}

/// The field a key names, for objects and lists that are on both sides.
fn lookup(schema: &Schema, shape: Shape, key: &str) -> Result<Field, PatchError> {
    let owner = match shape {
        Shape::Type(id) => match schema.field(id, key) {
            Some(field) => return Ok(field),
            None => schema.type_name(id).rsplit('.').next().unwrap_or_default(),
        },
        Shape::Map(_) => {
            return Err(PatchError::Unfit(
                "merging an object in json but data type is not struct, instead is: map".into(),
            ));
        }
        _ => "RawExtension",
    };
    Err(PatchError::Unfit(format!("unable to find api field in struct {owner} for the json field {key:?}")))
}

fn element_of(schema: &Schema, owner: Shape, field: &Field) -> Result<Shape, PatchError> {
    match field.shape {
        Shape::List(element) => Ok(schema.element(element)),
        _ => {
            let kind = if matches!(owner, Shape::Map(_)) { "map" } else { "struct" };
            Err(PatchError::Unfit(format!("expected slice or array type, but got: {kind}")))
        }
    }
}

/// `<list>` of `$directive/<list>`.
fn directive_target<'a>(key: &'a str, prefix: &str, malformed: &str) -> Result<&'a str, PatchError> {
    key.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| PatchError::Malformed(malformed.into()))
}

fn list(value: Value) -> Result<List, PatchError> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(bad_type("[]interface {}", &other)),
    }
}

fn object(value: Value) -> Result<Object, PatchError> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(bad_type("map[string]interface {}", &other)),
    }
}

fn bad_type(expected: &str, found: &Value) -> PatchError {
    PatchError::Unfit(format!("expected a {expected}, but received a {}", go_type(found)))
}

fn unknown_directive(directive: Value, mut map: Object) -> PatchError {
    let text = format!("unknown patch type: {} in map: ", go_value(&directive));
    map.insert(PATCH.into(), directive);
    PatchError::Unfit(text + &go_value(&Value::Object(map)))
}

const GO_NIL: &str = "%!s(<nil>)";

/// Go's name of the type a JSON value is decoded to.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => GO_NIL,
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go prints it: `map[name:web ports:[80]]`.
fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => go_list(items),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

fn go_list(items: &[Value]) -> String {
    format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests;
