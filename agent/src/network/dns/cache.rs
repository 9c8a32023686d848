//! Answers of others, for as long as they hold; bounded in number and bytes, the oldest goes first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use berth_agent_core::network::wire::{Answer, Name};
use tokio::time::Instant;

const ENTRIES: usize = 2048;
const BYTES: usize = 512 << 10;
/// Nothing is kept longer than this, whatever it says of itself.
const LONGEST: u32 = 300;
/// That there is none is soon asked again.
const LONGEST_NEGATIVE: u32 = 5;

/// A question as far as its answer depends on it: name in small letters, type, with DNSSEC or without.
pub(super) type Key = (Name, u16, bool);

#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    /// In the order they came; one that was replaced is still in here with its old number.
    order: VecDeque<(u64, Key)>,
    bytes: usize,
    next: u64,
}

struct Entry {
    number: u64,
    answer: Arc<Answer>,
    since: Instant,
    keep: Duration,
}

impl Cache {
    /// The answer and its age in seconds, while it holds.
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<(Arc<Answer>, u32)> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.since);
        if age >= entry.keep {
            self.remove(key);
            return None;
        }
        Some((entry.answer.clone(), u32::try_from(age.as_secs()).unwrap_or(u32::MAX)))
    }

    pub fn put(&mut self, key: Key, answer: Arc<Answer>, positive: bool, now: Instant) {
        let keep = answer.keep.min(if positive { LONGEST } else { LONGEST_NEGATIVE });
        if keep == 0 {
            return;
        }
        self.remove(&key);
        self.next += 1;
        self.bytes += size(&answer);
        self.order.push_back((self.next, key.clone()));
        let keep = Duration::from_secs(keep.into());
        self.entries.insert(key, Entry { number: self.next, answer, since: now, keep });
        while self.entries.len() > ENTRIES || self.bytes > BYTES || self.order.len() > 2 * ENTRIES {
            let Some((number, key)) = self.order.pop_front() else { return };
            if self.entries.get(&key).is_some_and(|entry| entry.number == number) {
                self.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= size(&entry.answer);
        }
    }
}

/// With what keeping it costs besides.
fn size(answer: &Answer) -> usize {
    answer.size() + 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_agent_core::network::wire::{Data, Query, Record, Reply, kind};

    fn answer(name: &str, ttl: u32, records: u8) -> (Key, Arc<Answer>) {
        let query = Query::new(1, Name::of(name).unwrap(), kind::A);
        let record = |n| Record { name: query.name.clone(), ttl, data: Data::Address([192, 0, 2, n].into()) };
        let reply = Reply { answers: (0..records).map(record).collect(), ..Reply::default() };
        let answer = Answer::read(query.reply(&reply, 65535), &query, 1).unwrap();
        ((query.name, kind::A, false), Arc::new(answer))
    }

    #[test]
    fn an_answer_is_kept_as_long_as_it_says() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let (key, ten) = answer("a", 10, 1);
        cache.put(key.clone(), ten, true, now);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(cache.get(&key, after(4)).unwrap().1, 4);
        assert!(cache.get(&key, after(10)).is_none());
        let (key, zero) = answer("b", 0, 1);
        cache.put(key.clone(), zero, true, now);
        assert!(cache.get(&key, now).is_none());
        let (key, none) = answer("c", 600, 1);
        cache.put(key.clone(), none, false, now);
        assert!(cache.get(&key, after(4)).is_some() && cache.get(&key, after(5)).is_none());
        assert_eq!((cache.entries.len(), cache.bytes), (0, 0));
    }

    #[test]
    fn it_does_not_grow_beyond_its_bounds() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for n in 0..3000 {
            let (key, answer) = answer(&format!("n{}", n % 2500), 60, (n % 250) as u8);
            cache.put(key, answer, true, now);
            assert!(
                cache.entries.len() <= ENTRIES && cache.bytes <= BYTES && cache.order.len() <= 2 * ENTRIES
            );
        }
        let (last, answer) = answer("n499", 60, 1);
        cache.put(last.clone(), answer, true, now);
        assert!(cache.get(&last, now).is_some(), "what came last is there");
        assert_eq!(cache.bytes, cache.entries.values().map(|entry| size(&entry.answer)).sum::<usize>());
    }
}
