//! Access modes: who may use a volume at the same time.
//!
//! What counts is who holds a name with that volume (an identity record), not which pods the API still shows: a
//! pod that was deleted by force, or whose host is silent, may write until its host has said otherwise.

use serde_json::Value;

use crate::object;

/// Somebody who has the volume.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// namespace/name
    pub pod: &'a str,
    pub node: &'a str,
}

/// Why a pod on this node may not use the volume beside those who have it.
pub fn refusal<'a>(
    volume: &Value,
    node: &str,
    holders: impl IntoIterator<Item = Holder<'a>>,
) -> Option<String> {
    let modes = volume["spec"]["accessModes"].as_array();
    let has = |mode: &str| modes.is_some_and(|modes| modes.iter().any(|m| m == mode));
    let (one_pod, many) = (has("ReadWriteOncePod"), has("ReadWriteMany") || has("ReadOnlyMany"));
    if many || modes.is_none_or(Vec::is_empty) {
        return None;
    }
    let in_the_way = holders.into_iter().find(|holder| one_pod || holder.node != node)?;
    let name = object::name(volume);
    let Holder { pod, node } = in_the_way;
    Some(if one_pod {
        format!(
            "node(s) could not use volume {name:?}, which is ReadWriteOncePod and in use by pod {pod} on {node:?}"
        )
    } else {
        format!(
            "node(s) could not use volume {name:?}, which is ReadWriteOnce and in use on {node:?} by pod {pod}"
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MODES: [&str; 4] = ["ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany", "ReadWriteMany"];

    proptest! {
        /// Pods come in any order wherever they like; whoever is let in is let in for good.
        #[test]
        fn one_host_or_one_pod_whoever_asks(
            mode in 0..MODES.len(),
            wishes in prop::collection::vec(0..4usize, 1..12),
        ) {
            let volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": [MODES[mode]]}});
            let nodes = ["a", "b", "c", "d"];
            let mut inside: Vec<&str> = Vec::new();
            for wish in &wishes {
                let node = nodes[*wish];
                let holders = inside.iter().map(|node| Holder { pod: "default/p", node });
                if refusal(&volume, node, holders).is_none() {
                    inside.push(node);
                }
            }
            match MODES[mode] {
                "ReadWriteOnce" => prop_assert!(inside.iter().all(|node| *node == inside[0])),
                "ReadWriteOncePod" => prop_assert_eq!(inside.len(), 1),
                _ => prop_assert_eq!(inside.len(), wishes.len()),
            }
            // Nobody is kept out for nothing.
            prop_assert!(!inside.is_empty());
        }
    }

    #[test]
    fn a_refusal_names_volume_mode_and_holder() {
        let volume = json!({"metadata": {"name": "pvc-1"}, "spec": {"accessModes": ["ReadWriteOnce"]}});
        let holder = Holder { pod: "default/web-0", node: "a" };
        assert_eq!(refusal(&volume, "a", [holder]), None);
        assert_eq!(
            refusal(&volume, "b", [holder]).unwrap(),
            "node(s) could not use volume \"pvc-1\", which is ReadWriteOnce and in use on \"a\" by pod default/web-0"
        );
    }
}
