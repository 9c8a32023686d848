//! What becomes of an occurrence: a new Event, one more of an Event that is there, or nothing. Pure.
//!
//! As Kubernetes' EventCorrelator: what differs in nothing is counted; from the tenth within ten minutes
//! on, what differs in the message only is one Event "(combined from similar events)"; and about one object
//! a source says at most 25 things at once and one more every five minutes.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// What an event is about: an `involvedObject`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    /// "" for what has none; its events are in `default`.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// e.g. `spec.containers{redis}`, or "".
    pub field_path: String,
}

impl ObjectRef {
    pub fn of(object: &Value) -> ObjectRef {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        ObjectRef {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            uid: text(&object["metadata"]["uid"]),
            field_path: String::new(),
        }
    }

    pub fn field(mut self, path: &str) -> ObjectRef {
        path.clone_into(&mut self.field_path);
        self
    }

    fn json(&self) -> Value {
        let mut json = json!({
            "apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid,
        });
        for (key, value) in [("namespace", &self.namespace), ("fieldPath", &self.field_path)] {
            if !value.is_empty() {
                json[key] = value.clone().into();
            }
        }
        json
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    pub object: ObjectRef,
    pub r#type: EventType,
    pub reason: String,
    pub message: String,
    /// Who says so, e.g. `statefulset-controller`.
    pub component: String,
    /// On which host, or "".
    pub host: String,
    pub at: Timestamp,
}

/// What to write: an Event by name, new or with its count raised. The same name may have been asked for
/// before and be gone since (it expired): then it is new again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub namespace: String,
    pub name: String,
    pub object: ObjectRef,
    pub r#type: EventType,
    pub reason: String,
    pub message: String,
    pub component: String,
    pub host: String,
    pub count: u32,
    pub first: Timestamp,
    pub last: Timestamp,
}

impl Record {
    pub fn json(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "involvedObject": self.object.json(),
            "type": self.r#type.as_str(),
            "reason": self.reason,
            "message": self.message,
            "source": if self.host.is_empty() {
                json!({"component": self.component})
            } else {
                json!({"component": self.component, "host": self.host})
            },
            "reportingComponent": self.component,
            "reportingInstance": self.host,
            "firstTimestamp": time(self.first),
            "lastTimestamp": time(self.last),
            "count": self.count,
        })
    }
}

/// metav1.Time.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
const SIMILAR: usize = 10;
const SIMILAR_WITHIN: SignedDuration = SignedDuration::from_secs(600);
/// Entries kept of each sort; the least recently used go first.
const KEPT: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    object: ObjectRef,
    component: String,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Similar {
    source: Source,
    r#type: EventType,
    reason: String,
}

/// All that was said lately.
#[derive(Debug, Default)]
pub struct Correlator {
    buckets: Recent<Source, Bucket>,
    similar: Recent<Similar, Messages>,
    records: Recent<(Similar, String), Record>,
    /// Makes names unique within one instant.
    sequence: u64,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

#[derive(Debug, Default)]
struct Messages {
    seen: HashSet<String>,
    since: Option<Timestamp>,
}

impl Correlator {
    /// The record to write for this occurrence; None: too much was said about this object.
    pub fn observe(&mut self, it: Occurrence) -> Option<Record> {
        let source = Source { object: it.object, component: it.component, host: it.host };
        if !self.allowed(&source, it.at) {
            return None;
        }
        let similar = Similar { source, r#type: it.r#type, reason: it.reason };
        let (identity, message) = self.aggregate(&similar, it.message, it.at);
        let key = (similar, identity);
        if let Some(record) = self.records.get(&key) {
            record.count += 1;
            record.last = record.last.max(it.at);
            record.message = message;
            return Some(record.clone());
        }
        let source = &key.0.source;
        let stamp = u64::try_from(it.at.as_nanosecond()).unwrap_or_default().wrapping_add(self.sequence);
        self.sequence += 1;
        let namespace = &source.object.namespace;
        let record = Record {
            namespace: if namespace.is_empty() { "default".to_owned() } else { namespace.clone() },
            name: format!("{}.{stamp:x}", source.object.name),
            object: source.object.clone(),
            r#type: key.0.r#type,
            reason: key.0.reason.clone(),
            message,
            component: source.component.clone(),
            host: source.host.clone(),
            count: 1,
            first: it.at,
            last: it.at,
        };
        self.records.insert(key, record.clone());
        Some(record)
    }

    fn allowed(&mut self, source: &Source, now: Timestamp) -> bool {
        if self.buckets.get(source).is_none() {
            self.buckets.insert(source.clone(), Bucket { tokens: BURST, at: now });
        }
        let Some(bucket) = self.buckets.get(source) else { return true };
        let passed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed / REFILL_SECONDS).min(BURST);
        bucket.at = bucket.at.max(now);
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    /// What tells this record from its similar ones (its message, or nothing once there are too many), and
    /// the message it shows.
    fn aggregate(&mut self, similar: &Similar, message: String, now: Timestamp) -> (String, String) {
        if self.similar.get(similar).is_none() {
            self.similar.insert(similar.clone(), Messages::default());
        }
        let Some(messages) = self.similar.get(similar) else { return (message.clone(), message) };
        if messages.since.is_none_or(|since| now.duration_since(since) > SIMILAR_WITHIN) {
            messages.seen.clear();
        }
        messages.since = Some(now);
        messages.seen.insert(message.clone());
        if messages.seen.len() < SIMILAR {
            return (message.clone(), message);
        }
        // No more than these need to be told apart.
        if let Some(one) = messages.seen.iter().find(|m| **m != message).cloned() {
            messages.seen.remove(&one);
        }
        (String::new(), format!("(combined from similar events): {message}"))
    }
}

/// A map that forgets what was not asked for lately.
#[derive(Debug)]
struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    clock: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent { entries: HashMap::new(), clock: 0 }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Recent<K, V> {
    fn get(&mut self, key: &K) -> Option<&mut V> {
        self.clock += 1;
        let (used, value) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(value)
    }

    fn insert(&mut self, key: K, value: V) {
        self.clock += 1;
        if self.entries.len() >= KEPT {
            // Half of them at once: rare, and cheaper than an order kept at every use.
            let mut used: Vec<u64> = self.entries.values().map(|(used, _)| *used).collect();
            let (_, middle, _) = used.select_nth_unstable(KEPT / 2);
            let middle = *middle;
            self.entries.retain(|_, (used, _)| *used > middle);
        }
        self.entries.insert(key, (self.clock, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn pod(name: &str) -> ObjectRef {
        ObjectRef {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: "prod".into(),
            name: name.into(),
            uid: format!("uid-of-{name}"),
            field_path: String::new(),
        }
    }

    fn says(object: &str, message: &str, seconds: i64) -> Occurrence {
        Occurrence {
            object: pod(object),
            r#type: EventType::Warning,
            reason: "Unhealthy".into(),
            message: message.into(),
            component: "berth-agent".into(),
            host: "a".into(),
            at: at(seconds),
        }
    }

    #[test]
    fn the_same_thing_said_again_is_counted() {
        let mut events = Correlator::default();
        let first = events.observe(says("web-0", "refused", 0)).unwrap();
        let again = events.observe(says("web-0", "refused", 7)).unwrap();
        assert_eq!((again.name.clone(), again.count, again.first, again.last), (first.name, 2, at(0), at(7)));
        assert_eq!(again.json()["lastTimestamp"], "2027-01-15T08:00:07Z");
        let other = events.observe(says("web-1", "refused", 8)).unwrap();
        assert_eq!(other.count, 1);
    }

    #[test]
    fn ten_that_differ_only_in_their_message_become_one() {
        let mut events = Correlator::default();
        let records: Vec<Record> =
            (0..20).map(|i| events.observe(says("web-0", &format!("{i} ms"), i)).unwrap()).collect();
        assert!(records[..9].iter().all(|r| r.count == 1));
        assert_eq!(records[9].message, "(combined from similar events): 9 ms");
        assert!(records[10..].iter().all(|r| r.name == records[9].name));
        assert_eq!(records[19].count, 11);
        assert_eq!(events.observe(says("web-0", "later", 5000)).unwrap().message, "later");
    }

    #[test]
    fn about_one_object_25_things_are_said_at_once_and_one_more_every_five_minutes() {
        let mut events = Correlator::default();
        let said = |events: &mut Correlator, seconds| events.observe(says("web-0", "x", seconds)).is_some();
        assert_eq!((0..100).filter(|_| said(&mut events, 0)).count(), 25);
        assert!(!said(&mut events, 299));
        assert!(said(&mut events, 301));
        assert!(!said(&mut events, 302));
        assert!(events.observe(says("web-1", "x", 302)).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let mut events = Correlator::default();
        for i in 0..20_000 {
            events.observe(says(&format!("web-{i}"), "x", 0));
        }
        assert!(events.records.entries.len() <= KEPT && events.buckets.entries.len() <= KEPT);
    }
}
