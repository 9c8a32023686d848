//! Volumes' directories, through the hosts' agents.

use berth_controller_core::claims::Location;
use berth_controller_core::resolve::nfs_source;
use berth_proto::volume_operation::{Source, Verb};
use berth_proto::{DirectorySource, VolumeOperation};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{End, Hosts};
use crate::nodes::Nodes;

impl Hosts for Nodes {
    fn end(&self, node: Option<String>, location: Location, end: End) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let source = match location {
                Location::Directory(directory) => {
                    Source::Directory(DirectorySource { root: directory.root, name: directory.name, mode: 0 })
                }
                Location::Nfs(nfs) => Source::Nfs(nfs_source(*nfs)),
            };
            let verb = match end {
                End::Remove => Verb::Remove,
                End::Archive => Verb::Archive,
            };
            let operation = VolumeOperation { operation_id: 0, verb: verb.into(), source: Some(source) };
            let hosts = node.map_or_else(|| self.all_connected(), |node| vec![node]);
            // Not every host reaches every server.
            let mut why = "no host is connected that could do it".to_owned();
            for host in hosts {
                match self.volume(&host, operation.clone()).await {
                    Ok(()) => return Ok(()),
                    Err(error) => why = format!("{host}: {error}"),
                }
            }
            Err(why)
        }
        .boxed()
    }
}
