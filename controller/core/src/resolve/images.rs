//! The images of a pod, and what they are pulled with: all that can be said of a pod before it has a host.

use std::cell::RefCell;
use std::collections::BTreeSet;

use berth_proto::Prefetch;
use berth_proto::prefetch::Image;
use serde_json::Value;

use super::{Lookups, Sources, list, registry, text};
use crate::object;

/// What a host is asked for so that this pod (perhaps only about to be made) finds its images there. Each
/// image once, in order of name; two policies for one image are two.
pub fn images(pod: &Value, lookups: &dyn Lookups) -> Prefetch {
    let sources = Sources { lookups, namespace: object::namespace(pod), uses: RefCell::default() };
    let spec = &pod["spec"];
    let containers = list(&spec["initContainers"]).chain(list(&spec["containers"]));
    let images: BTreeSet<(String, String)> =
        containers.map(|c| (text(&c["image"]), text(&c["imagePullPolicy"]))).collect();
    Prefetch {
        operation_id: 0,
        images: images.into_iter().map(|(image, pull_policy)| Image { image, pull_policy }).collect(),
        registry_auth: registry::credentials(pod, &sources),
    }
}
