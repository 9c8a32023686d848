//! Directories on hosts, through the hosts' own agents.

use berth_controller_core::claims::Directory;
use berth_proto::volume_operation::{Source, Verb};
use berth_proto::{DirectorySource, VolumeOperation};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Hosts;
use crate::nodes::Nodes;

impl Hosts for Nodes {
    fn remove(&self, node: Option<String>, directory: Directory) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let Some(node) = node.or_else(|| self.any_connected()) else {
                return Err("no host is connected that could do it".to_owned());
            };
            let source = DirectorySource { root: directory.root, name: directory.name, mode: 0 };
            let operation = VolumeOperation {
                operation_id: 0,
                verb: Verb::Remove.into(),
                source: Some(Source::Directory(source)),
            };
            self.volume(&node, operation).await.map_err(|error| error.to_string())
        }
        .boxed()
    }
}
