//! The revisioned object store (DESIGN D9): key/value, one increasing revision, compare-and-swap, watch
//! from a revision. Reads and watches are answered from memory; a write is answered only after it is on
//! disk and memory shows it, so nobody ever acts on a state older than their own write.
