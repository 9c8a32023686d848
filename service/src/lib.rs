//! Being a good service, for both daemons alike: the configuration file, logs for a terminal or for journald, the word
//! to systemd, signals.
//!
//! It must never keep a daemon from starting: where no service manager listens, nothing is said.

pub mod check;
pub mod config;

use std::convert::Infallible;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::process::Stdio;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging to standard error, as `RUST_LOG` says (`info` if it says nothing).
pub fn init_logging() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing_subscriber::filter::LevelFilter::INFO.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Both fail only if logging was started already, and then it goes on as it is.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.event_format(Journal(Format::default().without_time().with_ansi(false))).try_init()
    } else {
        builder.with_ansi(io::stderr().is_terminal()).try_init()
    };
}

/// journald has the time itself, and takes the level from a number in front of the line.
struct Journal(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// The service manager hears that everything works; from here on, also that it still does, if it wants to
/// ([`watchdog`]).
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The service manager hears that the configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the monotonic clock"),
    }
}

/// The service manager hears that the end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The service manager hears that this end takes up to so long.
pub fn takes(time: Duration) {
    let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Whether the whole host is being shut down, and not only this service stopped. Asked when the service is to end.
pub async fn host_stops() -> bool {
    // Somebody who runs the daemon by hand means the daemon.
    if std::env::var_os("INVOCATION_ID").is_none() {
        return false;
    }
    let mut command = tokio::process::Command::new("systemctl");
    command.arg("is-system-running").stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(Duration::from_secs(10), command.output()).await {
        Ok(Ok(output)) => output.stdout.trim_ascii() == b"stopping",
        Ok(Err(error)) => {
            tracing::warn!(%error, "systemctl is-system-running");
            false
        }
        Err(_) => {
            tracing::warn!("systemctl is-system-running does not answer");
            false
        }
    }
}

fn tell(what: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, ?what, "the service manager could not be told");
    }
}

/// Says twice in each interval that the runtime's tasks get their turn, and whatever `others` asks answers too, if the
/// service manager asks for that (WatchdogSec=); for ever.
pub async fn watchdog(others: impl AsyncFn()) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut beat = tokio::time::interval((interval / 2).max(Duration::from_millis(100)));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        others().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// What a person or the service manager wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To end; the signal's name.
    End(&'static str),
    /// To read the configuration again.
    Reload,
}

/// The signals a daemon understands. From the moment this exists they no longer kill it.
pub struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves when the next has come. Cancel-safe.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.term.recv() => Wish::End("SIGTERM"),
            _ = self.interrupt.recv() => Wish::End("SIGINT"),
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}
