//! A table of nftables as values, and the script that leads from one state of it to another in one transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The table's name, in the family `inet`.
pub const TABLE: &str = "berth";
/// All that is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// Its type and flags.
    pub made: String,
    /// With what each maps to; empty in a plain set.
    pub elements: BTreeMap<String, String>,
    /// Its elements belong together (ranges): changed all at once.
    pub whole: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Where it is called from; empty: from other chains.
    pub hook: &'static str,
    pub rules: Vec<String>,
}

impl Table {
    /// The script for `nft -f -` that leads from `before` (or from whatever there is) to this; none if there is
    /// nothing to do.
    pub fn script(&self, before: Option<&Table>) -> Option<String> {
        let nothing = Table::default();
        let mut script = String::new();
        if before.is_none() {
            // Adding makes the removing possible in any case.
            let _ =
                writeln!(script, "add table inet {TABLE}\ndelete table inet {TABLE}\nadd table inet {TABLE}");
        }
        let before = before.unwrap_or(&nothing);
        // In this order: what is referred to is there before and goes after.
        for (name, set) in &self.sets {
            if !before.sets.contains_key(name) {
                let _ = writeln!(script, "add {} inet {TABLE} {name} {{ {} }}", set.word(), set.made);
            }
        }
        for (name, chain) in &self.chains {
            if !before.chains.contains_key(name) {
                let hook =
                    if chain.hook.is_empty() { String::new() } else { format!(" {{ {} }}", chain.hook) };
                let _ = writeln!(script, "add chain inet {TABLE} {name}{hook}");
            }
        }
        for (name, chain) in &self.chains {
            let there = before.chains.get(name);
            if there.is_some_and(|there| there.rules == chain.rules) {
                continue;
            }
            if there.is_some() {
                let _ = writeln!(script, "flush chain inet {TABLE} {name}");
            }
            for rule in &chain.rules {
                let _ = writeln!(script, "add rule inet {TABLE} {name} {rule}");
            }
        }
        for (name, set) in &self.sets {
            set.change(name, before.sets.get(name), &mut script);
        }
        for (name, chain) in before.chains.iter().filter(|(name, _)| !self.chains.contains_key(*name)) {
            if !chain.rules.is_empty() {
                let _ = writeln!(script, "flush chain inet {TABLE} {name}");
            }
        }
        for name in before.chains.keys().filter(|name| !self.chains.contains_key(*name)) {
            let _ = writeln!(script, "delete chain inet {TABLE} {name}");
        }
        for (name, set) in before.sets.iter().filter(|(name, _)| !self.sets.contains_key(*name)) {
            let _ = writeln!(script, "delete {} inet {TABLE} {name}", set.word());
        }
        (!script.is_empty()).then_some(script)
    }
}

impl Set {
    fn word(&self) -> &'static str {
        if self.made.contains(": verdict") { "map" } else { "set" }
    }

    fn change(&self, name: &str, before: Option<&Set>, script: &mut String) {
        let nothing = BTreeMap::new();
        let before = before.map_or(&nothing, |set| &set.elements);
        if self.elements == *before {
            return;
        }
        let mut say = |verb: &str, elements: Vec<String>| {
            // One line of a script is read as a whole: not all of a large set in one.
            for some in elements.chunks(500) {
                let _ = writeln!(script, "{verb} element inet {TABLE} {name} {{ {} }}", some.join(", "));
            }
        };
        let element = |(key, value): (&String, &String)| match value.as_str() {
            "" => key.clone(),
            value => format!("{key} : {value}"),
        };
        if self.whole {
            if !before.is_empty() {
                let _ = writeln!(script, "flush set inet {TABLE} {name}");
            }
            let mut say = |elements: Vec<String>| {
                if !elements.is_empty() {
                    let _ = writeln!(script, "add element inet {TABLE} {name} {{ {} }}", elements.join(", "));
                }
            };
            say(self.elements.iter().map(element).collect());
            return;
        }
        let gone = before.iter().filter(|(key, value)| self.elements.get(*key) != Some(value));
        say("delete", gone.map(element).collect());
        let new = self.elements.iter().filter(|(key, value)| before.get(*key) != Some(value));
        say("add", new.map(element).collect());
    }
}
