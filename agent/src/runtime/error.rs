//! What can go wrong with containerd, in the few classes a caller acts on.

use tonic::{Code, Status};

/// An error of the container runtime.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// containerd does not answer. Nothing is known about the outcome: wait for [`super::Runtime::up`], then
    /// do it again (every call of the runtime may be repeated).
    #[error("containerd is away: {0}")]
    Away(String),
    /// The container, task or process is not there.
    #[error("{0}")]
    NotFound(String),
    /// It is there already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request cannot be met with this image and spec (Kubernetes' CreateContainerConfigError).
    #[error("{0}")]
    Config(String),
    /// It took longer than the caller allows.
    #[error("timed out after {0:?}")]
    Timeout(std::time::Duration),
    /// containerd or runc refused, in its own words.
    #[error("{operation}: {message}")]
    Failed {
        /// What was being done, in words.
        operation: &'static str,
        /// Why it did not work.
        message: String,
    },
}

impl RuntimeError {
    /// Whether containerd was not there, as opposed to having said no.
    pub fn is_away(&self) -> bool {
        matches!(self, RuntimeError::Away(_))
    }

    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RuntimeError::NotFound(_))
    }

    pub(crate) fn failed(operation: &'static str, message: impl ToString) -> Self {
        RuntimeError::Failed { operation, message: message.to_string() }
    }

    /// Classes a gRPC status. One made by the transport (it has a source, or says that the service was not
    /// ready) means that containerd is away; one that containerd sent is its answer.
    pub(crate) fn from_status(operation: &'static str, status: Status) -> Self {
        let from_transport = std::error::Error::source(&status).is_some()
            || status.message().starts_with("Service was not ready");
        if from_transport && !matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) {
            return RuntimeError::Away(in_full(&status));
        }
        match status.code() {
            Code::NotFound => RuntimeError::NotFound(status.message().to_owned()),
            Code::AlreadyExists => RuntimeError::AlreadyExists(status.message().to_owned()),
            _ => RuntimeError::failed(operation, status.message()),
        }
    }
}

/// An error with its causes, since the transport's own words say only "transport error".
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let words = error.to_string();
        // Many errors repeat their cause.
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// Why an image cannot be had, as Kubernetes names it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// Not an image name.
    #[error("couldn't parse image name {name:?}: {message}")]
    InvalidName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// Policy Never, and it is not here.
    #[error("image {0:?} is not present and the pull policy is Never")]
    Never(String),
    /// The registry, the network or the image itself.
    #[error("failed to pull image {name:?}: {message}")]
    Pull {
        /// The normalised name.
        name: String,
        /// The cause in words.
        message: String,
    },
    /// containerd.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl ImageError {
    /// Kubernetes' reason for the container's waiting state.
    pub fn reason(&self) -> &'static str {
        match self {
            ImageError::InvalidName { .. } => "InvalidImageName",
            ImageError::Never(_) => "ErrImageNeverPull",
            ImageError::Pull { .. } | ImageError::Runtime(_) => "ErrImagePull",
        }
    }
}
