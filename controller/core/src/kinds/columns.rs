//! Columns that every kind prints, and what cells are made of.

use jiff::Timestamp;
use serde_json::Value;

use super::Column;
use crate::object;

type CellFn = fn(&Value, Timestamp) -> Value;

/// The object's name; first everywhere.
pub const NAME: Column = Column {
    format: "name",
    ..text("Name", "Name is unique within a namespace; it cannot be changed.", |object, _| {
        object::name(object).into()
    })
};

/// How long the object has existed, as kubectl shows it: `3m5s`, `2d`.
pub const AGE: Column = text("Age", "How long ago the object was created.", |object, now| {
    age(&object["metadata"]["creationTimestamp"], now).into()
});

/// When the object was created, as a time (RBAC prints it so).
pub const CREATED_AT: Column = Column {
    r#type: "date",
    ..text("Created At", "When the object was created.", |object, _| {
        object["metadata"]["creationTimestamp"].clone()
    })
};

/// A column of text.
pub const fn text(name: &'static str, description: &'static str, cell: CellFn) -> Column {
    Column { name, r#type: "string", format: "", priority: 0, description, cell }
}

/// A column of whole numbers.
pub const fn number(name: &'static str, description: &'static str, cell: CellFn) -> Column {
    Column { name, r#type: "integer", format: "", priority: 0, description, cell }
}

impl Column {
    /// Only with `-o wide`.
    pub const fn wide(mut self) -> Column {
        self.priority = 1;
        self
    }
}

/// The elements of a list; none if it is no list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A text, `<none>` if there is none.
pub fn or_none(value: &Value) -> Value {
    or(value, "<none>")
}

/// A text, or what stands for none.
pub fn or(value: &Value, none: &str) -> Value {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or(none).into()
}

/// The strings of a list, joined by commas.
pub fn joined<'a>(strings: impl Iterator<Item = &'a str>) -> String {
    strings.collect::<Vec<_>>().join(",")
}

/// A map of labels as a selector shows it: `a=b,c=d`; `<none>` if empty.
pub fn labels(map: &Value) -> Value {
    let entries = map.as_object().into_iter().flatten();
    let entries: Vec<String> =
        entries.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    if entries.is_empty() { "<none>".into() } else { entries.join(",").into() }
}

/// Names and images of a list of containers, for the wide columns `Containers` and `Images`.
pub fn each_container(containers: &Value, field: &str) -> Value {
    joined(list(containers).iter().map(|c| c[field].as_str().unwrap_or_default())).into()
}

/// Time since a metav1.Time; `<unknown>` if it is none.
pub fn age(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(then) => since(then, now),
        None => "<unknown>".to_owned(),
    }
}

pub fn since(then: Timestamp, now: Timestamp) -> String {
    human_duration(now.as_second() - then.as_second())
}

/// A duration of whole seconds the way kubectl prints it: two units at most, the second one only while it
/// still says something (k8s.io/apimachinery duration.HumanDuration).
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: &str, small: i64, sub: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{sub}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 | 0 => "0s".to_owned(),
        1..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_prints_them() {
        const MINUTE: i64 = 60;
        const HOUR: i64 = 3600;
        const DAY: i64 = 86400;
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (2 * MINUTE, "2m"),
            (3 * MINUTE + 5, "3m5s"),
            (10 * MINUTE + 5, "10m"),
            (179 * MINUTE, "179m"),
            (3 * HOUR + 5 * MINUTE, "3h5m"),
            (8 * HOUR + 5 * MINUTE, "8h"),
            (47 * HOUR, "47h"),
            (2 * DAY + 3 * HOUR, "2d3h"),
            (8 * DAY + 3 * HOUR, "8d"),
            (700 * DAY, "700d"),
            (2 * 365 * DAY + 10 * DAY, "2y10d"),
            (9 * 365 * DAY, "9y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
