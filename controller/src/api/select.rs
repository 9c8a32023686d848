//! Which objects a list or watch shows: label and field selectors, and a name.

use berth_controller_core::kinds::Kind;
use berth_controller_core::selector::{FieldSelector, Selector};
use berth_controller_core::status::Status;

use super::query::Query;
use crate::store::Object;

pub struct Selection {
    kind: &'static Kind,
    labels: Selector,
    fields: FieldSelector,
    name: Option<String>,
    /// Some term needs the object itself, not only what the store keeps at hand.
    deep: bool,
}

impl Selection {
    /// From `labelSelector` and `fieldSelector`; `name` from the path.
    pub fn parse(kind: &'static Kind, query: &Query, name: Option<&str>) -> Result<Selection, Status> {
        let labels = match query.get("labelSelector") {
            None => Selector::everything(),
            Some(text) => {
                text.parse().map_err(|e| Status::bad_request(format!("unable to parse requirement: {e}")))?
            }
        };
        let fields: FieldSelector = match query.get("fieldSelector") {
            None => FieldSelector::default(),
            Some(text) => text.parse().map_err(|e| Status::bad_request(format!("{e}")))?,
        };
        let mut deep = false;
        for term in &fields.terms {
            let known = kind.fields.iter().any(|f| f.path == term.path);
            match term.path.as_str() {
                "metadata.name" | "metadata.namespace" => {}
                _ if known => deep = true,
                path => {
                    return Err(Status::bad_request(format!(
                        "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not supported: {path}",
                        kind.resource(),
                        query.get("labelSelector").unwrap_or_default(),
                        query.get("fieldSelector").unwrap_or_default(),
                    )));
                }
            }
        }
        Ok(Selection { kind, labels, fields, name: name.map(str::to_owned), deep })
    }

    /// Nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.terms.is_empty() && self.name.is_none()
    }

    pub fn has(&self, object: &Object) -> bool {
        if self.name.as_ref().is_some_and(|name| *name != object.key.name) {
            return false;
        }
        if !self.labels.matches_with(|key| object.meta.labels.get(key)) {
            return false;
        }
        if self.fields.terms.is_empty() {
            return true;
        }
        let value = if self.deep { object.value() } else { serde_json::Value::Null };
        self.fields.matches(|path| match path {
            "metadata.name" => object.key.name.clone(),
            "metadata.namespace" => object.key.namespace.clone(),
            _ => self
                .kind
                .fields
                .iter()
                .find(|f| f.path == path)
                .map(|f| (f.value)(&value))
                .unwrap_or_default(),
        })
    }
}
