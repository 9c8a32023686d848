//! Whatever is placed, in whatever order things come and go, nothing that was promised is broken. The promises
//! are checked on the objects themselves, without the indexes that placing goes by.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const ZONE: &str = "topology.kubernetes.io/zone";

fn node(n: usize, ready: bool) -> Value {
    json!({
        "metadata": {"name": format!("n{n}"), "labels": {"kubernetes.io/hostname": format!("n{n}"), ZONE: format!("z{}", n % 2)}},
        "spec": {"taints": if n == 3 { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!([]) }},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "6"},
                   "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

/// The sorts of pods there are; the sort is also the label `app`.
fn pod(sort: usize) -> Value {
    let meant = |app: usize| json!({"matchLabels": {"app": app.to_string()}});
    let spec = match sort {
        0 => json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": meant(0), "topologyKey": "kubernetes.io/hostname"},
            {"labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["4", "5"]}]}, "topologyKey": ZONE}]}}}),
        1 => json!({"topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": meant(1)}]}),
        2 => {
            json!({"containers": [{"resources": {"requests": {"cpu": "300m"}}, "ports": [{"hostPort": 80, "protocol": "TCP"}]}]})
        }
        3 => {
            json!({"tolerations": [{"operator": "Exists"}], "containers": [{"resources": {"requests": {"cpu": "600m"}}}]})
        }
        _ => json!({}),
    };
    json!({"metadata": {"namespace": "d", "labels": {"app": sort.to_string()},
        "ownerReferences": [{"controller": true, "uid": format!("s{sort}")}]}, "spec": spec})
}

#[derive(Clone, Debug)]
enum Happens {
    Place(usize),
    Gone(usize),
    Node(usize, bool),
    NodeGone(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (0..6usize).prop_map(Happens::Place),
        2 => (0..30usize).prop_map(Happens::Gone),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, ready)| Happens::Node(n, ready)),
        1 => (0..4usize).prop_map(Happens::NodeGone),
    ]
}

/// All there is: the nodes, and for each pod its sort and node.
type All = (BTreeMap<usize, bool>, BTreeMap<usize, (usize, String)>);

fn of_scratch((nodes, pods): &All) -> World {
    let mut world = World::default();
    // The other way round than it came about.
    for (id, (sort, node)) in pods.iter().rev() {
        world.set_pod("d", &id.to_string(), Some(Placed::new(&Wanted::of(&pod(*sort)), node)));
    }
    for (n, ready) in nodes {
        world.set_node(&format!("n{n}"), Some(&node(*n, *ready)));
    }
    world
}

/// Whether a pod of that sort may be on that node, among all the others.
fn allowed((nodes, pods): &All, sort: usize, on: usize) -> bool {
    let zone = |name: &str| name[1..].parse::<usize>().unwrap() % 2;
    let name = format!("n{on}");
    let known = |name: &str| nodes.contains_key(&name[1..].parse().unwrap());
    let there = || pods.values().filter(|(_, node)| *node == name).map(|(sort, _)| *sort);
    let in_zone = |sort: usize, z: usize| {
        pods.values().filter(|(s, node)| *s == sort && known(node) && zone(node) == z).count()
    };
    let cpu = |sort: usize| [0, 0, 300, 600, 0, 0][sort];
    let tolerant = sort == 3;
    let (own, other) = (in_zone(1, on % 2), in_zone(1, 1 - on % 2));
    // Nodes whose taint nobody looks at here count too, as the default policy has it.
    let both_zones = nodes.keys().any(|n| n % 2 != on % 2);
    nodes.contains_key(&on)
        && (tolerant || (nodes[&on] && on != 3))
        && there().count() < 6
        && there().map(cpu).sum::<u64>() + cpu(sort) <= 1000
        && !(sort == 2 && there().any(|s| s == 2))
        && !(sort == 0 && there().any(|s| s == 0))
        && !(sort == 0 && in_zone(4, on % 2) + in_zone(5, on % 2) > 0)
        && !((sort == 4 || sort == 5) && in_zone(0, on % 2) > 0)
        && !(sort == 1 && both_zones && own + 1 > other.min(own) + 1)
}

proptest! {
    #[test]
    fn a_pod_goes_where_it_is_allowed_and_nowhere_only_if_it_is_allowed_nowhere(
        steps in prop::collection::vec(happens(), 1..60),
    ) {
        let mut all: All = ((0..4).map(|n| (n, true)).collect(), BTreeMap::new());
        let mut world = of_scratch(&all);
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Happens::Gone(id) => {
                    all.1.remove(&id);
                    world.set_pod("d", &id.to_string(), None);
                }
                Happens::Node(n, ready) => {
                    all.0.insert(n, ready);
                    world.set_node(&format!("n{n}"), Some(&node(n, ready)));
                }
                Happens::NodeGone(n) => {
                    all.0.remove(&n);
                    world.set_node(&format!("n{n}"), None);
                }
                Happens::Place(sort) => {
                    let wanted = Wanted::of(&pod(sort));
                    let went = place(&wanted, &world, &|_| Ok(()));
                    prop_assert_eq!(&went, &place(&wanted, &of_scratch(&all), &|_| Ok(())));
                    let free: Vec<usize> = (0..4).filter(|n| allowed(&all, sort, *n)).collect();
                    match went {
                        Ok(node) => {
                            prop_assert!(free.contains(&node[1..].parse().unwrap()), "{} not in {:?}", node, free);
                            // It returns to any of those that would take it.
                            for last in free {
                                let mut again = wanted.clone();
                                again.last_node = format!("n{last}");
                                prop_assert_eq!(place(&again, &world, &|_| Ok(())), Ok(format!("n{last}")));
                            }
                            world.set_pod("d", &id.to_string(), Some(Placed::new(&wanted, &node)));
                            all.1.insert(id, (sort, node));
                        }
                        Err(reasons) => {
                            prop_assert_eq!(free, Vec::<usize>::new(), "{}", reasons);
                            // Each node is counted once, but for what it is short of.
                            let counted: usize = reasons.by_node.values().sum();
                            prop_assert!(counted >= reasons.nodes);
                        }
                    }
                }
            }
        }
    }
}
