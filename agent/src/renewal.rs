//! The host's certificate is renewed long before it runs out, beside a session that goes on.

use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::join::Credentials;

/// Looked at as often at least: the clock may be set, and the host may sleep, while a timer does not notice.
const LOOK: Duration = Duration::from_secs(3600);
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(600);

/// Keeps the certificate good until `shutdown`.
pub async fn keep(credentials: Credentials, controller: String, shutdown: CancellationToken) {
    let _ = shutdown.run_until_cancelled(forever(&credentials, &controller)).await;
}

async fn forever(credentials: &Credentials, controller: &str) {
    let mut pause = SOONEST;
    // The same trouble is told once.
    let mut told = String::new();
    loop {
        let left = credentials.renew_at().saturating_sub(Timestamp::now().as_second());
        if left > 0 {
            let left = Duration::from_secs(left.unsigned_abs());
            tokio::time::sleep(left.min(LOOK)).await;
            continue;
        }
        match credentials.renew(controller).await {
            Ok(()) => {
                tracing::info!("this host's certificate has been renewed");
                told.clear();
                pause = SOONEST;
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != told {
                    tracing::warn!(reason, "this host's certificate cannot be renewed yet");
                    told = reason;
                }
                pause = (pause * 2).min(LATEST);
            }
        }
        tokio::time::sleep(pause).await;
    }
}
