//! The agent's hands against a real containerd, runc and CNI. Run as root.

#![allow(clippy::unwrap_used)]

mod containers;
mod exec;
mod host;
mod images;
mod network;
mod restarts;
mod speed;
