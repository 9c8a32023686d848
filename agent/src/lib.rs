//! The agent of one host: it runs the pods a controller assigns to it, straight on containerd.
//!
//! `berth-agent-core` decides what comes next in a pod's life; the modules here do it. Each module says on
//! top what it is for and what it must never do.

pub mod cgroup;
pub mod check;
pub mod config;
pub mod join;
pub mod logs;
pub mod network;
pub mod node_status;
mod notify;
pub mod pods;
pub mod prefetch;
pub mod probes;
pub mod renewal;
pub mod runtime;
pub mod session;
pub mod state;
pub mod streams;
mod tls;
pub mod volumes;
pub mod waiting;
