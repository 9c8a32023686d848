//! Clients that keep a ledger of what was acknowledged, and compare it with what is there in the end.
