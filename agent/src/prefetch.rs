//! Images that are wanted on this host before the pod that needs them is made: so that a pod that is
//! replaced is away for as long as its processes take, and not for as long as a registry does.
//!
//! It must never do what a pod's own start would not: the same policies, credentials and pulls (one for all
//! who want an image), and nothing is held for whoever stops waiting.

use std::time::Duration;

use berth_proto::prefetch::Image;
use berth_proto::{OperationResult, Prefetch};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Semaphore;

use crate::runtime::{ImageError, RegistryCredentials, Runtime};

/// Requests at a time; more than that are answered with a refusal, and asked again.
const AT_ONCE: usize = 64;
/// Images of one request at a time. How many are pulled at a time on the whole host is the runtime's affair.
const IMAGES: usize = 4;
/// Longer than a controller waits. A pull that takes longer goes on, and is found by the next request.
const LIMIT: Duration = Duration::from_secs(15 * 60);

static PERMITS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Has all the images here, unpacked; answers when they are, or with the first failure.
pub async fn prefetch(runtime: &Runtime, request: Prefetch) -> OperationResult {
    let operation_id = request.operation_id;
    let Ok(_permit) = PERMITS.try_acquire() else {
        let error = format!("the host is fetching images for {AT_ONCE} requests already");
        return OperationResult { operation_id, error };
    };
    let credentials: Vec<RegistryCredentials> =
        request.registry_auth.into_iter().map(RegistryCredentials::from).collect();
    let credentials = credentials.as_slice();
    let all = stream::iter(request.images).map(Ok).try_for_each_concurrent(IMAGES, |image| async move {
        one(runtime, &image, credentials).await.map_err(|error| match error {
            // containerd's words do not name the image.
            ImageError::Runtime(error) => format!("image {:?}: {error}", image.image),
            named => named.to_string(),
        })
    });
    let error = match tokio::time::timeout(LIMIT, all).await {
        Ok(Ok(())) => String::new(),
        Ok(Err(error)) => error,
        Err(_) => format!("not there after {LIMIT:?}; the pull goes on"),
    };
    OperationResult { operation_id, error }
}

async fn one(
    runtime: &Runtime,
    image: &Image,
    credentials: &[RegistryCredentials],
) -> Result<(), ImageError> {
    let name = image.image.as_str();
    if image.pull_policy != "Always" {
        // On a task of its own: half an image would be left if nobody waited for it any more.
        let (finder, wanted) = (runtime.clone(), name.to_owned());
        let found = tokio::spawn(async move { finder.find_image(&wanted).await }).await;
        match found {
            Ok(Ok(Some(_))) => return Ok(()),
            Ok(Ok(None)) if image.pull_policy == "Never" => return Err(ImageError::Never(name.to_owned())),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return Err(error),
            Err(panic) => {
                let message = format!("a bug in the agent: {panic}");
                return Err(ImageError::Pull { name: name.to_owned(), message });
            }
        }
    }
    // A pull goes on by itself.
    runtime.pull_image(name, credentials).await.map(drop)
}
