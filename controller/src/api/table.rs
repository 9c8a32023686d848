//! Server-side printing: metav1.Table from a kind's columns.

use berth_controller_core::kinds::{Column, Kind};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What of each object comes along with its row (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// From the query; None for a value Kubernetes does not know.
    pub fn parse(text: Option<&str>) -> Option<Include> {
        match text {
            None | Some("" | "Metadata") => Some(Include::Metadata),
            Some("None") => Some(Include::None),
            Some("Object") => Some(Include::Object),
            Some(_) => None,
        }
    }
}

/// A table. `metadata` is the list's (resourceVersion, continue...), or the object's resourceVersion alone.
/// Without `headers` the column definitions are left out, as a watch does after its first event.
pub fn table(
    kind: &Kind,
    metadata: Value,
    objects: &[Value],
    include: Include,
    headers: bool,
    now: Timestamp,
) -> Value {
    let columns: Vec<Value> =
        if headers { kind.columns.iter().map(definition).collect() } else { Vec::new() };
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = kind.columns.iter().map(|c| (c.cell)(object, now)).collect();
            let mut row = json!({"cells": cells});
            match include {
                Include::None => row["object"] = Value::Null,
                Include::Metadata => row["object"] = partial(object),
                Include::Object => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

/// The PartialObjectMetadata of an object.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name, "type": column.r#type, "format": column.format,
        "description": column.description, "priority": column.priority,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_controller_core::kinds::ALL;

    #[test]
    fn every_row_has_a_cell_for_every_column_whatever_the_object() {
        for kind in ALL {
            for object in
                [json!({}), json!(null), json!({"metadata": {"name": "x"}, "spec": 3, "status": []})]
            {
                let table = table(kind, json!({}), &[object], Include::Metadata, true, Timestamp::UNIX_EPOCH);
                assert_eq!(
                    table["rows"][0]["cells"].as_array().unwrap().len(),
                    table["columnDefinitions"].as_array().unwrap().len(),
                    "{}",
                    kind.kind
                );
            }
        }
    }

    #[test]
    fn include_is_one_of_three_words() {
        assert_eq!(Include::parse(None), Some(Include::Metadata));
        assert_eq!(Include::parse(Some("None")), Some(Include::None));
        assert_eq!(Include::parse(Some("Everything")), None);
    }
}
