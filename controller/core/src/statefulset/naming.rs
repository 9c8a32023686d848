//! Ordinals, and the names that follow from them.

/// `web` and 3 make `web-3`.
pub fn pod_name(set: &str, ordinal: u32) -> String {
    format!("{set}-{ordinal}")
}

/// The claim of one template for one ordinal: `data-web-3`.
pub fn claim_name(template: &str, set: &str, ordinal: u32) -> String {
    format!("{template}-{set}-{ordinal}")
}

/// The set and ordinal a pod's name (or the end of a claim's) speaks of; None for any other name. `web-03`
/// is nobody's: the name made from its ordinal would be another.
pub fn parent_and_ordinal(name: &str) -> Option<(&str, u32)> {
    let (parent, digits) = name.rsplit_once('-')?;
    if parent.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((parent, digits.parse().ok()?))
}

/// The ordinals a set is to have, ascending: from the start on as many as there are replicas, without the
/// reserved ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordinals {
    pub start: u32,
    pub replicas: u32,
    /// Ranges with both their ends, ascending, without overlaps.
    pub reserved: Vec<(u32, u32)>,
}

impl Ordinals {
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (self.start..).filter(|o| !self.is_reserved(*o)).take(self.replicas as usize)
    }

    pub fn contains(&self, ordinal: u32) -> bool {
        ordinal >= self.start && !self.is_reserved(ordinal) && self.position(ordinal) < self.replicas
    }

    /// Where this ordinal stands in the sequence, which is what a partition counts.
    pub fn position(&self, ordinal: u32) -> u32 {
        let below = |(first, last): &(u32, u32)| {
            let first = (*first).max(self.start);
            let end = ordinal.min(last.saturating_add(1));
            end.saturating_sub(first)
        };
        ordinal.saturating_sub(self.start) - self.reserved.iter().map(below).sum::<u32>()
    }

    fn is_reserved(&self, ordinal: u32) -> bool {
        self.reserved.iter().any(|(first, last)| (*first..=*last).contains(&ordinal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_speaks_of_an_ordinal_only_if_that_ordinal_makes_the_name() {
        assert_eq!(parent_and_ordinal("web-10"), Some(("web", 10)));
        assert_eq!(parent_and_ordinal("data-web-0"), Some(("data-web", 0)));
        for other in ["web", "web-", "-1", "web-01", "web-+1", "web-x", "web-99999999999"] {
            assert_eq!(parent_and_ordinal(other), None, "{other}");
        }
    }

    #[test]
    fn ordinals_begin_where_the_set_says() {
        let ordinals = Ordinals { start: 5, replicas: 3, reserved: Vec::new() };
        assert_eq!(ordinals.iter().collect::<Vec<_>>(), [5, 6, 7]);
        assert!(!ordinals.contains(4) && ordinals.contains(7) && !ordinals.contains(8));
    }

    #[test]
    fn reserved_ordinals_are_left_out_and_the_others_keep_their_numbers() {
        let ordinals = Ordinals { start: 2, replicas: 4, reserved: vec![(0, 2), (4, 5), (100, u32::MAX)] };
        assert_eq!(ordinals.iter().collect::<Vec<_>>(), [3, 6, 7, 8]);
        let positions: Vec<u32> = ordinals.iter().map(|o| ordinals.position(o)).collect();
        assert_eq!(positions, [0, 1, 2, 3]);
        for ordinal in 0..12 {
            assert_eq!(ordinals.contains(ordinal), [3, 6, 7, 8].contains(&ordinal), "{ordinal}");
        }
    }
}
