//! The contract between controller and agents, generated from `proto/node.proto`; see there.
//!
//! Without the feature `grpc` only the messages are built: that is all the functional cores see.

#[allow(clippy::all, missing_docs)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/berth.node.v1.rs"));
}

pub use generated::*;

/// The condition of a host whose pods get their addresses from an operator's CNI configuration: what an assignment
/// says of addresses does not count there, only what is reported.
pub const OPERATOR_NETWORK: &str = "OperatorNetwork";

/// What stands for the pod's main address in a container's command, arguments and variables: its host alone knows
/// what its network gave. No word of a process can hold a NUL, so nothing else looks like it.
pub const POD_IP: &str = "\0podIP\0";
/// As [`POD_IP`], for all its addresses with commas between.
pub const POD_IPS: &str = "\0podIPs\0";
