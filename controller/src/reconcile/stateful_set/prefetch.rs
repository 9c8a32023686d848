//! The gate before an update's deletions: a pod makes way only once its successor's images are on its host.
//!
//! A fetch is one task for one (pod, revision); nobody waits for it, its end puts the set back into the
//! queue. One that fails is tried again after a rest that doubles; one that is no longer asked for (the
//! template changed, the pod is gone) is cancelled. Nothing here outlives the process: a fetch that is
//! begun again finds what is there already.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::Value;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::SetKey;
use crate::clock::Clock;
use crate::reconcile::Images;
use crate::reconcile::queue::Queue;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(120);

/// What an update asks for.
pub struct Wanted {
    pub pod: String,
    /// Of the pod that is to make way.
    pub uid: String,
    pub node: String,
    pub revision: String,
    pub successor: Value,
}

/// Whether the pod may go.
#[derive(Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// The set is queued again when that has changed.
    Fetching,
    /// It is tried again after that time, if anybody asks then. `news`: this failure was not told before.
    Failed {
        why: String,
        again: Duration,
        news: bool,
    },
}

pub struct Prefetches {
    sets: Mutex<HashMap<SetKey, HashMap<String, Fetch>>>,
    clock: Clock,
}

struct Fetch {
    uid: String,
    revision: String,
    node: String,
    state: State,
    failures: u32,
}

enum State {
    Fetching { _task: Task },
    Done,
    Failed { why: String, retry_at: Instant, told: bool },
}

/// Ends with its handle.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Prefetches {
    pub fn new(clock: Clock) -> Prefetches {
        Prefetches { sets: Mutex::default(), clock }
    }

    /// Asks for a pod's successor's images, and says how far they are.
    pub fn ask(
        self: &Arc<Self>,
        images: &Arc<dyn Images>,
        queue: &Queue<SetKey>,
        set: &SetKey,
        wanted: Wanted,
        now: Instant,
    ) -> Gate {
        let mut failures = 0;
        {
            let mut sets = self.lock();
            let fetches = sets.entry(set.clone()).or_default();
            if let Some(fetch) = fetches.get_mut(&wanted.pod)
                && fetch.is(&wanted)
            {
                failures = fetch.failures;
                let gate = fetch.gate(now);
                if !matches!(&gate, Gate::Failed { again, .. } if again.is_zero()) {
                    return gate;
                }
            }
            // Whatever was fetched for this pod until now is not wanted any more.
            fetches.remove(&wanted.pod);
        }
        self.begin(&**images, queue, set, wanted, failures)
    }

    fn begin(
        self: &Arc<Self>,
        images: &dyn Images,
        queue: &Queue<SetKey>,
        set: &SetKey,
        wanted: Wanted,
        failures: u32,
    ) -> Gate {
        let Wanted { pod, uid, node, revision, successor } = wanted;
        let mut fetch = Fetch { uid, revision, node: node.clone(), state: State::Done, failures };
        let mut fetching = images.ensure(&node, &successor);
        // What is there already needs no second look at the set.
        if let Some(result) = (&mut fetching).now_or_never() {
            let now = self.clock.instant();
            fetch.end(result, now);
            let gate = fetch.gate(now);
            self.lock().entry(set.clone()).or_default().insert(pod, fetch);
            return gate;
        }
        let (fetches, queue, key, name) = (self.clone(), queue.clone(), set.clone(), pod.clone());
        let mut sets = self.lock();
        let task = tokio::spawn(async move {
            let result = fetching.await;
            // (This waits for the insertion below, whose lock is held. A task that was replaced is aborted.)
            let now = fetches.clock.instant();
            if let Some(fetch) = fetches.lock().get_mut(&key).and_then(|of_set| of_set.get_mut(&name)) {
                fetch.end(result, now);
            }
            queue.add(key);
        });
        fetch.state = State::Fetching { _task: Task(task.abort_handle()) };
        sets.entry(set.clone()).or_default().insert(pod, fetch);
        Gate::Fetching
    }

    /// The pods of a set whose successors' images could not be had, and why.
    pub fn failures(&self, set: &SetKey) -> BTreeMap<String, String> {
        let sets = self.lock();
        let fetches = sets.get(set).into_iter().flatten();
        let failed = fetches.filter_map(|(pod, fetch)| match &fetch.state {
            State::Failed { why, .. } => Some((pod.clone(), why.clone())),
            _ => None,
        });
        failed.collect()
    }

    /// Cancels and forgets what is asked for no more: every pod of the set but these.
    pub fn keep(&self, set: &SetKey, pods: &HashSet<String>) {
        let mut sets = self.lock();
        if let Some(fetches) = sets.get_mut(set) {
            fetches.retain(|pod, _| pods.contains(pod));
            if fetches.is_empty() {
                sets.remove(set);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SetKey, HashMap<String, Fetch>>> {
        // No code that could panic runs under this lock.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch {
    fn is(&self, wanted: &Wanted) -> bool {
        self.uid == wanted.uid && self.revision == wanted.revision && self.node == wanted.node
    }

    fn end(&mut self, result: Result<(), String>, now: Instant) {
        self.state = match result {
            Ok(()) => State::Done,
            Err(why) => {
                let rest = FIRST_RETRY.saturating_mul(2u32.saturating_pow(self.failures)).min(LAST_RETRY);
                self.failures = self.failures.saturating_add(1);
                State::Failed { why, retry_at: now + rest, told: false }
            }
        };
    }

    fn gate(&mut self, now: Instant) -> Gate {
        match &mut self.state {
            State::Fetching { .. } => Gate::Fetching,
            State::Done => Gate::Open,
            State::Failed { why, retry_at, told } => Gate::Failed {
                why: why.clone(),
                again: retry_at.saturating_duration_since(now),
                news: !std::mem::replace(told, true),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use tokio::sync::mpsc;

    use super::*;

    /// Each call is answered by what the test sends.
    struct Answers(Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Result<(), String>>>>);

    impl Images for Answers {
        fn ensure(&self, _: &str, _: &Value) -> BoxFuture<'static, Result<(), String>> {
            let answers = self.0.clone();
            Box::pin(async move { answers.lock().await.recv().await.unwrap_or(Err("cancelled".to_owned())) })
        }
    }

    struct Test {
        answers: mpsc::UnboundedSender<Result<(), String>>,
        images: Arc<dyn Images>,
        queue: Queue<SetKey>,
        prefetches: Arc<Prefetches>,
    }

    impl Test {
        fn new() -> Test {
            let (answers, receiver) = mpsc::unbounded_channel();
            let images: Arc<dyn Images> = Arc::new(Answers(Arc::new(receiver.into())));
            Test {
                answers,
                images,
                queue: Queue::new(),
                prefetches: Arc::new(Prefetches::new(Clock::default())),
            }
        }

        fn ask(&self, revision: &str) -> Gate {
            self.ask_in(revision, Duration::ZERO)
        }

        fn ask_in(&self, revision: &str, time: Duration) -> Gate {
            let wanted = Wanted {
                pod: "web-0".to_owned(),
                uid: "u".to_owned(),
                node: "a".to_owned(),
                revision: revision.to_owned(),
                successor: Value::Null,
            };
            self.prefetches.ask(&self.images, &self.queue, &set(), wanted, Instant::now() + time)
        }

        /// Until the task has ended.
        async fn settle(&self, revision: &str, time: Duration) -> Gate {
            loop {
                match self.ask_in(revision, time) {
                    Gate::Fetching => tokio::task::yield_now().await,
                    other => return other,
                }
            }
        }
    }

    fn set() -> SetKey {
        ("default".to_owned(), "web".to_owned())
    }

    #[tokio::test]
    async fn a_pod_may_go_once_its_successors_images_are_there() {
        let test = Test::new();
        assert_eq!(test.ask("b"), Gate::Fetching);
        tokio::task::yield_now().await;
        assert_eq!(test.ask("b"), Gate::Fetching);
        test.answers.send(Ok(())).unwrap();
        assert_eq!(test.settle("b", Duration::ZERO).await, Gate::Open);
        test.answers.send(Ok(())).unwrap();
        assert_eq!(test.ask("c"), Gate::Open, "what is there is seen at once");
    }

    #[tokio::test]
    async fn a_failed_fetch_is_tried_again_ever_later() {
        let test = Test::new();
        test.answers.send(Err("no such image".to_owned())).unwrap();
        let mut failed = test.settle("b", Duration::ZERO).await;
        for rest in [1, 2, 4].map(Duration::from_secs) {
            let Gate::Failed { why, again, news: true } = failed else { panic!("{failed:?}") };
            assert_eq!(why, "no such image");
            assert!(again <= rest && again > rest.mul_f32(0.9), "{again:?}");
            assert!(matches!(test.ask("b"), Gate::Failed { news: false, .. }), "not told twice");
            test.answers.send(Err("no such image".to_owned())).unwrap();
            failed = test.settle("b", rest).await;
        }
    }

    #[tokio::test]
    async fn another_revision_cancels_the_fetch_and_begins_anew() {
        let test = Test::new();
        assert_eq!(test.ask("b"), Gate::Fetching);
        tokio::task::yield_now().await;
        assert_eq!(test.ask("c"), Gate::Fetching);
        tokio::task::yield_now().await;
        test.answers.send(Ok(())).unwrap();
        assert_eq!(
            test.settle("c", Duration::ZERO).await,
            Gate::Open,
            "the answer went to the only one that still asks"
        );
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_cancelled() {
        let test = Test::new();
        assert_eq!(test.ask("b"), Gate::Fetching);
        test.prefetches.keep(&set(), &HashSet::new());
        tokio::task::yield_now().await;
        assert!(test.prefetches.lock().is_empty());
    }
}
