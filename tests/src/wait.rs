//! Waiting for conditions, never for time: every wait has a deadline and says what it waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` until it answers Some, for at most `limit`. The pauses are short and only bound how
/// often the machine is asked; an error from `condition` ends the wait.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for: {what}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// As [`until`] for a plain yes.
pub fn until_true(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, limit, || Ok(condition()?.then_some(())))
}
