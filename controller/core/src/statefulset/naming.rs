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

/// The ordinals a set is to have, ascending. One place, so that leaving some out needs no other rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordinals {
    pub start: u32,
    pub replicas: u32,
}

impl Ordinals {
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (self.start..).take(self.replicas as usize)
    }

    pub fn contains(self, ordinal: u32) -> bool {
        ordinal >= self.start && u64::from(ordinal) < u64::from(self.start) + u64::from(self.replicas)
    }

    /// Where this ordinal stands in the sequence, which is what a partition counts.
    pub fn position(self, ordinal: u32) -> u32 {
        ordinal.saturating_sub(self.start)
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
        let ordinals = Ordinals { start: 5, replicas: 3 };
        assert_eq!(ordinals.iter().collect::<Vec<_>>(), [5, 6, 7]);
        assert!(!ordinals.contains(4) && ordinals.contains(7) && !ordinals.contains(8));
    }
}
