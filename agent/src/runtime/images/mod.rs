//! Images: found in containerd, or pulled into it, and always unpacked when they leave here.
//!
//! It must never hand out an image whose snapshots are not there, and never leave anything behind when a
//! pull fails: all work is done under a lease that expires by itself.

mod accounts;
mod content;
mod pull;
mod reference;
mod rootfs;
pub(crate) mod unpack;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use accounts::Accounts;
pub(crate) use accounts::Identity;
use containerd_client::{
    services::v1::{
        CreateImageRequest, CreateRequest, DeleteRequest, GetImageRequest, Image as Record, ListRequest,
        UpdateImageRequest,
        snapshots::{RemoveSnapshotRequest, ViewSnapshotRequest},
    },
    types,
};
use content::{Descriptor, Document, Labels, chain_ids};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};

use super::{
    Image, ImageError, ImageProcess, RegistryCredentials, Runtime, RuntimeError,
    client::{Client, call, gone_is_fine},
};

/// Marks our leases, with the time they were made.
const LEASE_LABEL: &str = "berth.dev/lease";
/// A lease of an agent that died ends by itself.
const LEASE_LIFE: SignedDuration = SignedDuration::from_hours(24);

/// What is shared between calls.
#[derive(Debug)]
pub(crate) struct Images {
    /// By the digest of index or manifest; what it says never changes. Names come and go.
    known: Mutex<HashMap<String, Arc<Image>>>,
    flights: Mutex<HashMap<Flight, watch::Receiver<Landing>>>,
    permits: Arc<Semaphore>,
}

/// Same name and same credentials: the same pull.
type Flight = (String, Option<(String, String)>);
type Landing = Option<Result<Arc<Image>, ImageError>>;

impl Images {
    pub fn new(parallel_pulls: usize) -> Images {
        Images {
            known: Mutex::default(),
            flights: Mutex::default(),
            permits: Arc::new(Semaphore::new(parallel_pulls.max(1))),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while these are held; a poisoned map is still a map.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    /// The image of that name if it is here (in our namespace or one of the others'), unpacked if need be.
    pub async fn find_image(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let reference = reference::normalise(name)?;
        let name = reference::full_name(&reference);
        if let Some(record) = self.record(&self.inner.client, &name).await? {
            return Ok(Some(self.local(&name, &reference::repository(&reference), record).await?));
        }
        for namespace in &self.sources().namespaces {
            if *namespace == self.inner.config.namespace {
                continue;
            }
            let there = self.inner.client.in_namespace(namespace)?;
            let Some(record) = self.record(&there, &name).await? else { continue };
            match self.borrow(&there, &record).await {
                Ok(()) => {
                    return Ok(Some(self.local(&name, &reference::repository(&reference), record).await?));
                }
                // Incomplete there: the next one, or the registry, may have all of it.
                Err(error) if !error.is_away() => {
                    tracing::info!(image = name, namespace, %error, "image cannot be used from there");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Pulls the image from its registry. Concurrent pulls of one image are one. Goes on when the caller
    /// stops waiting.
    pub async fn pull_image(
        &self,
        name: &str,
        credentials: &[RegistryCredentials],
    ) -> Result<Arc<Image>, ImageError> {
        let reference = reference::normalise(name)?;
        let credentials =
            credentials.iter().find(|c| reference::is_for(&c.registry, reference.registry())).cloned();
        let flight: Flight = (
            reference::full_name(&reference),
            credentials.as_ref().map(|c| (c.username.clone(), c.password.clone())),
        );
        let mut landing = {
            let mut flights = lock(&self.inner.images.flights);
            match flights.get(&flight) {
                // One whose task has died will never land.
                Some(landing) if landing.has_changed().is_ok() => landing.clone(),
                _ => {
                    let (sender, receiver) = watch::channel(None);
                    flights.insert(flight.clone(), receiver.clone());
                    let runtime = self.clone();
                    tokio::spawn(async move {
                        let result = runtime.pull_alone(reference, credentials).await;
                        lock(&runtime.inner.images.flights).remove(&flight);
                        sender.send_replace(Some(result));
                    });
                    receiver
                }
            }
        };
        let landed = landing.wait_for(Option::is_some).await;
        match landed.as_deref() {
            Ok(Some(result)) => result.clone(),
            _ => Err(RuntimeError::failed("pulling an image", "the pull was given up").into()),
        }
    }

    async fn pull_alone(
        &self,
        reference: oci_client::Reference,
        credentials: Option<RegistryCredentials>,
    ) -> Result<Arc<Image>, ImageError> {
        let _permit = self.inner.images.permits.acquire().await;
        let name = reference::full_name(&reference);
        let lease = Lease::new(&self.inner.client).await?;
        let result = async {
            let target = pull::fetch(&lease.client, &self.sources(), &reference, credentials).await?;
            // Unpacked before it gets its name: who finds the name finds all of it.
            let record = Record { name: name.clone(), target: Some(target), ..Record::default() };
            let image = self.unpacked(&lease.client, &reference::repository(&reference), &record).await?;
            self.put_record(&lease.client, record).await?;
            Ok(Arc::new(Image { name: name.clone(), ..(*image).clone() }))
        }
        .await;
        lease.end().await;
        result.map_err(|error: ImageError| match error {
            // An unpack that fails is the image's fault as well.
            ImageError::Runtime(RuntimeError::Failed { operation, message }) => {
                ImageError::Pull { name, message: format!("{operation}: {message}") }
            }
            other => other,
        })
    }

    async fn record(&self, client: &Client, name: &str) -> Result<Option<Record>, RuntimeError> {
        match call("looking for an image", client.images().get(GetImageRequest { name: name.into() })).await {
            Ok(answer) => Ok(answer.image),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn put_record(&self, client: &Client, record: Record) -> Result<(), RuntimeError> {
        const WHAT: &str = "recording an image";
        let create = CreateImageRequest { image: Some(record.clone()), source_date_epoch: None };
        match call(WHAT, client.images().create(create)).await {
            Err(RuntimeError::AlreadyExists(_)) => {
                let request = UpdateImageRequest {
                    image: Some(record),
                    update_mask: Some(prost_types::FieldMask { paths: vec!["target".into()] }),
                    source_date_epoch: None,
                };
                call(WHAT, client.images().update(request)).await?;
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// An image that containerd has a record of.
    async fn local(&self, name: &str, repository: &str, record: Record) -> Result<Arc<Image>, ImageError> {
        let digest = record.target.as_ref().map(|target| target.digest.clone()).unwrap_or_default();
        let known = lock(&self.inner.images.known).get(&digest).cloned();
        let image = match known {
            Some(image) if self.is_unpacked(&image.chain_id).await? => image,
            _ => {
                let lease = Lease::new(&self.inner.client).await?;
                let result = self.unpacked(&lease.client, repository, &record).await;
                lease.end().await;
                result.map_err(|error| match error {
                    RuntimeError::NotFound(what) => ImageError::Pull {
                        name: name.to_owned(),
                        message: format!("the image in containerd is not complete: {what}"),
                    },
                    other => other.into(),
                })?
            }
        };
        if image.name == name {
            return Ok(image);
        }
        Ok(Arc::new(Image {
            name: name.to_owned(),
            id: format!("{repository}@{digest}"),
            ..(*image).clone()
        }))
    }

    async fn is_unpacked(&self, chain_id: &str) -> Result<bool, RuntimeError> {
        if chain_id.is_empty() {
            return Ok(true);
        }
        unpack::has_snapshot(&self.inner.client, &self.inner.config.snapshotter, chain_id).await
    }

    /// Reads an image whose content is in our namespace and unpacks it. `client` is under a lease.
    async fn unpacked(
        &self,
        client: &Client,
        repository: &str,
        record: &Record,
    ) -> Result<Arc<Image>, RuntimeError> {
        let snapshotter = &self.inner.config.snapshotter;
        let target = record.target.clone().unwrap_or_default();
        let (manifest_digest, manifest) = manifest_of(client, &target.digest).await?;
        let config = manifest.config.clone().ok_or_else(|| {
            RuntimeError::failed(
                "reading the image",
                "its manifest has no configuration: not a container image",
            )
        })?;
        let parsed: Configuration =
            parse(&content::read(client, &config.digest).await?, "image configuration")?;
        let chain_id = chain_ids(&parsed.rootfs.diff_ids).pop().unwrap_or_default();
        if !chain_id.is_empty() {
            if !self.is_unpacked(&chain_id).await? {
                // Imported by hand, labels may be missing: without them garbage collection would take the layers.
                let labels = manifest_labels(&manifest);
                content::label(client, &manifest_digest, labels).await?;
                unpack::unpack(client, snapshotter, &manifest.layers, &parsed.rootfs.diff_ids).await?;
            }
            let label = (format!("containerd.io/gc.ref.snapshot.{snapshotter}"), chain_id.clone());
            content::label(client, &config.digest, Labels::from([label])).await?;
        }
        let accounts = self.accounts(client, &chain_id).await?;
        let process = parsed.config.unwrap_or_default();
        let image = Arc::new(Image {
            name: record.name.clone(),
            id: format!("{repository}@{}", target.digest),
            digest: target.digest.clone(),
            chain_id,
            size: std::iter::once(&config)
                .chain(&manifest.layers)
                .map(|blob| blob.size.max(0).unsigned_abs())
                .sum(),
            config: ImageProcess {
                entrypoint: process.entrypoint.unwrap_or_default(),
                cmd: process.cmd.unwrap_or_default(),
                env: process.env.unwrap_or_default(),
                user: process.user.unwrap_or_default(),
                working_dir: process.working_dir.unwrap_or_default(),
                stop_signal: process.stop_signal.unwrap_or_default(),
            },
            accounts: Arc::new(accounts),
        });
        let mut known = lock(&self.inner.images.known);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(target.digest, image.clone());
        Ok(image)
    }

    async fn accounts(&self, client: &Client, chain_id: &str) -> Result<Accounts, RuntimeError> {
        if chain_id.is_empty() {
            return Ok(Accounts::default());
        }
        let key = format!("berth-view-{}", uuid::Uuid::new_v4());
        let snapshotter = self.inner.config.snapshotter.clone();
        let request = ViewSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: chain_id.into(),
            labels: HashMap::new(),
        };
        let mounts = call("viewing the image", client.snapshots().view(request)).await?.mounts;
        let accounts = rootfs::accounts(mounts, self.inner.config.state_dir.clone()).await;
        let remove = RemoveSnapshotRequest { snapshotter, key };
        gone_is_fine(call("removing a view", client.snapshots().remove(remove)).await)?;
        accounts
    }

    /// Makes another namespace's image ours: the blobs are shared, the record is copied.
    async fn borrow(&self, there: &Client, record: &Record) -> Result<(), RuntimeError> {
        let target = record.target.clone().unwrap_or_default();
        let document: Document = parse(&content::read(there, &target.digest).await?, "image")?;
        let lease = Lease::new(&self.inner.client).await?;
        let here = &lease.client;
        let result = async {
            let (manifest_digest, manifest) = if document.manifests.is_empty() {
                (target.digest.clone(), document)
            } else {
                let (digest, manifest) = manifest_of(there, &target.digest).await?;
                share(here, &target.digest, target.size, index_labels(&document)).await?;
                (digest, manifest)
            };
            for blob in manifest.config.iter().chain(&manifest.layers) {
                share(here, &blob.digest, blob.size, Labels::new()).await?;
            }
            let size = content::read(there, &manifest_digest).await?.len() as i64;
            share(here, &manifest_digest, size, manifest_labels(&manifest)).await?;
            let record = Record {
                name: record.name.clone(),
                labels: record.labels.clone(),
                target: Some(target.clone()),
                ..Record::default()
            };
            self.put_record(here, record).await
        }
        .await;
        lease.end().await;
        result
    }

    /// Removes what pulls of an agent that died left: leases and unfinished layers older than `before`.
    pub async fn clear_leftovers(&self, before: Timestamp) -> Result<(), RuntimeError> {
        let client = &self.inner.client;
        let filters = vec![format!("labels.\"{LEASE_LABEL}\"")];
        let leases = call("listing leases", client.leases().list(ListRequest { filters })).await?.leases;
        for lease in leases {
            let made = lease.created_at.as_ref().map_or(0, |at| at.seconds);
            if made < before.as_second() {
                let request = DeleteRequest { id: lease.id, sync: false };
                gone_is_fine(call("deleting a lease", client.leases().delete(request)).await)?;
            }
        }
        let snapshotter = &self.inner.config.snapshotter;
        for name in unpack::unfinished(client, snapshotter, before.as_second()).await? {
            unpack::remove_snapshot(client, snapshotter, &name).await?;
        }
        Ok(())
    }
}

/// A host has tens of images; this only keeps a long life from growing without bound.
const MAX_KNOWN: usize = 1000;

async fn share(client: &Client, digest: &str, size: i64, labels: Labels) -> Result<(), RuntimeError> {
    if content::share(client, digest, size, labels).await? {
        Ok(())
    } else {
        Err(RuntimeError::NotFound(format!("blob {digest}")))
    }
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8], what: &str) -> Result<T, RuntimeError> {
    serde_json::from_slice(bytes)
        .map_err(|e| RuntimeError::failed("reading the image", format!("{what}: {e}")))
}

/// The manifest for this machine, with its digest; `digest` is its own or its index's.
async fn manifest_of(client: &Client, digest: &str) -> Result<(String, Document), RuntimeError> {
    let document: Document = parse(&content::read(client, digest).await?, "manifest")?;
    if document.manifests.is_empty() {
        return Ok((digest.to_owned(), document));
    }
    let mut missing = None;
    for choice in choices(&document.manifests) {
        match content::read(client, &choice.digest).await {
            Ok(bytes) => return Ok((choice.digest.clone(), parse(&bytes, "manifest")?)),
            Err(RuntimeError::NotFound(_)) => missing = Some(choice.digest.clone()),
            Err(other) => return Err(other),
        }
    }
    Err(match missing {
        Some(digest) => RuntimeError::NotFound(format!("manifest {digest}")),
        None => RuntimeError::failed("reading the image", no_platform(&document.manifests)),
    })
}

fn no_platform(manifests: &[Descriptor]) -> String {
    let there: Vec<String> = manifests
        .iter()
        .filter_map(|m| m.platform.as_ref())
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    format!("no image for linux/{} in it, only for {}", architecture(), there.join(", "))
}

/// What of an index runs here, best first. Entries without platform (by hand made archives) come last.
fn choices(manifests: &[Descriptor]) -> Vec<&Descriptor> {
    let ours = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    let unknown = |descriptor: &&Descriptor| descriptor.platform.is_none();
    manifests.iter().filter(ours).chain(manifests.iter().filter(unknown)).collect()
}

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// What keeps the parts of an index from garbage collection.
fn index_labels(index: &Document) -> Labels {
    let parts = index.manifests.iter().enumerate();
    parts.map(|(n, part)| (format!("containerd.io/gc.ref.content.m.{n}"), part.digest.clone())).collect()
}

fn manifest_labels(manifest: &Document) -> Labels {
    let layers = manifest.layers.iter().enumerate();
    let layers =
        layers.map(|(n, layer)| (format!("containerd.io/gc.ref.content.l.{n}"), layer.digest.clone()));
    let config =
        manifest.config.iter().map(|c| ("containerd.io/gc.ref.content.config".to_owned(), c.digest.clone()));
    layers.chain(config).collect()
}

#[derive(Debug, Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<ProcessConfiguration>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessConfiguration {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// Keeps what is made from garbage collection until it is ended.
struct Lease {
    id: String,
    plain: Client,
    /// Calls by this are under the lease.
    client: Client,
}

impl Lease {
    async fn new(client: &Client) -> Result<Lease, RuntimeError> {
        let id = format!("berth-{}", uuid::Uuid::new_v4());
        let labels = HashMap::from([
            (LEASE_LABEL.to_owned(), "image".to_owned()),
            (
                "containerd.io/gc.expire".to_owned(),
                (Timestamp::now() + LEASE_LIFE).strftime("%FT%TZ").to_string(),
            ),
        ]);
        call("making a lease", client.leases().create(CreateRequest { id: id.clone(), labels })).await?;
        Ok(Lease { client: client.with_lease(&id)?, plain: client.clone(), id })
    }

    async fn end(self) {
        let request = DeleteRequest { id: self.id.clone(), sync: false };
        let mut pause = Duration::from_millis(100);
        for _ in 0..3 {
            match gone_is_fine(call("deleting a lease", self.plain.leases().delete(request.clone())).await) {
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, lease = self.id, "ending a lease"),
            }
            tokio::time::sleep(pause).await;
            pause *= 4;
        }
        tracing::warn!(lease = self.id, "a containerd lease stays until it expires");
    }
}

pub(crate) type Target = types::Descriptor;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<(&str, &str)>, digest: &str) -> Descriptor {
        let platform = platform.map(|(os, arch)| content::Platform {
            os: os.into(),
            architecture: arch.into(),
            variant: None,
        });
        Descriptor { media_type: String::new(), digest: digest.into(), size: 0, platform, annotations: None }
    }

    #[test]
    fn the_manifest_for_this_machine_is_chosen() {
        let list = [
            entry(Some(("windows", architecture())), "w"),
            entry(Some(("unknown", "unknown")), "attestation"),
            entry(None, "by-hand"),
            entry(Some(("linux", architecture())), "ours"),
        ];
        let chosen: Vec<&str> = choices(&list).iter().map(|c| c.digest.as_str()).collect();
        assert_eq!(chosen, ["ours", "by-hand"]);
    }

    #[test]
    fn an_image_for_other_machines_says_for_which() {
        let text =
            no_platform(&[entry(Some(("linux", "s390x")), "x"), entry(Some(("windows", "amd64")), "y")]);
        assert!(text.contains("only for linux/s390x, windows/amd64"), "{text}");
    }

    #[test]
    fn null_lists_in_a_configuration_are_empty_ones() {
        let text = br#"{"config":{"Cmd":["sh"],"Entrypoint":null,"User":"redis"},"rootfs":{"type":"layers","diff_ids":["sha256:1"]}}"#;
        let parsed: Configuration = parse(text, "x").unwrap();
        let process = parsed.config.unwrap();
        assert_eq!((process.entrypoint, process.user.as_deref()), (None, Some("redis")));
    }
}
