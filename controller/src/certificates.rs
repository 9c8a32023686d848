//! The controller's own certificates are renewed while it serves, long before they run out.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use crate::pki::{Pki, PkiError, Renewed};

/// Looked at as often at least: the clock may be set, and the machine may sleep, while a timer does not notice.
const LOOK: Duration = Duration::from_secs(3600);
const SOONEST: Duration = Duration::from_secs(1);
/// After a failure (a full disk, say).
const RETRY: Duration = Duration::from_secs(60);

/// Keeps the certificates good for as long as it is polled.
pub async fn keep(pki: Arc<Pki>) {
    let mut told = String::new();
    loop {
        let wait = match renew(pki.clone()).await {
            Ok(renewed) => {
                told.clear();
                let left = renewed.next.as_second().saturating_sub(Timestamp::now().as_second());
                Duration::from_secs(u64::try_from(left).unwrap_or(0)).clamp(SOONEST, LOOK)
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != told {
                    warn!(reason, "a certificate could not be renewed; it is tried again");
                    told = reason;
                }
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Renews what is due, and takes over what somebody else has put in its place.
pub async fn renew(pki: Arc<Pki>) -> Result<Renewed, PkiError> {
    let renewing = tokio::task::spawn_blocking(move || pki.renew(Timestamp::now()));
    let renewed = match renewing.await {
        Ok(renewed) => renewed?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    if renewed.server {
        info!("the server has a new certificate");
    }
    if renewed.admin {
        info!(
            "admin.kubeconfig has been written anew; copies of it are good until their certificate runs out"
        );
    }
    Ok(renewed)
}
