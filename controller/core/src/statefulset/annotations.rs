//! What annotations of a set ask for beyond Kubernetes' fields. Values are checked when the set is written.

use std::num::ParseIntError;

/// Seconds a pod of a new revision may take to be Ready.
pub const PROGRESS_DEADLINE: &str = "berth.dev/progress-deadline-seconds";
/// "true": a revision that misses the deadline is left again.
pub const AUTO_ROLLBACK: &str = "berth.dev/auto-rollback";
/// Ordinals that are left out: `1,3-5`.
pub const RESERVE_ORDINALS: &str = "berth.dev/reserve-ordinals";
/// Written by Berth: the revision that missed the deadline and was left.
pub const REJECTED_REVISION: &str = "berth.dev/rejected-revision";
/// Written by Berth on a ControllerRevision: all pods of its set were Ready at it once.
pub const WAS_READY: &str = "berth.dev/was-ready";

/// What a Deployment has, for sets that ask for the way back but not for a deadline.
pub const DEFAULT_DEADLINE: i64 = 600;

pub fn progress_deadline(text: &str) -> Result<i64, &'static str> {
    match text.parse() {
        Ok(seconds) if (1..=i64::from(i32::MAX)).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number of seconds greater than 0, such as \"600\""),
    }
}

pub fn auto_rollback(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "must be \"true\" or \"false\"")
}

/// Ranges of ordinals, ascending, both ends included, without overlaps.
pub fn reserved(text: &str) -> Result<Vec<(u32, u32)>, &'static str> {
    const WRONG: &str = "must be ordinals and ranges of them, separated by commas, such as \"1,3-5\"";
    let mut ranges = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let number = |text: &str| -> Result<u32, ParseIntError> { text.trim().parse() };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Ok(first), Ok(last)) if first <= last => ranges.push((first, last)),
            _ => return Err(WRONG),
        }
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ordinals_are_numbers_and_ranges() {
        assert_eq!(reserved("1,3-5"), Ok(vec![(1, 1), (3, 5)]));
        assert_eq!(reserved(" 4 , 0-2,1-3,"), Ok(vec![(0, 4)]));
        assert_eq!(reserved(""), Ok(vec![]));
        for wrong in ["x", "5-3", "-1", "1-", "1;2", "99999999999"] {
            assert!(reserved(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_deadline_is_a_positive_number_of_seconds() {
        assert_eq!(progress_deadline("30"), Ok(30));
        for wrong in ["0", "-1", "30s", "", "99999999999"] {
            assert!(progress_deadline(wrong).is_err(), "{wrong}");
        }
    }
}
