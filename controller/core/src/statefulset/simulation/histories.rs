//! Random histories: pods that fail, images that are missing, people who change their minds or delete things,
//! interruptions anywhere. Each plan on the way is judged by the [`oracle`].

use super::oracle::View;
use super::*;

fn step() -> impl Strategy<Value = Step> {
    let number = 0..8usize;
    let asked = |values: &'static [Option<&'static str>]| prop::sample::select(values);
    let deadline = asked(&[None, Some("30"), Some("60")]);
    let back = asked(&[None, Some("true"), Some("false")]);
    let reserved = asked(&[None, Some("1"), Some("0,2-3"), Some("4,1-2")]);
    prop_oneof![
        12 => prop::option::weighted(0.3, 0..4usize).prop_map(Step::Reconcile),
        1 => Just(Step::Collect),
        6 => number.clone().prop_map(Step::Runs),
        6 => number.clone().prop_map(Step::Ready),
        2 => number.clone().prop_map(Step::LosesReadiness),
        2 => number.clone().prop_map(Step::Crashes),
        2 => number.clone().prop_map(Step::Ends),
        6 => number.clone().prop_map(Step::Gone),
        2 => number.clone().prop_map(Step::PersonDeletesPod),
        2 => number.clone().prop_map(Step::PersonDeletesClaim),
        2 => number.prop_map(Step::PersonRelabels),
        1 => Just(Step::PersonDeletesSet),
        1 => Just(Step::PersonOrphansPods),
        2 => (0..6u32).prop_map(Step::Scale),
        5 => (0..6u8).prop_map(Step::Template),
        2 => (0..3u32).prop_map(Step::Start),
        2 => (0..4u32).prop_map(Step::Partition),
        2 => max_unavailable().prop_map(Step::MaxUnavailable),
        1 => Just(Step::OnDelete),
        2 => any::<(bool, bool)>().prop_map(|(deleted, scaled)| Step::Retention(deleted, scaled)),
        1 => (0..3u32).prop_map(Step::HistoryLimit),
        2 => deadline.prop_map(|v| Step::Asks(annotations::PROGRESS_DEADLINE, v)),
        2 => back.prop_map(|v| Step::Asks(annotations::AUTO_ROLLBACK, v)),
        2 => reserved.prop_map(|v| Step::Asks(annotations::RESERVE_ORDINALS, v)),
        1 => Just(Step::Collision),
        2 => any::<bool>().prop_map(Step::Images),
        3 => prop_oneof![0..20i64, 20..80i64].prop_map(Step::Passes),
    ]
}

/// A template that no history has tried.
const GOOD: u8 = 9;

/// Half as many histories for each pod management policy as PROPTEST_CASES says, if it says so.
fn config() -> ProptestConfig {
    let cases =
        if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases / 2 } else { 400 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// minReadySeconds, replicas, maxUnavailable, and what else the set asks for.
#[derive(Clone, Debug)]
struct Start(i64, u32, Value, Option<&'static str>, Option<&'static str>, bool);

fn start() -> impl Strategy<Value = Start> {
    let min_ready = prop_oneof![Just(0), Just(10)];
    let deadline = prop::sample::select(&[None, Some("30")][..]);
    let back = prop::sample::select(&[None, Some("true")][..]);
    (min_ready, 0..6u32, max_unavailable(), deadline, back, any::<bool>()).prop_map(
        |(min_ready, replicas, at_once, deadline, back, settled)| {
            Start(min_ready, replicas, at_once, deadline, back, settled)
        },
    )
}

fn max_unavailable() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![json!(1), json!(2), json!(3), json!("40%")])
}

impl Start {
    fn world(self, parallel: bool) -> World {
        let Start(min_ready, replicas, at_once, deadline, back, settled) = self;
        let mut world = World::new(parallel, min_ready, replicas);
        world.take(&Step::MaxUnavailable(at_once));
        world.take(&Step::Asks(annotations::PROGRESS_DEADLINE, deadline));
        world.take(&Step::Asks(annotations::AUTO_ROLLBACK, back));
        if settled {
            settles(&mut world);
        }
        world
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..80)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_history_of_an_ordered_set_keeps_the_rules_and_ends_as_specified(start in start(), steps in steps()) {
        history(start.world(false), &steps);
    }

    #[test]
    fn every_history_of_a_parallel_set_keeps_the_rules_and_ends_as_specified(start in start(), steps in steps()) {
        history(start.world(true), &steps);
    }
}

/// Whatever happens on the way: never two pods of one ordinal, order kept, nothing left undone that may be done, and the
/// status right at every step; at rest only where the specification says so; and in the end exactly what was asked for.
fn history(mut world: World, steps: &[Step]) {
    for step in steps {
        world.take(step);
    }
    settles(&mut world);
    // Whatever was broken on the way, a good template heals it, and nobody deletes a pod.
    world.take(&Step::Partition(0));
    for good in [GOOD, GOOD + 1] {
        world.template(good);
        settles(&mut world);
        is_as_wanted(&world, good);
    }
    // So does the one before, and that is a revision that is there.
    let before = world.revisions.len();
    world.template(GOOD);
    settles(&mut world);
    is_as_wanted(&world, GOOD);
    assert!(world.revisions.len() <= before);
}

/// All pods there are to be, and no others, of this template and available.
fn is_as_wanted(world: &World, template: u8) {
    assert!(world.images().iter().all(|i| *i == format!("v{template}")), "{:?}", world.images());
    let ordinals = Set::read(&world.set).ordinals;
    let wanted: Vec<String> = ordinals.iter().map(|o| pod_name("web", o)).collect();
    assert_eq!(world.names(), wanted);
    let status = &world.set["status"];
    assert_eq!(status["availableReplicas"], ordinals.replicas);
    assert_eq!(status["currentRevision"], status["updateRevision"]);
}

/// Comes to rest, for a reason; and another look changes nothing.
fn settles(world: &mut World) {
    world.settle();
    let plan = world.plan();
    assert!(plan.actions.is_empty(), "{:?}", plan.actions);
    assert_eq!(plan.status, world.set["status"]);
    View::of(world, &plan).rests_for_a_reason();
}
