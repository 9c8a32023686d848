//! Hosts made of network namespaces on two segments, with the agent's real routes, rules and names on each, and
//! pods that are namespaces behind a real veth. Every packet is real; nothing outlives the test.

#![allow(clippy::unwrap_used)]

#[path = "../runtime/host.rs"]
mod host;
mod lab;
mod names;
mod routes;
mod services;
