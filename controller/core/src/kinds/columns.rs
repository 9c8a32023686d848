//! Columns that every kind prints, and what cells are made of.

use serde_json::Value;

use super::Column;
use crate::object;

/// The object's name; first everywhere.
pub const NAME: Column = Column {
    name: "Name",
    r#type: "string",
    format: "name",
    priority: 0,
    description: "Name must be unique within a namespace.",
    cell: |object, _| object::name(object).into(),
};

/// How long the object has existed, as kubectl shows it: `3m5s`, `2d`.
pub const AGE: Column = Column {
    name: "Age",
    r#type: "string",
    format: "",
    priority: 0,
    description: "CreationTimestamp is the time at which this object was created on the server.",
    cell: |object, now| Value::from(age(&object["metadata"]["creationTimestamp"], now)),
};

/// Time since a metav1.Time; `<unknown>` if it is none.
pub fn age(time: &Value, now: jiff::Timestamp) -> String {
    match time.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()) {
        Some(then) => human_duration(now.as_second() - then.as_second()),
        None => "<unknown>".to_owned(),
    }
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
