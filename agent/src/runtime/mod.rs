//! containerd, as the agent needs it: images, containers, processes in them. Works with containerd 1.6, 1.7
//! and 2.x through the services they have in common.
//!
//! Every call may be repeated: what is there already is success. Calls fail at once with
//! [`RuntimeError::Away`] while containerd is away; [`Runtime::up`] waits for it. Only [`Runtime::wait`] sits
//! through such times by itself.

mod capabilities;
mod client;
mod containers;
mod error;
mod exec;
mod images;
pub(crate) mod spec;
mod stray;
mod types;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use client::Client;
pub use error::{ImageError, RuntimeError};
pub use exec::{Exec, ProcessControl};
pub use images::Accounts;
use images::Images;
use oci_spec::runtime::Process;
use tokio::sync::watch;
pub use types::{
    CaptureLimits, Captured, ContainerInfo, ContainerSpec, ExecSpec, Exit, Image, ImageProcess, ImageSources,
    LogTarget, Mount, RegistryCredentials, Resources, RuntimeConfig, Target, TaskState, Terminal, UserSpec,
};

/// Whether containerd answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// With its version, e.g. `1.6.20~ds1`.
    Up(String),
    /// With the reason.
    Away(String),
}

/// containerd. A cheap handle.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    client: Client,
    host: spec::Host,
    images: Images,
    sources: RwLock<Arc<ImageSources>>,
    /// By container id: the base of execs, so that a probe needs no look into containerd's database.
    processes: Mutex<HashMap<String, Arc<Process>>>,
    health: watch::Receiver<Health>,
}

impl Runtime {
    /// Makes the runtime; containerd may still be away. Needs a tokio runtime.
    pub async fn connect(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        // The registry client takes the process's provider; another part may have set it, to the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        empty_directory(&config.state_dir)?;
        let client = Client::new(&config.address, &config.namespace)?;
        let (sender, health) = watch::channel(Health::Away("not connected yet".into()));
        tokio::spawn(client.clone().watch_health(config.namespace.clone(), sender));
        let images = Images::new(config.parallel_pulls);
        let sources = RwLock::new(Arc::new(config.sources.clone()));
        let host = spec::Host::read();
        let inner = Inner { config, client, host, images, sources, processes: Mutex::default(), health };
        Ok(Runtime { inner: Arc::new(inner) })
    }

    /// Images come from there, from the next one on.
    pub fn set_sources(&self, sources: ImageSources) {
        *self.inner.sources.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sources);
    }

    fn sources(&self) -> Arc<ImageSources> {
        self.inner.sources.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// containerd's health as it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// Waits until containerd answers.
    pub async fn up(&self) {
        // The sender lives as long as this receiver does.
        let _ = self.health().wait_for(|health| matches!(health, Health::Up(_))).await;
    }

    /// Waits until containerd answers after a call has found it away. Its health may not have noticed yet, so that
    /// there is a pause in any case.
    pub(crate) async fn back_up(&self) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        self.up().await;
    }
}

/// The version of the containerd at this socket, asked once.
pub async fn version(address: &Path) -> Result<String, RuntimeError> {
    Client::new(address, "default")?.version().await
}

/// What a former agent left in it serves nobody.
fn empty_directory(dir: &Path) -> Result<(), RuntimeError> {
    let failed = |e: std::io::Error| {
        RuntimeError::failed("preparing the state directory", format!("{}: {e}", dir.display()))
    };
    match std::fs::remove_dir_all(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
}
