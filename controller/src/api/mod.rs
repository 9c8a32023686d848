//! HTTP as Kubernetes speaks it. Names no kind: what there is to know of one is asked of its `Kind`.

pub mod discovery;
pub mod remote_command;
pub mod table;
