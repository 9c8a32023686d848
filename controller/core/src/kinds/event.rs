//! Event (core/v1): what happened to an object, in words.

use jiff::Timestamp;
use serde_json::Value;

use super::check::{At, Errors};
use super::columns::{self, age, number, or, text};
use super::{FieldSelector, Kind};
use crate::field::FieldError;
use crate::object;

pub static EVENT: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    validate: |event| {
        let namespace = object::namespace(event);
        let about = At::root(event).get("involvedObject").get("namespace");
        // An event about an object without a namespace lives in `default`.
        let fits = match about.str() {
            "" => matches!(namespace, "" | "default"),
            about => about == namespace,
        };
        if fits {
            Errors::new()
        } else {
            vec![FieldError::invalid(&about.path, about.str(), "does not match event.namespace")]
        }
    },
    columns: &[
        text("Last Seen", "How long ago it last happened.", |event, now| last_seen(event, now).into()),
        text("Type", "Normal or Warning.", |event, _| or(&event["type"], "")),
        text("Reason", "What happened, in one word.", |event, _| or(&event["reason"], "")),
        text("Object", "What it happened to.", |event, _| {
            let about = &event["involvedObject"];
            let kind = about["kind"].as_str().unwrap_or_default().to_lowercase();
            match about["name"].as_str().unwrap_or_default() {
                "" => kind.into(),
                name => format!("{kind}/{name}").into(),
            }
        }),
        text("Subobject", "The part of the object.", |event, _| {
            or(&event["involvedObject"]["fieldPath"], "")
        })
        .wide(),
        text("Source", "Who says so.", |event, _| source(event).into()).wide(),
        text("Message", "What happened, in a sentence.", |event, _| {
            event["message"].as_str().unwrap_or_default().trim().into()
        }),
        text("First Seen", "How long ago it first happened.", |event, now| first_seen(event, now).into())
            .wide(),
        number("Count", "How often it happened.", |event, _| {
            let series = event["series"]["count"].as_i64();
            series.or(event["count"].as_i64()).filter(|n| *n != 0).unwrap_or(1).into()
        })
        .wide(),
        columns::NAME.wide(),
    ],
    fields: &[
        FieldSelector { path: "involvedObject.kind", value: |e| text_of(&e["involvedObject"]["kind"]) },
        FieldSelector {
            path: "involvedObject.namespace",
            value: |e| text_of(&e["involvedObject"]["namespace"]),
        },
        FieldSelector { path: "involvedObject.name", value: |e| text_of(&e["involvedObject"]["name"]) },
        FieldSelector { path: "involvedObject.uid", value: |e| text_of(&e["involvedObject"]["uid"]) },
        FieldSelector {
            path: "involvedObject.apiVersion",
            value: |e| text_of(&e["involvedObject"]["apiVersion"]),
        },
        FieldSelector {
            path: "involvedObject.resourceVersion",
            value: |e| text_of(&e["involvedObject"]["resourceVersion"]),
        },
        FieldSelector {
            path: "involvedObject.fieldPath",
            value: |e| text_of(&e["involvedObject"]["fieldPath"]),
        },
        FieldSelector { path: "reason", value: |e| text_of(&e["reason"]) },
        FieldSelector { path: "reportingComponent", value: |e| text_of(&e["reportingComponent"]) },
        FieldSelector {
            path: "source",
            value: |e| match text_of(&e["source"]["component"]) {
                none if none.is_empty() => text_of(&e["reportingComponent"]),
                component => component,
            },
        },
        FieldSelector { path: "type", value: |e| text_of(&e["type"]) },
    ],
    ..Kind::COMMON
};

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn first_seen(event: &Value, now: Timestamp) -> String {
    let first = &event["firstTimestamp"];
    age(if first.is_null() { &event["eventTime"] } else { first }, now)
}

fn last_seen(event: &Value, now: Timestamp) -> String {
    let series = &event["series"]["lastObservedTime"];
    let last = if series.is_null() { &event["lastTimestamp"] } else { series };
    if last.is_null() { first_seen(event, now) } else { age(last, now) }
}

fn source(event: &Value) -> String {
    let parts = match event["source"]["component"].as_str().unwrap_or_default() {
        "" => [&event["reportingComponent"], &event["reportingInstance"]],
        _ => [&event["source"]["component"], &event["source"]["host"]],
    };
    let given = parts.iter().filter_map(|part| part.as_str()).filter(|part| !part.is_empty());
    given.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_row_says_when_what_and_to_whom() {
        let event = json!({
            "metadata": {"name": "web-0.1"}, "type": "Warning", "reason": "BackOff", "count": 3,
            "message": "Back-off restarting failed container\n",
            "involvedObject": {"kind": "Pod", "name": "web-0", "fieldPath": "spec.containers{c}"},
            "source": {"component": "agent", "host": "n1"},
            "firstTimestamp": "2026-11-21T09:00:00Z", "lastTimestamp": "2026-11-21T09:59:00Z",
        });
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let cells: Vec<Value> = EVENT.columns.iter().map(|c| (c.cell)(&event, now)).collect();
        let expected = json!([
            "60s",
            "Warning",
            "BackOff",
            "pod/web-0",
            "spec.containers{c}",
            "agent, n1",
            "Back-off restarting failed container",
            "60m",
            3,
            "web-0.1"
        ]);
        assert_eq!(Value::from(cells), expected);
    }

    #[test]
    fn an_event_lives_beside_its_object() {
        let event = |namespace: &str, about: &str| json!({"metadata": {"namespace": namespace}, "involvedObject": {"namespace": about}});
        assert_eq!((EVENT.validate)(&event("a", "a")), []);
        assert_eq!((EVENT.validate)(&event("default", "")), []);
        assert_eq!(
            (EVENT.validate)(&event("a", "b"))[0].to_string(),
            r#"involvedObject.namespace: Invalid value: "b": does not match event.namespace"#
        );
    }
}
