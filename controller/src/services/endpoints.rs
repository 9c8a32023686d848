//! Writes each service's Endpoints and EndpointSlices as core says they should be. For people and programs only:
//! hosts do not wait for them, so a service whose pods keep changing is written once in a while.

use std::time::Duration;

use berth_controller_core::kinds::Kind;
use berth_controller_core::kinds::endpoint_slice::ENDPOINT_SLICE;
use berth_controller_core::kinds::endpoints::ENDPOINTS;
use berth_controller_core::kinds::service::SERVICE;
use berth_controller_core::services::{
    ENDPOINTS_KEEPER, ENDPOINTS_MANAGED_BY, MANAGED_BY, Named, SERVICE_NAME, SLICE_KEEPER, objects as made,
};
use berth_controller_core::status::Status;
use serde_json::Value;
use tokio::time::Instant;

use super::{Inner, Services, lock};
use crate::objects::{DeleteOptions, Objects, Options, key};
use crate::reconcile::queue::{Next, Outcome};
use crate::store::{Object, Scope};

/// After a change, so that those that come with it are written together.
const GATHER: Duration = Duration::from_millis(20);
/// Between two writes for one service.
const REST: Duration = Duration::from_secs(1);
const WORKERS: usize = 2;
/// For so many times as long as a write took its worker rests: nobody waits for these objects, and when many services
/// change there is much to do that somebody does wait for.
const RESTS: u32 = 4;

/// Something of this service may have changed.
pub(super) fn look_at(services: &Services, service: Named) {
    let before = lock(&services.inner.written).get(&service).copied();
    let rested = before.map_or(REST, |at| at.elapsed());
    services.inner.queue.add_after(service, REST.saturating_sub(rested).max(GATHER));
}

pub(super) async fn run(services: &Services) {
    let inner = services.inner.clone();
    let queue = inner.queue.clone();
    queue
        .run("endpoints", WORKERS, move |service| {
            let inner = inner.clone();
            async move {
                let begun = Instant::now();
                let done = reconcile(&inner, &service).await;
                tokio::time::sleep(begun.elapsed().saturating_mul(RESTS).min(REST)).await;
                done
            }
        })
        .await;
}

async fn reconcile(inner: &Inner, name: &Named) -> Outcome {
    let (namespace, service_name) = name;
    let objects = &inner.objects;
    let Some(stored) = objects.store().get(&key(&SERVICE, namespace, service_name)) else {
        return gone(inner, name).await;
    };
    let wanted = {
        let state = inner.state();
        // Without a selector, and without a view of it yet, there is nothing to say.
        let Some((service, backends)) = state.view.backends(name).filter(|(s, _)| !s.selector.is_empty())
        else {
            return Ok(Next::Event);
        };
        let service = service.clone();
        drop(state);
        // Made without holding anybody up.
        (service, backends)
    };
    let (service, backends) = wanted;
    if stored.meta.deleting || *stored.meta.uid != *service.uid {
        return Ok(Next::Event);
    }
    lock(&inner.written).insert(name.clone(), Instant::now());
    let labels = &stored.value()["metadata"]["labels"];
    put(objects, &ENDPOINTS, made::endpoints(&service, labels, &backends)).await?;
    let mut slices = made::slices(&service, labels, &backends);
    for there in own_slices(inner, name) {
        match slices.remove(&there.key.name) {
            Some(wanted) => put(objects, &ENDPOINT_SLICE, wanted).await?,
            None => delete(inner, &ENDPOINT_SLICE, &there).await?,
        }
    }
    for wanted in slices.into_values() {
        put(objects, &ENDPOINT_SLICE, wanted).await?;
    }
    Ok(Next::Event)
}

/// There is no such service (any more): what was written for it goes, and so do Endpoints that a person made for
/// a service that was there.
async fn gone(inner: &Inner, name: &Named) -> Outcome {
    lock(&inner.written).remove(name);
    let was_there = lock(&inner.gone).remove(name);
    let endpoints = inner.objects.store().get(&key(&ENDPOINTS, &name.0, &name.1));
    let own = |o: &Object| o.meta.labels.get(ENDPOINTS_MANAGED_BY) == Some(ENDPOINTS_KEEPER);
    if let Some(endpoints) = endpoints.filter(|o| was_there || own(o)) {
        delete(inner, &ENDPOINTS, &endpoints).await?;
    }
    for slice in own_slices(inner, name) {
        delete(inner, &ENDPOINT_SLICE, &slice).await?;
    }
    Ok(Next::Event)
}

fn own_slices(inner: &Inner, name: &Named) -> Vec<std::sync::Arc<Object>> {
    let scope = Scope::namespaced(key(&ENDPOINT_SLICE, "", "").resource, &name.0);
    let mut slices = inner.objects.store().list(&scope).objects;
    slices.retain(|slice| {
        let labels = &slice.meta.labels;
        labels.get(MANAGED_BY) == Some(SLICE_KEEPER) && labels.get(SERVICE_NAME) == Some(&name.1)
    });
    slices
}

/// Writes an object as it should be, if it is not.
pub(super) async fn put(objects: &Objects, kind: &'static Kind, wanted: Value) -> Result<(), Status> {
    let text = |field: &str| wanted["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    if objects.store().get(&key(kind, &namespace, &name)).is_none() {
        match objects.create(kind, &namespace, wanted, &Options::default()).await {
            // In a namespace that is being emptied, or whose service has just been made again.
            Err(status) if matches!(status.code, 403 | 404 | 409) => return Ok(()),
            other => return other.map(|_| ()),
        }
    }
    let written = objects.modify(kind, None, &namespace, &name, |value| {
        for field in ["subsets", "endpoints", "ports"] {
            match wanted.get(field) {
                Some(said) => value[field] = said.clone(),
                None => drop(value.as_object_mut().map(|v| v.remove(field))),
            }
        }
        for field in ["labels", "annotations", "ownerReferences"] {
            value["metadata"][field] = wanted["metadata"][field].clone();
        }
        Ok(())
    });
    match written.await {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

async fn delete(inner: &Inner, kind: &'static Kind, object: &Object) -> Result<(), Status> {
    let options = DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
    match inner.objects.delete(kind, &object.key.namespace, &object.key.name, &options).await {
        Err(status) if !matches!(status.code, 404 | 409) => Err(status),
        _ => Ok(()),
    }
}
