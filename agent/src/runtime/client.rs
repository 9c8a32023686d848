//! The gRPC connection: one lazily (re)connected channel, the two headers containerd wants, and a watcher that
//! knows at once when containerd goes and comes.

use std::{path::Path, time::Duration};

use containerd_client::services::v1::{
    CreateNamespaceRequest, Namespace, SubscribeRequest, containers_client::ContainersClient,
    content_client::ContentClient, diff_client::DiffClient, events_client::EventsClient,
    images_client::ImagesClient, leases_client::LeasesClient, namespaces_client::NamespacesClient,
    snapshots::snapshots_client::SnapshotsClient, tasks_client::TasksClient, version_client::VersionClient,
};
use tokio::sync::watch;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{Health, RuntimeError};

/// A list of containers or a content chunk may exceed gRPC's usual 4 MiB; containerd itself stays below 16.
const MAX_MESSAGE: usize = 16 << 20;
/// For calls that only touch containerd's own database. Calls that reach a shim, a disk or a registry have their
/// own limits.
const CALL: Duration = Duration::from_secs(60);

/// Adds `containerd-namespace` and, where given, `containerd-lease`.
#[derive(Debug, Clone)]
pub(crate) struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

pub(crate) type Wire = InterceptedService<Channel, Headers>;

/// Clients for one namespace, and possibly under one lease. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    headers: Headers,
}

impl Client {
    /// Does not connect yet: each call does when there is no connection.
    pub fn new(address: &Path, namespace: &str) -> Result<Client, RuntimeError> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", address.display()))
            .map_err(|e| RuntimeError::Config(format!("containerd address {}: {e}", address.display())))?
            .user_agent("berth-agent")
            .map_err(|e| RuntimeError::Config(e.to_string()))?
            .connect_timeout(Duration::from_secs(5));
        Ok(Client {
            channel: endpoint.connect_lazy(),
            headers: Headers { namespace: header(namespace)?, lease: None },
        })
    }

    /// The same connection, another namespace.
    pub fn in_namespace(&self, namespace: &str) -> Result<Client, RuntimeError> {
        Ok(Client {
            channel: self.channel.clone(),
            headers: Headers { namespace: header(namespace)?, lease: None },
        })
    }

    /// The same, with what is made kept by a lease.
    pub fn with_lease(&self, lease: &str) -> Result<Client, RuntimeError> {
        let mut client = self.clone();
        client.headers.lease = Some(header(lease)?);
        Ok(client)
    }

    pub fn containers(&self) -> ContainersClient<Wire> {
        ContainersClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }
    pub fn tasks(&self) -> TasksClient<Wire> {
        TasksClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }
    pub fn content(&self) -> ContentClient<Wire> {
        ContentClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }
    pub fn images(&self) -> ImagesClient<Wire> {
        ImagesClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }
    pub fn snapshots(&self) -> SnapshotsClient<Wire> {
        SnapshotsClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }
    pub fn diff(&self) -> DiffClient<Wire> {
        DiffClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }
    pub fn leases(&self) -> LeasesClient<Wire> {
        LeasesClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }
    pub fn namespaces(&self) -> NamespacesClient<Wire> {
        NamespacesClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// containerd's version.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let mut client = VersionClient::with_interceptor(self.channel.clone(), self.headers.clone());
        let answer = call("version", client.version(())).await?;
        Ok(answer.version)
    }

    /// Keeps `health` true to life until nobody looks at it any more. An event stream that never carries an
    /// event serves as the lifeline: it ends the moment containerd does.
    pub async fn watch_health(self, namespace: String, health: watch::Sender<Health>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = tokio::time::Instant::now();
            let reason = match self.lifeline(&namespace, &health).await {
                Ok(()) => "the connection ended".to_owned(),
                Err(RuntimeError::Away(reason)) => reason,
                Err(error) => error.to_string(),
            };
            if since.elapsed() > LAST_PAUSE {
                pause = FIRST_PAUSE;
            }
            let went = health.send_if_modified(|health| match health {
                Health::Away(before) if *before == reason => false,
                Health::Away(before) => {
                    before.clone_from(&reason);
                    true
                }
                Health::Up(_) => {
                    *health = Health::Away(reason.clone());
                    true
                }
            });
            if went {
                tracing::warn!(%reason, "containerd is away");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = health.closed() => return,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Ok: it was up, and is no more.
    async fn lifeline(&self, namespace: &str, health: &watch::Sender<Health>) -> Result<(), RuntimeError> {
        let mut client = EventsClient::with_interceptor(self.channel.clone(), self.headers.clone());
        let request = SubscribeRequest { filters: vec!["topic==\"/berth/none\"".into()] };
        // The answer's headers come only with the first event on some versions, so this waits for nothing but the end.
        let subscribed = async {
            match client.subscribe(request).await {
                Ok(answer) => {
                    let mut events = answer.into_inner();
                    while let Ok(Some(_)) = events.message().await {}
                }
                Err(status) => tracing::debug!(%status, "event stream"),
            }
        };
        let version = self.version().await?;
        let ours = Namespace { name: namespace.into(), ..Namespace::default() };
        let request = CreateNamespaceRequest { namespace: Some(ours) };
        match call("making the namespace", self.namespaces().create(request)).await {
            Ok(_) | Err(RuntimeError::AlreadyExists(_)) => {}
            Err(other) => return Err(other),
        }
        tracing::info!(%version, "containerd is up");
        health.send_replace(Health::Up(version));
        tokio::select! {
            () = subscribed => {}
            () = health.closed() => {}
        }
        Ok(())
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);

fn header(value: &str) -> Result<MetadataValue<Ascii>, RuntimeError> {
    value.parse().map_err(|_| RuntimeError::Config(format!("{value:?} cannot be a containerd name")))
}

/// Awaits a call to containerd's own database.
pub(crate) async fn call<T>(
    operation: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, RuntimeError> {
    call_within(operation, CALL, answer).await
}

/// Awaits a call that may take longer.
pub(crate) async fn call_within<T>(
    operation: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(RuntimeError::from_status(operation, status)),
        Err(_) => Err(RuntimeError::failed(operation, format!("containerd did not answer within {limit:?}"))),
    }
}

/// Success also when it was not there.
pub(crate) fn gone_is_fine<T: Default>(result: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
    match result {
        Err(RuntimeError::NotFound(_)) => Ok(T::default()),
        other => other,
    }
}
