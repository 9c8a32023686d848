//! What a node's own fields mean: selector terms, taints, its Ready condition.

use serde_json::Value;

use crate::object;

/// Alternatives of which one must hold, each made of requirements that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Term {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
    /// One that validation refuses: matches nothing.
    Unknown,
}

/// What a node is selected by.
pub(super) trait Selectable {
    fn name(&self) -> &str;
    fn label(&self, key: &str) -> Option<&str>;
}

impl Selectable for Value {
    fn name(&self) -> &str {
        object::name(self)
    }

    fn label(&self, key: &str) -> Option<&str> {
        object::label(self, key)
    }
}

impl NodeSelector {
    /// Of `nodeSelectorTerms`.
    pub(super) fn of(selector: &Value) -> NodeSelector {
        NodeSelector { terms: list(&selector["nodeSelectorTerms"]).map(Term::of).collect() }
    }

    pub(super) fn matches(&self, node: &impl Selectable) -> bool {
        self.terms.iter().any(|term| term.matches(node))
    }
}

impl Term {
    pub(super) fn of(term: &Value) -> Term {
        let read = |field: &str| list(&term[field]).map(Requirement::of).collect();
        Term { labels: read("matchExpressions"), fields: read("matchFields") }
    }

    /// A term that says nothing matches nothing.
    pub(super) fn matches(&self, node: &impl Selectable) -> bool {
        (!self.labels.is_empty() || !self.fields.is_empty())
            && self.labels.iter().all(|r| r.holds(node.label(&r.key)))
            && self.fields.iter().all(|r| r.holds((r.key == "metadata.name").then(|| node.name())))
    }
}

impl Requirement {
    fn of(expression: &Value) -> Requirement {
        let operator = match expression["operator"].as_str() {
            Some("In") => Operator::In,
            Some("NotIn") => Operator::NotIn,
            Some("Exists") => Operator::Exists,
            Some("DoesNotExist") => Operator::DoesNotExist,
            Some("Gt") => Operator::Gt,
            Some("Lt") => Operator::Lt,
            _ => Operator::Unknown,
        };
        Requirement {
            key: expression["key"].as_str().unwrap_or_default().to_owned(),
            operator,
            values: list(&expression["values"]).filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        }
    }

    fn holds(&self, actual: Option<&str>) -> bool {
        let compare = |test: fn(i64, i64) -> bool| {
            let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
            let wanted = number(self.values.first().map(String::as_str));
            matches!((number(actual), wanted), (Some(a), Some(b)) if test(a, b))
        };
        match self.operator {
            Operator::In => actual.is_some_and(|a| self.values.iter().any(|v| v == a)),
            Operator::NotIn => actual.is_none_or(|a| self.values.iter().all(|v| v != a)),
            Operator::Exists => actual.is_some(),
            Operator::DoesNotExist => actual.is_none(),
            Operator::Gt => compare(|a, b| a > b),
            Operator::Lt => compare(|a, b| a < b),
            Operator::Unknown => false,
        }
    }
}

/// Whether a PersistentVolume can be used on this node.
pub fn reaches(volume: &Value, node: &Value) -> bool {
    volume_affinity(volume).is_none_or(|selector| selector.matches(node))
}

/// Where a PersistentVolume can be used; None: anywhere.
pub(super) fn volume_affinity(volume: &Value) -> Option<NodeSelector> {
    let required = &volume["spec"]["nodeAffinity"]["required"];
    (!required.is_null()).then(|| NodeSelector::of(required))
}

/// The status of the node's Ready condition; `Unknown` if there is none.
pub fn ready(node: &Value) -> &str {
    let ready = list(&node["status"]["conditions"]).find(|c| c["type"] == "Ready");
    ready.and_then(|c| c["status"].as_str()).unwrap_or("Unknown")
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
