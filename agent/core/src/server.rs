//! Whether a file server answers, told by how requests to it end.

use crate::time::Time;

/// What is known of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Its last answer.
    answered: Option<Time>,
    /// Since when it has not answered.
    silent: Option<Time>,
}

/// Something to tell the users of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Silent {
        since: Time,
    },
    /// It answers again; it had not since.
    Back {
        since: Time,
    },
}

impl Server {
    /// A request got an answer, if only a refusal.
    pub fn answered(&mut self, now: Time) -> Option<Change> {
        self.answered = Some(self.answered.map_or(now, |before| before.max(now)));
        self.silent.take().map(|since| Change::Back { since })
    }

    /// A request that was made at `asked` got no answer in time.
    pub fn unanswered(&mut self, asked: Time) -> Option<Change> {
        // It answered another one in between.
        if self.silent.is_some() || self.answered.is_some_and(|answered| answered >= asked) {
            return None;
        }
        let since = self.answered.unwrap_or(asked);
        self.silent = Some(since);
        Some(Change::Silent { since })
    }

    /// Since when it has not answered.
    pub fn silent(&self) -> Option<Time> {
        self.silent
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn silence_counts_from_the_last_answer_and_is_told_once() {
        let mut server = Server::default();
        assert_eq!(server.answered(Time(10)), None);
        assert_eq!(server.unanswered(Time(20)), Some(Change::Silent { since: Time(10) }));
        assert_eq!(server.unanswered(Time(30)), None);
        assert_eq!(server.silent(), Some(Time(10)));
        assert_eq!(server.answered(Time(40)), Some(Change::Back { since: Time(10) }));
        assert_eq!(server.silent(), None);
    }

    #[test]
    fn one_that_never_answered_is_silent_since_it_was_asked() {
        let mut server = Server::default();
        assert_eq!(server.unanswered(Time(7)), Some(Change::Silent { since: Time(7) }));
    }

    #[test]
    fn an_old_request_says_nothing_about_a_server_that_has_answered_since() {
        let mut server = Server::default();
        server.answered(Time(50));
        assert_eq!(server.unanswered(Time(20)), None);
    }

    proptest! {
        /// What is told alternates, whatever happens.
        #[test]
        fn silence_and_return_take_turns(ends in prop::collection::vec(any::<bool>(), 0..40)) {
            let mut server = Server::default();
            let mut silent = false;
            for (at, answer) in ends.iter().enumerate() {
                let now = Time(i64::try_from(at).unwrap());
                match if *answer { server.answered(now) } else { server.unanswered(now) } {
                    Some(Change::Silent { .. }) => { prop_assert!(!silent); silent = true; }
                    Some(Change::Back { .. }) => { prop_assert!(silent); silent = false; }
                    None => {}
                }
                prop_assert_eq!(server.silent().is_some(), silent);
            }
        }
    }
}
