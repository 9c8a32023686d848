//! From a registry into containerd's content store.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::{
    Client as Registry, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};

use super::{
    super::{ImageError, ImageSources, RegistryCredentials, RuntimeError, client::Client, error::in_full},
    Target, choices,
    content::{self, Descriptor, Document, Labels, WriteError},
    index_labels, manifest_labels, no_platform, parse, reference,
};

const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Layers of one image fetched at a time.
const PARALLEL: usize = 3;
const CONNECT: Duration = Duration::from_secs(15);
/// A registry that sends nothing for so long is given up; a slow one that sends is not.
const SILENCE: Duration = Duration::from_secs(60);

/// Fetches all of the image that this machine needs: from its registry's mirrors in turn, without credentials, then
/// from the registry itself. `client` is under a lease. Answers what the name stands for.
pub(crate) async fn fetch(
    client: &Client,
    sources: &ImageSources,
    name: &Reference,
    credentials: Option<RegistryCredentials>,
) -> Result<Target, ImageError> {
    for (_, mirror) in sources.registry_mirrors.iter().filter(|(of, _)| of == name.registry()) {
        let mut there = name.clone();
        there.set_mirror_registry(mirror.clone());
        match fetch_from(client, sources, &there, None).await {
            Err(ImageError::Pull { message, .. }) => {
                tracing::info!(image = %reference::full_name(name), mirror, message, "not to be had from the mirror");
            }
            other => return other,
        }
    }
    fetch_from(client, sources, name, credentials).await
}

async fn fetch_from(
    client: &Client,
    sources: &ImageSources,
    name: &Reference,
    credentials: Option<RegistryCredentials>,
) -> Result<Target, ImageError> {
    let failed = |message: String| ImageError::Pull { name: reference::full_name(name), message };
    let plain = reference::is_plain_http(name.resolve_registry(), &sources.insecure_registries);
    let registry = Registry::try_from(ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENCE),
        user_agent: concat!("berth-agent/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
    .map_err(|e| failed(in_words(&e)))?;
    let auth = match credentials {
        Some(c) => RegistryAuth::Basic(c.username, c.password),
        None => RegistryAuth::Anonymous,
    };
    // By itself the client would swallow why it got no token, and fail later without a reason.
    registry.auth(name, &auth, RegistryOperation::Pull).await.map_err(|e| failed(in_words(&e)))?;

    let (bytes, _) =
        registry.pull_manifest_raw(name, &auth, ACCEPTED).await.map_err(|e| failed(in_words(&e)))?;
    let digest = content::sha256(&bytes);
    if name.digest().is_some_and(|wanted| wanted.starts_with("sha256:") && wanted != digest) {
        return Err(failed(format!("the registry sent {digest} instead")));
    }
    let document: Document = parse(&bytes, "manifest")?;
    let target = Target {
        media_type: media_type(&document).into(),
        digest: digest.clone(),
        size: bytes.len() as i64,
        ..Target::default()
    };
    let (manifest_bytes, manifest) = if document.manifests.is_empty() {
        (bytes, document)
    } else {
        let chosen = choices(&document.manifests)
            .first()
            .map(|chosen| chosen.digest.clone())
            .ok_or_else(|| failed(no_platform(&document.manifests)))?;
        content::write_document(client, bytes, index_labels(&document)).await?;
        let part = name.clone_with_digest(chosen.clone());
        let (bytes, _) =
            registry.pull_manifest_raw(&part, &auth, ACCEPTED).await.map_err(|e| failed(in_words(&e)))?;
        if content::sha256(&bytes) != chosen {
            return Err(failed(format!("the registry sent something else for manifest {chosen}")));
        }
        let manifest: Document = parse(&bytes, "manifest")?;
        (bytes, manifest)
    };
    let config = manifest.config.clone().ok_or_else(|| {
        failed("its manifest is of a kind that is not supported (no configuration in it)".into())
    })?;
    content::write_document(client, manifest_bytes, manifest_labels(&manifest)).await?;

    let blobs = std::iter::once(config).chain(manifest.layers.iter().cloned());
    stream::iter(blobs.map(|blob| fetch_blob(client, &registry, name, blob)))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(target)
}

async fn fetch_blob(
    client: &Client,
    registry: &Registry,
    name: &Reference,
    blob: Descriptor,
) -> Result<(), ImageError> {
    let failed = |message: String| ImageError::Pull {
        name: reference::full_name(name),
        message: format!("layer {}: {message}", blob.digest),
    };
    if content::has(client, &blob.digest).await? {
        // The lease must know it, or it could go between here and the image's record.
        content::share(client, &blob.digest, blob.size, Labels::new()).await?;
        return Ok(());
    }
    let described = oci_client::manifest::OciDescriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.clone(),
        size: blob.size,
        ..Default::default()
    };
    let chunks = registry.pull_blob_stream(name, &described).await.map_err(|e| failed(in_words(&e)))?;
    let chunks = chunks.map_err(io::Error::other).map_ok(|chunk: Bytes| chunk);
    match content::write(client, &blob.digest, blob.size, Labels::new(), Box::pin(chunks)).await {
        Ok(()) => Ok(()),
        Err(WriteError::Source(error)) => Err(failed(in_full(&error))),
        Err(WriteError::Runtime(RuntimeError::Failed { operation, message })) => {
            Err(failed(format!("{operation}: {message}")))
        }
        Err(WriteError::Runtime(other)) => Err(other.into()),
    }
}

fn media_type(document: &Document) -> &str {
    match (document.media_type.as_str(), document.manifests.is_empty()) {
        ("", true) => "application/vnd.oci.image.manifest.v1+json",
        ("", false) => "application/vnd.oci.image.index.v1+json",
        (given, _) => given,
    }
}

/// What a person wants to read in an event.
fn in_words(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::UnauthorizedError { .. } => {
            "the registry wants credentials, or other ones (imagePullSecrets)".into()
        }
        OciDistributionError::AuthenticationFailure(reason) => {
            format!("the registry refused the credentials: {}", reason.trim())
        }
        OciDistributionError::ImageManifestNotFoundError(_) => "not found in the registry".into(),
        OciDistributionError::RegistryError { envelope, url } => {
            let code = |wanted: OciErrorCode| envelope.errors.iter().any(|e| e.code == wanted);
            if code(OciErrorCode::ManifestUnknown)
                || code(OciErrorCode::NameUnknown)
                || code(OciErrorCode::NotFound)
            {
                "not found in the registry".into()
            } else if code(OciErrorCode::Unauthorized) || code(OciErrorCode::Denied) {
                "the registry denies access: it does not exist there, or wants credentials (imagePullSecrets)"
                    .into()
            } else {
                format!("the registry answered {envelope} ({url})")
            }
        }
        OciDistributionError::ServerError { code: 404, .. } => "not found in the registry".into(),
        OciDistributionError::ServerError { code, message, url } => {
            format!("the registry answered {code} {} ({url})", message.trim())
        }
        other => {
            let text = in_full(other);
            match text.contains("No CA certificates") {
                true => format!("{text}: install the package ca-certificates"),
                false => text,
            }
        }
    }
}
