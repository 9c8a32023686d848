//! The driver's clock.

use berth_agent_core::Time;
use tokio::time::Instant;

/// Wall-clock time that does not jump while the agent lives: a correction of the machine's clock must neither
/// fire nor hold up what waits.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Time,
    from: Instant,
}

impl Clock {
    /// From now on.
    pub fn start() -> Clock {
        Clock { wall: Time(jiff::Timestamp::now().as_millisecond()), from: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Time {
        self.wall + self.from.elapsed()
    }

    /// When that will be; in the past: now.
    pub fn instant(&self, at: Time) -> Instant {
        self.from + at.since(self.wall)
    }
}
