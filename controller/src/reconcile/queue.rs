//! The work-queue under every loop: keys in, one handler out.
//!
//! ```text
//!            add            a worker is free           handler ends
//!   absent ───────▶ queued ─────────────────▶ running ─────────────▶ absent, or (added meanwhile) queued
//!     ▲  add_at, failure    │                    │
//!     └──── delayed ◀───────┴────────────────────┘  until the time has come, or until it is added
//! ```
//! A key is in at most one of these places, never runs twice at once, and what was added while it ran runs
//! again: nothing is lost and nothing piles up. A key that fails is tried again after 5 ms, doubling up to a
//! minute; success forgets its failures.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::Clock;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What the handler of a key says.
pub type Outcome = Result<Next, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Only an event makes this key worth another look.
    Event,
    /// So does time.
    After(Duration),
}

/// A handle on a queue. Clones share it.
#[derive(Debug)]
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
    clock: Clock,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Queue<K> {
        Queue { shared: self.shared.clone(), clock: self.clock.clone() }
    }
}

#[derive(Debug)]
struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<K> {
    queued: VecDeque<K>,
    queued_set: HashSet<K>,
    running: HashSet<K>,
    /// Added while running.
    again: HashSet<K>,
    delays: BTreeSet<(Instant, u64)>,
    delayed: HashMap<u64, K>,
    delay_of: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    next_delay: u64,
}

impl<K: Clone + Eq + Hash + Debug + Send + 'static> Default for Queue<K> {
    fn default() -> Self {
        Queue::new()
    }
}

impl<K: Clone + Eq + Hash + Debug + Send + 'static> Queue<K> {
    pub fn new() -> Queue<K> {
        Queue::timed(Clock::default())
    }

    /// One whose delays are those of this clock.
    pub fn timed(clock: Clock) -> Queue<K> {
        let state = State {
            queued: VecDeque::new(),
            queued_set: HashSet::new(),
            running: HashSet::new(),
            again: HashSet::new(),
            delays: BTreeSet::new(),
            delayed: HashMap::new(),
            delay_of: HashMap::new(),
            failures: HashMap::new(),
            next_delay: 0,
        };
        Queue { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }), clock }
    }

    /// This key is worth a look now.
    pub fn add(&self, key: K) {
        self.state().add(key);
        self.shared.changed.notify_one();
    }

    /// This key is worth a look after that time, unless it gets one earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.state().delay(key, self.clock.instant() + delay);
        self.shared.changed.notify_one();
    }

    /// Runs the handler for every key that is due, at most `workers` at once, for ever.
    pub async fn run<F, H>(self, name: &'static str, workers: usize, handler: H)
    where
        H: Fn(K) -> F,
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut running: JoinSet<Outcome> = JoinSet::new();
        let mut keys: HashMap<tokio::task::Id, K> = HashMap::new();
        loop {
            let wake = self.state().due(self.clock.instant());
            while running.len() < workers {
                let Some(key) = self.state().take() else { break };
                let id = running.spawn(handler(key.clone())).id();
                keys.insert(id, key);
            }
            // (Biased: nothing here is left to chance, so that a simulated run can be repeated.)
            tokio::select! {
                biased;
                Some(ended) = running.join_next_with_id() => {
                    let (id, outcome) = match ended {
                        Ok((id, outcome)) => (id, outcome),
                        Err(error) => (error.id(), Err(error.into())),
                    };
                    if let Some(key) = keys.remove(&id) {
                        self.ended(name, key, outcome);
                    }
                }
                () = self.shared.changed.notified() => {}
                () = async {
                    match wake {
                        Some(at) => self.clock.sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    fn ended(&self, name: &'static str, key: K, outcome: Outcome) {
        let mut state = self.state();
        let again = state.ended(&key);
        match outcome {
            Ok(next) => {
                state.failures.remove(&key);
                if let Next::After(delay) = next
                    && !again
                {
                    state.delay(key, self.clock.instant() + delay);
                }
            }
            Err(error) => {
                let failures = state.failures.entry(key.clone()).or_default();
                let delay = back_off(*failures);
                *failures = failures.saturating_add(1);
                // A conflict or two is how loops that share an object get along.
                if *failures > 3 {
                    tracing::warn!(queue = name, ?key, %error, ?delay, "failed; trying again");
                } else {
                    tracing::debug!(queue = name, ?key, %error, ?delay, "failed; trying again");
                }
                if !again {
                    state.delay(key, self.clock.instant() + delay);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // No code that could panic runs under this lock.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a key rests after failing again, having failed so many times in a row before.
fn back_off(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2u32.saturating_pow(failures)).min(LAST_RETRY)
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.queued_set.insert(key.clone()) {
            self.undelay(&key);
            self.queued.push_back(key);
        }
    }

    fn delay(&mut self, key: K, at: Instant) {
        if self.queued_set.contains(&key) || self.delay_of.get(&key).is_some_and(|(held, _)| *held <= at) {
            return;
        }
        self.undelay(&key);
        let place = (at, self.next_delay);
        self.next_delay += 1;
        self.delays.insert(place);
        self.delayed.insert(place.1, key.clone());
        self.delay_of.insert(key, place);
    }

    fn undelay(&mut self, key: &K) {
        if let Some(place) = self.delay_of.remove(key) {
            self.delays.remove(&place);
            self.delayed.remove(&place.1);
        }
    }

    /// Queues what has become due; when the next will.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&(at, id)) = self.delays.first() {
            if at > now {
                return Some(at);
            }
            match self.delayed.get(&id).cloned() {
                Some(key) => {
                    self.undelay(&key);
                    self.add(key);
                }
                None => {
                    self.delays.pop_first();
                }
            }
        }
        None
    }

    fn take(&mut self) -> Option<K> {
        let key = self.queued.pop_front()?;
        self.queued_set.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    /// Whether it is queued again.
    fn ended(&mut self, key: &K) -> bool {
        self.running.remove(key);
        let again = self.again.remove(key);
        if again {
            self.add(key.clone());
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::{Semaphore, mpsc};

    fn started(state: &mut State<u8>, now: Instant) -> Vec<u8> {
        state.due(now);
        std::iter::from_fn(|| state.take()).collect()
    }

    #[tokio::test]
    async fn a_key_never_runs_twice_at_once_and_what_is_added_meanwhile_runs_again() {
        let queue: Queue<u8> = Queue::new();
        let (ran, mut runs) = mpsc::unbounded_channel();
        let at_once = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let held = gate.clone();
        tokio::spawn(queue.clone().run("test", 8, move |key| {
            let (ran, at_once, gate) = (ran.clone(), at_once.clone(), held.clone());
            async move {
                assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0);
                ran.send(key)?;
                gate.acquire().await?.forget();
                at_once.fetch_sub(1, Ordering::SeqCst);
                Ok(Next::Event)
            }
        }));
        queue.add(1);
        assert_eq!(runs.recv().await, Some(1));
        for _ in 0..10 {
            queue.add(1);
        }
        gate.add_permits(1);
        assert_eq!(runs.recv().await, Some(1), "runs again");
        gate.add_permits(1);
        queue.add(2);
        assert_eq!(runs.recv().await, Some(2), "but only once");
    }

    #[test]
    fn a_failing_key_is_tried_again_ever_later_but_at_least_once_a_minute() {
        let delays: Vec<Duration> = (0..40).map(back_off).collect();
        assert_eq!(delays[..3], [5, 10, 20].map(Duration::from_millis));
        assert!(delays.windows(2).all(|d| d[0] <= d[1]));
        assert_eq!((delays[20], back_off(u32::MAX)), (LAST_RETRY, LAST_RETRY));
    }

    #[tokio::test]
    async fn a_handler_that_fails_or_panics_is_asked_again() {
        let queue: Queue<u8> = Queue::new();
        let (ran, mut runs) = mpsc::unbounded_channel();
        let calls = Arc::new(AtomicUsize::new(0));
        tokio::spawn(queue.clone().run("test", 1, move |_| {
            let (ran, call) = (ran.clone(), calls.fetch_add(1, Ordering::SeqCst));
            async move {
                ran.send(call)?;
                assert_ne!(call, 0, "a panic on purpose");
                if call == 1 { Err("no".into()) } else { Ok(Next::Event) }
            }
        }));
        queue.add(1);
        for call in 0..3 {
            assert_eq!(runs.recv().await, Some(call));
        }
    }

    #[test]
    fn time_wakes_a_key_once_at_the_earliest_time_asked() {
        let queue: Queue<u8> = Queue::new();
        let (mut state, now) = (queue.state(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        for seconds in [20, 10, 30] {
            state.delay(1, after(seconds));
        }
        assert_eq!(state.due(after(9)), Some(after(10)));
        assert_eq!(started(&mut state, after(10)), [1]);
        assert!(!state.ended(&1));
        assert_eq!(state.due(after(60)), None);
        assert_eq!(started(&mut state, after(60)), [0u8; 0]);
    }

    #[test]
    fn an_event_takes_the_place_of_the_time() {
        let queue: Queue<u8> = Queue::new();
        let (mut state, now) = (queue.state(), Instant::now());
        state.delay(1, now + Duration::from_secs(30));
        state.add(1);
        assert_eq!(started(&mut state, now), [1]);
        state.ended(&1);
        assert_eq!(state.due(now + Duration::from_secs(60)), None);
    }
}
