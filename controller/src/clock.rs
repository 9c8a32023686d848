//! What time it is, and waiting for a later one: handed to whoever needs it, so that a simulation decides.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

/// A source of time.
pub trait Time: Send + Sync {
    /// For people and objects.
    fn now(&self) -> Timestamp;
    /// For measuring: never goes back.
    fn instant(&self) -> Instant;
    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()>;
}

/// A handle on it; the default is the machine's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Time>);

impl Clock {
    pub fn new(time: Arc<dyn Time>) -> Clock {
        Clock(time)
    }

    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    pub fn instant(&self) -> Instant {
        self.0.instant()
    }

    pub async fn sleep_until(&self, at: Instant) {
        self.0.sleep_until(at).await;
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new(Arc::new(System))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

struct System;

impl Time for System {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(at))
    }
}
