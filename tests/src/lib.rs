//! The harness: hosts made of namespaces on one machine, each with its own containerd and agent, under one
//! controller. The demo, the benchmark and every end-to-end test stand on it.
//!
//! It must never touch anything of the machine outside its own directory, namespaces and cgroups, and it
//! must be able to remove all it made from the directory alone, whatever died in between.

pub mod api;
pub mod cluster;
pub mod fabric;
pub mod fleet;
pub mod floor;
pub mod host;
pub mod image;
pub mod kubectl;
pub mod lab;
pub mod names;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod scenario;
pub mod tools;
pub mod wait;
