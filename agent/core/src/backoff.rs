//! How long to wait after a failure.

use std::time::Duration;

use crate::time::Time;

/// A container that ended, or an image that could not be pulled: 10 s doubling to 5 min.
pub const FIRST: Duration = Duration::from_secs(10);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long starts afresh.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Restarts of one container. The first one is immediate, the next waits 10 s, then 20 s ...
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    last: Option<(Duration, Time)>,
}

impl Restarts {
    /// As remembered: the delay in force and when it was set.
    pub fn restore(last: Option<(Duration, Time)>) -> Self {
        Restarts { last }
    }

    /// What to remember.
    pub fn remembered(&self) -> Option<(Duration, Time)> {
        self.last
    }

    /// When a container that ended at `ended` may start again, and the delay until then.
    pub fn allowed(&self, ended: Time) -> (Time, Duration) {
        match self.last {
            Some((delay, set)) if ended.since(set) <= FORGOTTEN_AFTER => (ended + delay, delay),
            _ => (ended, Duration::ZERO),
        }
    }

    /// It is started again now.
    pub fn restarted(&mut self, ended: Time, now: Time) {
        let delay = match self.last {
            Some((delay, set)) if ended.since(set) <= FORGOTTEN_AFTER => (delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some((delay, now));
    }
}

/// Retries of something that fails: `first`, doubling to `longest`.
pub fn retry(first: Duration, longest: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: i64) -> Time {
        Time(n * 1000)
    }

    #[test]
    fn the_first_restart_is_immediate_then_ten_seconds_doubling_to_five_minutes() {
        let mut restarts = Restarts::default();
        let mut delays = Vec::new();
        let mut now = seconds(1000);
        for _ in 0..8 {
            let (at, delay) = restarts.allowed(now);
            delays.push(delay.as_secs());
            restarts.restarted(now, at);
            now = at + Duration::from_secs(1);
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_running_are_a_fresh_start() {
        let mut restarts = Restarts::default();
        restarts.restarted(seconds(0), seconds(0));
        restarts.restarted(seconds(1), seconds(11));
        assert_eq!(restarts.allowed(seconds(11 + 600)).1.as_secs(), 20);
        assert_eq!(restarts.allowed(seconds(11 + 601)).1.as_secs(), 0);
        restarts.restarted(seconds(11 + 601), seconds(11 + 601));
        assert_eq!(restarts.allowed(seconds(11 + 602)).1.as_secs(), 10);
    }

    #[test]
    fn retries_double_and_stay_bounded() {
        let wait = |n| retry(Duration::from_millis(500), Duration::from_secs(122), n).as_millis();
        assert_eq!([wait(1), wait(2), wait(3)], [500, 1000, 2000]);
        assert_eq!(wait(u32::MAX), 122_000);
    }
}
