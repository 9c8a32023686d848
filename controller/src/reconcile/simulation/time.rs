//! Time that passes when the simulation says so, and chance that is the same for the same seed.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::clock::Time;

#[derive(Clone)]
pub struct SimulatedTime(Arc<Mutex<State>>);

struct State {
    began: Instant,
    passed: Duration,
    sleepers: Vec<(Instant, Waker)>,
}

impl SimulatedTime {
    pub fn new() -> SimulatedTime {
        let state = State { began: Instant::now(), passed: Duration::ZERO, sleepers: Vec::new() };
        SimulatedTime(Arc::new(Mutex::new(state)))
    }

    pub fn pass(&self, time: Duration) {
        let mut state = self.0.lock().unwrap();
        state.passed += time;
        // Everybody looks at the clock; who has to wait longer says so again.
        state.sleepers.drain(..).for_each(|(_, waker)| waker.wake());
    }

    /// How long until the first sleeper's time has come.
    pub fn until_next(&self) -> Option<Duration> {
        let state = self.0.lock().unwrap();
        let first = state.sleepers.iter().map(|(at, _)| *at).min()?;
        Some(first.saturating_duration_since(state.began + state.passed))
    }
}

impl Time for SimulatedTime {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + self.0.lock().unwrap().passed
    }

    fn instant(&self) -> Instant {
        let state = self.0.lock().unwrap();
        state.began + state.passed
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        Box::pin(Sleep { time: self.clone(), at })
    }
}

struct Sleep {
    time: SimulatedTime,
    at: Instant,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.time.instant() >= self.at {
            return Poll::Ready(());
        }
        self.time.0.lock().unwrap().sleepers.push((self.at, cx.waker().clone()));
        Poll::Pending
    }
}

/// SplitMix64.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Whether it happens, in so many of a hundred cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
