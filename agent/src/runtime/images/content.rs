//! containerd's content store: blobs in, blobs out, labels on them.

use std::{collections::HashMap, io, time::Duration};

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_stream::wrappers::ReceiverStream;

use super::super::{
    RuntimeError,
    client::{Client, call},
    error::in_full,
};

/// Manifests, indexes and configs: nobody's are larger, and containerd's own limit for them is 8 MiB.
const MAX_DOCUMENT: usize = 8 << 20;
/// A commit syncs the blob to disk.
const COMMIT: Duration = Duration::from_secs(300);

pub(crate) type Labels = HashMap<String, String>;

/// What points to a blob.
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: i64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: Option<HashMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize, PartialEq)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// An index or a manifest, whichever it is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Document {
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    #[serde(default)]
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

/// Whether containerd holds this blob in the client's namespace.
pub(crate) async fn has(client: &Client, digest: &str) -> Result<bool, RuntimeError> {
    match call("looking for a blob", client.content().info(InfoRequest { digest: digest.into() })).await {
        Ok(_) => Ok(true),
        Err(RuntimeError::NotFound(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

/// A whole small blob.
pub(crate) async fn read(client: &Client, digest: &str) -> Result<Vec<u8>, RuntimeError> {
    let request = ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let mut chunks = call("reading a blob", client.content().read(request)).await?;
    let mut bytes = Vec::new();
    loop {
        match chunks.message().await {
            Ok(Some(chunk)) => {
                bytes.extend_from_slice(&chunk.data);
                if bytes.len() > MAX_DOCUMENT {
                    return Err(RuntimeError::failed(
                        "reading a blob",
                        format!("{digest} is too large for its kind"),
                    ));
                }
            }
            Ok(None) => return Ok(bytes),
            Err(status) => return Err(RuntimeError::from_status("reading a blob", status)),
        }
    }
}

/// Sets labels on a blob; others stay.
pub(crate) async fn label(client: &Client, digest: &str, labels: Labels) -> Result<(), RuntimeError> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info { digest: digest.into(), labels, ..Info::default() };
    let request = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
    call("labelling a blob", client.content().update(request)).await?;
    Ok(())
}

/// Why a blob did not get in.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// containerd.
    Runtime(RuntimeError),
    /// Where it comes from.
    Source(io::Error),
}

impl From<RuntimeError> for WriteError {
    fn from(error: RuntimeError) -> Self {
        WriteError::Runtime(error)
    }
}

/// Writes a document whose bytes are here.
pub(crate) async fn write_document(
    client: &Client,
    bytes: Bytes,
    labels: Labels,
) -> Result<(), RuntimeError> {
    let digest = sha256(&bytes);
    let size = bytes.len() as i64;
    let source = std::pin::pin!(futures_util::stream::iter([Ok(bytes)]));
    match write(client, &digest, size, labels, source).await {
        Ok(()) => Ok(()),
        Err(WriteError::Runtime(error)) => Err(error),
        Err(WriteError::Source(error)) => Err(RuntimeError::failed("writing a blob", error)),
    }
}

/// Claims a blob that another namespace of this containerd holds; false when none does.
pub(crate) async fn share(
    client: &Client,
    digest: &str,
    size: i64,
    labels: Labels,
) -> Result<bool, RuntimeError> {
    if !has(client, digest).await? {
        let mut writer = Writer::new(client).await?;
        match writer.begin(digest, size).await {
            Err(RuntimeError::AlreadyExists(_)) => {}
            // Another namespace has it: the ingestion begins at its end, and only has to be committed.
            Ok(()) if writer.offset == size && size > 0 => {
                match writer.commit(digest, size, labels.clone()).await {
                    Ok(()) | Err(RuntimeError::AlreadyExists(_)) => {}
                    Err(other) => return Err(other),
                }
            }
            Ok(()) => {
                writer.abort().await;
                return Ok(false);
            }
            Err(other) => return Err(other),
        }
    }
    label(client, digest, labels).await?;
    Ok(true)
}

/// Streams a blob in, if it is not there. containerd verifies size and digest.
pub(crate) async fn write(
    client: &Client,
    digest: &str,
    size: i64,
    labels: Labels,
    mut source: impl Stream<Item = Result<Bytes, io::Error>> + Unpin,
) -> Result<(), WriteError> {
    let mut writer = Writer::new(client).await?;
    let result = async {
        writer.begin(digest, size).await?;
        // As in [`share`]: a namespace that the caller knows nothing of may have it.
        let there = writer.offset == size && size > 0;
        while !there && let Some(chunk) = source.next().await {
            let mut chunk = chunk.map_err(WriteError::Source)?;
            while !chunk.is_empty() {
                let part = chunk.split_to(chunk.len().min(CHUNK));
                writer.data(&part).await?;
            }
        }
        writer.commit(digest, size, labels.clone()).await?;
        Ok(())
    }
    .await;
    match result {
        Err(WriteError::Runtime(RuntimeError::AlreadyExists(_))) => {
            label(client, digest, labels).await?;
            Ok(())
        }
        Err(error) => {
            writer.abort().await;
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Well below gRPC's message limit of containerd.
const CHUNK: usize = 1 << 20;

/// One ingestion.
struct Writer {
    client: Client,
    name: String,
    requests: tokio::sync::mpsc::Sender<WriteContentRequest>,
    /// The answer stream comes with the first answer.
    opening: Option<tokio::task::JoinHandle<Result<Answers, tonic::Status>>>,
    answers: Option<Answers>,
    offset: i64,
}

type Answers = tonic::Streaming<containerd_client::services::v1::WriteContentResponse>;

impl Writer {
    async fn new(client: &Client) -> Result<Writer, RuntimeError> {
        let (requests, receiver) = tokio::sync::mpsc::channel(2);
        let mut content = client.content();
        let opening =
            tokio::spawn(async move { Ok(content.write(ReceiverStream::new(receiver)).await?.into_inner()) });
        Ok(Writer {
            client: client.clone(),
            // Unique, so that a pull that died never locks the name.
            name: format!("berth-{}", uuid::Uuid::new_v4()),
            requests,
            opening: Some(opening),
            answers: None,
            offset: 0,
        })
    }

    async fn ask(&mut self, request: WriteContentRequest, limit: Duration) -> Result<i64, RuntimeError> {
        const WHAT: &str = "writing a blob";
        // A closed stream says why in its answer.
        let _ = self.requests.send(request).await;
        let answer = async {
            if let Some(opening) = self.opening.take() {
                let answers = opening.await.map_err(|e| RuntimeError::failed(WHAT, e))?;
                self.answers = Some(answers.map_err(|status| RuntimeError::from_status(WHAT, status))?);
            }
            let Some(answers) = &mut self.answers else {
                return Err(RuntimeError::failed(WHAT, "the stream has failed before"));
            };
            match answers.message().await {
                Ok(Some(answer)) => Ok(answer.offset),
                Ok(None) => Err(RuntimeError::failed(WHAT, "containerd closed the stream")),
                Err(status) => Err(RuntimeError::from_status(WHAT, status)),
            }
        };
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(RuntimeError::failed(WHAT, format!("no answer within {limit:?}"))))
    }

    async fn begin(&mut self, digest: &str, size: i64) -> Result<(), RuntimeError> {
        let request = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: self.name.clone(),
            total: size,
            expected: digest.into(),
            ..WriteContentRequest::default()
        };
        self.offset = self.ask(request, COMMIT).await?;
        Ok(())
    }

    async fn data(&mut self, part: &Bytes) -> Result<(), RuntimeError> {
        let request = WriteContentRequest {
            action: WriteAction::Write as i32,
            r#ref: self.name.clone(),
            offset: self.offset,
            data: part.to_vec(),
            ..WriteContentRequest::default()
        };
        self.offset = self.ask(request, COMMIT).await?;
        Ok(())
    }

    async fn commit(&mut self, digest: &str, size: i64, labels: Labels) -> Result<(), RuntimeError> {
        let request = WriteContentRequest {
            action: WriteAction::Commit as i32,
            r#ref: self.name.clone(),
            total: size,
            offset: self.offset,
            expected: digest.into(),
            labels,
            ..WriteContentRequest::default()
        };
        self.ask(request, COMMIT).await?;
        Ok(())
    }

    async fn abort(self) {
        let request = AbortRequest { r#ref: self.name.clone() };
        if let Err(error) = call("aborting a write", self.client.content().abort(request)).await
            && !error.is_not_found()
        {
            tracing::debug!(error = %in_full(&error), "abort of a blob");
        }
    }
}

/// sha256:...
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The chain id of a stack of layers, from the diff ids bottom up.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            None => diff.clone(),
            Some(below) => sha256(format!("{below} {diff}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_image_specification() {
        let a = format!("sha256:{}", "a".repeat(64));
        let b = format!("sha256:{}", "b".repeat(64));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, vec![a.clone(), sha256(format!("{a} {b}").as_bytes())]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn sha256_is_written_as_registries_do() {
        assert_eq!(sha256(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
