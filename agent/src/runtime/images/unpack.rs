//! From blobs to snapshots: each layer is applied on top of the one below and committed under its chain id.

use std::{collections::HashMap, time::Duration};

use containerd_client::{
    services::v1::{
        ApplyRequest,
        snapshots::{
            CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
            RemoveSnapshotRequest, StatSnapshotRequest,
        },
    },
    types,
};

use super::{
    super::{
        RuntimeError,
        client::{Client, call, call_within, gone_is_fine},
    },
    content::{Descriptor, chain_ids},
};

/// A large layer on a slow disk.
const APPLY: Duration = Duration::from_secs(1800);
/// How the keys of our unfinished layers begin: as containerd's own, and so that those of others are told apart, who may
/// be importing an image just now.
const UNFINISHED: &str = "extract-berth-";

/// Whether a snapshot of that name is there.
pub(crate) async fn has_snapshot(
    client: &Client,
    snapshotter: &str,
    name: &str,
) -> Result<bool, RuntimeError> {
    let request = StatSnapshotRequest { snapshotter: snapshotter.into(), key: name.into() };
    match call("looking for a snapshot", client.snapshots().stat(request)).await {
        Ok(_) => Ok(true),
        Err(RuntimeError::NotFound(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Unpacks what is not unpacked yet. `client` is under a lease.
pub(crate) async fn unpack(
    client: &Client,
    snapshotter: &str,
    layers: &[Descriptor],
    diff_ids: &[String],
) -> Result<(), RuntimeError> {
    const WHAT: &str = "unpacking the image";
    if layers.len() != diff_ids.len() {
        return Err(RuntimeError::failed(
            WHAT,
            format!("the manifest has {} layers, the configuration {}", layers.len(), diff_ids.len()),
        ));
    }
    let chain = chain_ids(diff_ids);
    // Only what is above the highest layer that is there needs work.
    let mut ready = chain.len();
    while ready > 0 && !has_snapshot(client, snapshotter, &chain[ready - 1]).await? {
        ready -= 1;
    }
    for at in ready..chain.len() {
        let parent = if at == 0 { "" } else { chain[at - 1].as_str() };
        match apply_layer(client, snapshotter, &layers[at], &diff_ids[at], parent, &chain[at]).await {
            // Somebody else was as fast.
            Ok(()) | Err(RuntimeError::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn apply_layer(
    client: &Client,
    snapshotter: &str,
    layer: &Descriptor,
    diff_id: &str,
    parent: &str,
    chain_id: &str,
) -> Result<(), RuntimeError> {
    let key = format!("{UNFINISHED}{} {chain_id}", uuid::Uuid::new_v4());
    let labels = HashMap::from([("containerd.io/snapshot.ref".to_owned(), chain_id.to_owned())]);
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.into(),
        key: key.clone(),
        parent: parent.into(),
        labels: labels.clone(),
    };
    let mounts = call("preparing a layer", client.snapshots().prepare(prepare)).await?.mounts;
    let result = async {
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.clone(),
            size: layer.size,
            annotations: HashMap::new(),
        };
        let request = ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() };
        let applied = call_within("applying a layer", APPLY, client.diff().apply(request)).await?.applied;
        let got = applied.map(|applied| applied.digest).unwrap_or_default();
        if got != diff_id {
            return Err(RuntimeError::failed(
                "applying a layer",
                format!("layer {} unpacks to {got}, its image says {diff_id}", layer.digest),
            ));
        }
        let commit = CommitSnapshotRequest {
            snapshotter: snapshotter.into(),
            name: chain_id.into(),
            key: key.clone(),
            labels,
        };
        call_within("committing a layer", APPLY, client.snapshots().commit(commit)).await?;
        Ok(())
    }
    .await;
    if result.is_err()
        && let Err(error) = remove_snapshot(client, snapshotter, &key).await
    {
        // Not kept by anything, so containerd's garbage collection takes it after the lease.
        tracing::debug!(%error, key, "an unfinished layer stays for now");
    }
    result
}

/// Removes an active snapshot; fine when it is not there.
pub(crate) async fn remove_snapshot(
    client: &Client,
    snapshotter: &str,
    key: &str,
) -> Result<(), RuntimeError> {
    let request = RemoveSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
    gone_is_fine(call_within("removing a snapshot", APPLY, client.snapshots().remove(request)).await)
}

/// A writable snapshot on top of `parent`, and how to mount it. One that is there is used as it is.
pub(crate) async fn prepare_snapshot(
    client: &Client,
    snapshotter: &str,
    key: &str,
    parent: &str,
) -> Result<Vec<types::Mount>, RuntimeError> {
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.into(),
        key: key.into(),
        parent: parent.into(),
        labels: HashMap::new(),
    };
    match call("preparing the container's file system", client.snapshots().prepare(request)).await {
        Ok(answer) => Ok(answer.mounts),
        Err(RuntimeError::AlreadyExists(_)) => {
            let request = MountsRequest { snapshotter: snapshotter.into(), key: key.into() };
            Ok(call("preparing the container's file system", client.snapshots().mounts(request))
                .await?
                .mounts)
        }
        Err(other) => Err(other),
    }
}

/// Names of our unfinished layers made before `before` (Unix seconds).
pub(crate) async fn unfinished(
    client: &Client,
    snapshotter: &str,
    before: i64,
) -> Result<Vec<String>, RuntimeError> {
    let request =
        ListSnapshotsRequest { snapshotter: snapshotter.into(), filters: vec!["kind==active".into()] };
    let mut pages = call("listing snapshots", client.snapshots().list(request)).await?;
    let mut names = Vec::new();
    while let Some(page) =
        pages.message().await.map_err(|status| RuntimeError::from_status("listing snapshots", status))?
    {
        let old = page.info.into_iter().filter(|info| {
            info.name.starts_with(UNFINISHED)
                && info.created_at.as_ref().is_some_and(|at| at.seconds < before)
        });
        names.extend(old.map(|info| info.name));
    }
    Ok(names)
}
