//! What the system writes into `metadata` of every kind. (What is wrong with it is told by the core.) Pure.

use berth_controller_core::object;
use serde_json::Value;

/// `base` and five characters that spell nothing, drawn from `random`. A long base is cut so that the name
/// still is a DNS label.
pub fn generate_name(base: &str, random: &[u8]) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const SUFFIX: usize = 5;
    let mut name: String = base.chars().take(63 - SUFFIX).collect();
    name.extend(random.iter().take(SUFFIX).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])));
    name
}

/// Drops what says nothing (empty labels, annotations, lists), so that equal objects are equal bytes.
pub fn tidy(value: &mut Value) {
    let metadata = object::metadata_mut(value);
    for field in ["labels", "annotations", "finalizers", "ownerReferences", "generateName", "namespace"] {
        let empty = match metadata.get(field) {
            Some(Value::Null) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::String(text)) => text.is_empty(),
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_generated_name_is_no_longer_than_a_label() {
        assert_eq!(generate_name(&"x".repeat(80), &[0, 1, 2, 3, 255]).len(), 63);
        assert_eq!(generate_name("a-", &[0, 1, 2, 3, 27]), "a-bcdfb");
    }

    #[test]
    fn what_says_nothing_is_dropped() {
        let mut object =
            json!({"metadata": {"name": "a", "labels": {}, "finalizers": [], "annotations": null}});
        tidy(&mut object);
        assert_eq!(object, json!({"metadata": {"name": "a"}}));
    }
}
