//! Pods from assignment to gone, against a real containerd, runc and CNI. Run as root.

#![allow(clippy::unwrap_used)]

#[path = "../runtime/host.rs"]
mod host;
mod lab;
mod life;
mod restarts;
mod trouble;
