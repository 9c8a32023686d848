//! Probes as state machines: when to ask next, and what the answers amount to.
//!
//! Thresholds count as Kubernetes counts them, once a period. What is added: a container that has just
//! started is asked after 50 ms and then at doubling intervals, so that it counts as ready when it is and
//! not up to a period later. Failures between the periods do not count against it.

use std::time::Duration;

use berth_proto::Probe as Spec;

use crate::step::Probed;
use crate::time::Time;

/// The first question to a starting container comes this long after its start (or initial delay).
pub const FIRST: Duration = Duration::from_millis(50);

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As in `Liveness probe failed: ...`.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// One probe of one instance of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    kind: Kind,
    period: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    /// The verdict; none before the first.
    verdict: Option<bool>,
    last: Option<bool>,
    run: u32,
    next: Time,
    /// The next failure that counts is not before this.
    counts: Time,
    /// The interval of the quick questions at the start.
    quick: Option<Duration>,
    asking: bool,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// It is worth an event: a failure that counted, or a probe that could not be made.
    pub told: bool,
    /// The verdict is now a different one.
    pub changed: bool,
}

impl Probe {
    /// For a container running since `started`; a readiness or liveness probe held back by a startup probe
    /// begins at `from`. `verdict` is what was known before the agent itself restarted.
    pub fn new(kind: Kind, spec: &Spec, started: Time, from: Time, verdict: Option<bool>) -> Self {
        let period = Duration::from_secs(spec.period_seconds.max(1).into());
        let delay = Duration::from_secs(spec.initial_delay_seconds.into());
        let begin = (started + delay).max(from);
        let (next, quick) = match kind {
            // A container that is not given time to begin is not asked whether it still lives.
            Kind::Liveness if delay.is_zero() || from > started => (begin + period, None),
            Kind::Liveness => (begin, None),
            _ if from > started => (begin, Some(FIRST)),
            _ => (begin + FIRST.min(period), Some(FIRST)),
        };
        let counts = if quick.is_some() { begin + period } else { next };
        Probe {
            kind,
            period,
            success_threshold: spec.success_threshold.max(1),
            failure_threshold: spec.failure_threshold.max(1),
            verdict,
            last: verdict,
            run: if verdict.is_some() { 1 } else { 0 },
            next,
            counts,
            quick,
            asking: false,
        }
    }

    /// The verdict so far.
    pub fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// When to ask next; none while an answer is awaited.
    pub fn due(&self) -> Option<Time> {
        (!self.asking).then_some(self.next)
    }

    /// It is asked now.
    pub fn ask(&mut self) {
        self.asking = true;
    }

    /// The answer has come.
    pub fn answer(&mut self, answer: &Probed, now: Time) -> Answer {
        self.asking = false;
        let success = match answer {
            Probed::Success => Some(true),
            Probed::Failure(_) => Some(false),
            Probed::Error(_) => None,
        };
        if success == Some(true) {
            self.quick = None;
        }
        let on_time = now >= self.counts;
        let told = on_time && success != Some(true);
        if on_time || success == Some(true) {
            self.counts = now + self.period;
        }
        self.next = match self.quick {
            Some(quick) => {
                let doubled = (quick * 2).min(self.period);
                self.quick = Some(doubled);
                (now + quick.min(self.period)).min(self.counts)
            }
            None => now + self.period,
        };
        let Some(success) = success else { return Answer { told, changed: false } };
        if !success && !on_time {
            // A quick question: the container is merely not there yet. It ends no run of successes either,
            // for there has been none.
            return Answer { told: false, changed: false };
        }
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        let before = self.verdict;
        if self.run >= threshold {
            self.verdict = Some(success);
        }
        Answer { told, changed: before != self.verdict }
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(delay: u32, period: u32, success: u32, failure: u32) -> Spec {
        Spec {
            initial_delay_seconds: delay,
            period_seconds: period,
            success_threshold: success,
            failure_threshold: failure,
            ..Spec::default()
        }
    }

    fn asked(probe: &mut Probe) -> Time {
        let at = probe.due().unwrap();
        probe.ask();
        assert_eq!(probe.due(), None, "one question at a time");
        at
    }

    fn fail() -> Probed {
        Probed::Failure("no".into())
    }

    #[test]
    fn a_starting_container_is_asked_after_50_ms_and_then_at_doubling_intervals_up_to_the_period() {
        let mut probe = Probe::new(Kind::Readiness, &spec(0, 1, 1, 3), Time(0), Time(0), None);
        let mut times = Vec::new();
        for _ in 0..8 {
            let at = asked(&mut probe);
            times.push(at.0);
            probe.answer(&fail(), at);
        }
        assert_eq!(times, [50, 100, 200, 400, 800, 1000, 2000, 3000]);
    }

    #[test]
    fn the_initial_delay_is_honoured() {
        let probe = Probe::new(Kind::Readiness, &spec(5, 10, 1, 3), Time(0), Time(0), None);
        assert_eq!(probe.due(), Some(Time(5_050)));
        let probe = Probe::new(Kind::Liveness, &spec(5, 10, 1, 3), Time(0), Time(0), None);
        assert_eq!(probe.due(), Some(Time(5_000)));
    }

    #[test]
    fn the_first_success_makes_it_ready_and_ends_the_quick_questions() {
        let mut probe = Probe::new(Kind::Readiness, &spec(0, 10, 1, 3), Time(0), Time(0), None);
        let at = asked(&mut probe);
        assert!(probe.answer(&Probed::Success, at).changed);
        assert_eq!(probe.verdict(), Some(true));
        assert_eq!(probe.due(), Some(Time(10_050)));
    }

    #[test]
    fn quick_failures_do_not_use_up_the_startup_budget() {
        let mut probe = Probe::new(Kind::Startup, &spec(0, 10, 1, 3), Time(0), Time(0), None);
        let mut at = Time(0);
        while probe.verdict().is_none() {
            at = asked(&mut probe);
            probe.answer(&fail(), at);
        }
        assert_eq!(at, Time(30_000), "failureThreshold times periodSeconds, as in Kubernetes");
    }

    #[test]
    fn a_ready_container_becomes_unready_only_after_the_failure_threshold() {
        let mut probe = Probe::new(Kind::Readiness, &spec(0, 2, 1, 3), Time(0), Time(0), None);
        let at = asked(&mut probe);
        probe.answer(&Probed::Success, at);
        for expected in [Some(true), Some(true), Some(false)] {
            let at = asked(&mut probe);
            assert!(probe.answer(&fail(), at).told);
            assert_eq!(probe.verdict(), expected);
        }
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let mut probe = Probe::new(Kind::Liveness, &spec(0, 1, 1, 2), Time(0), Time(0), None);
        for answer in [fail(), Probed::Success, fail(), Probed::Success, fail()] {
            let at = asked(&mut probe);
            probe.answer(&answer, at);
        }
        assert_eq!(probe.verdict(), Some(true));
    }

    #[test]
    fn a_probe_that_cannot_be_made_counts_neither_way() {
        let mut probe = Probe::new(Kind::Liveness, &spec(0, 1, 1, 1), Time(0), Time(0), None);
        for _ in 0..10 {
            let at = asked(&mut probe);
            assert!(probe.answer(&Probed::Error("no such file".into()), at).told);
        }
        assert_eq!(probe.verdict(), None);
    }

    #[test]
    fn several_successes_are_counted_once_a_period() {
        let mut probe = Probe::new(Kind::Readiness, &spec(0, 3, 2, 3), Time(0), Time(0), None);
        let first = asked(&mut probe);
        probe.answer(&Probed::Success, first);
        assert_eq!(probe.verdict(), None);
        let second = asked(&mut probe);
        assert_eq!(second, first + Duration::from_secs(3));
        probe.answer(&Probed::Success, second);
        assert_eq!(probe.verdict(), Some(true));
    }

    proptest! {
        #[test]
        fn questions_move_on_in_time_and_never_come_in_a_burst(
            kind in prop_oneof![Just(Kind::Startup), Just(Kind::Liveness), Just(Kind::Readiness)],
            delay in 0u32..20, period in 0u32..20, success in 0u32..4, failure in 0u32..5,
            answers in prop::collection::vec((0u8..3, 0u64..3000), 1..60),
        ) {
            let spec = spec(delay, period, success, failure);
            let mut probe = Probe::new(kind, &spec, Time(0), Time(0), None);
            let mut now = Time(0);
            for (answer, took) in answers {
                let at = asked(&mut probe);
                prop_assert!(at >= Time(i64::from(delay) * 1000), "not before the initial delay");
                now = now.max(at) + Duration::from_millis(took);
                let answer = [Probed::Success, fail(), Probed::Error(String::new())][usize::from(answer)].clone();
                probe.answer(&answer, now);
                let next = probe.due().unwrap();
                prop_assert!(next > now, "never at once again");
                prop_assert!(next <= now + Duration::from_secs(period.max(1).into()));
            }
        }

        #[test]
        fn a_verdict_of_failure_needs_threshold_failures_a_period_apart(
            period in 1u32..10, failure in 1u32..5,
            answers in prop::collection::vec(any::<bool>(), 1..60),
        ) {
            let mut probe = Probe::new(Kind::Readiness, &spec(0, period, 1, failure), Time(0), Time(0), None);
            let mut counted: Vec<Time> = Vec::new();
            for success in answers {
                let at = asked(&mut probe);
                let answer = probe.answer(&if success { Probed::Success } else { fail() }, at);
                if success { counted.clear() } else if answer.told { counted.push(at) }
                if probe.verdict() == Some(false) {
                    let last = &counted[counted.len() - failure as usize..];
                    for pair in last.windows(2) {
                        prop_assert!(pair[1].since(pair[0]) >= Duration::from_secs(period.into()));
                    }
                }
            }
        }
    }
}
