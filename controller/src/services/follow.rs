//! Keeps the view up to date with the store, and tells what has changed: to the listeners by a new revision, to
//! the writer of Endpoints by its queue.

use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_controller_core::identity::{self, Record};
use berth_controller_core::kinds::endpoint_slice::ENDPOINT_SLICE;
use berth_controller_core::kinds::endpoints::ENDPOINTS;
use berth_controller_core::kinds::service::SERVICE;
use berth_controller_core::services::view::{self, View};
use berth_controller_core::services::{
    ENDPOINTS_KEEPER, ENDPOINTS_MANAGED_BY, MANAGED_BY, Named, SLICE_KEEPER,
};
use berth_proto::NetworkUpdate;
use futures_util::{FutureExt as _, future};

use super::{LOG, Services, State, Told, endpoints, lock};
use crate::objects;
use crate::store::{Event, EventKind, Expired, Key, Object, Scope, Store, Watch};

/// The least time between two revisions; what happens in between is told together.
const REST: Duration = Duration::from_millis(5);
/// And for each listener, whom to tell costs something: with 500 of them, 55 ms in all.
const REST_EACH: Duration = Duration::from_micros(100);

/// Follows the store, for ever.
pub(super) async fn run(services: &Services) {
    let store = services.inner.objects.store().clone();
    loop {
        let watches = match Watches::new(&store) {
            Ok(watches) => watches,
            Err(_) => continue,
        };
        {
            let mut state = services.inner.state();
            state.view.begin_again();
            load(&store, &mut state.view);
        }
        publish(services, true);
        let Err(expired) = go_on(services, watches).await;
        tracing::debug!(%expired, "fell behind; reading everything again");
    }
}

async fn go_on(services: &Services, mut watches: Watches) -> Result<std::convert::Infallible, Expired> {
    loop {
        let events = watches.next().await?;
        apply(services, &events);
        while let Some(events) = watches.poll()? {
            apply(services, &events);
        }
        publish(services, false);
        let listeners = services.inner.listeners.load(Ordering::Relaxed);
        let rest = REST + REST_EACH.saturating_mul(u32::try_from(listeners).unwrap_or(u32::MAX));
        tokio::time::sleep(rest).await;
    }
}

fn load(store: &Store, view: &mut View) {
    for resource in Watches::resources() {
        for object in store.list(&Scope::all(resource)).objects {
            put(view, &object);
        }
    }
}

fn apply(services: &Services, events: &[Event]) {
    let mut state = services.inner.state();
    for event in events {
        let object = &event.object;
        if event.kind == EventKind::Put {
            put(&mut state.view, object);
            continue;
        }
        let name = named(&object.key);
        match &*object.key.resource {
            "nodes" => state.view.node(&name.1, None),
            "pods" => state.view.pod(&name, None),
            identity::RESOURCE => state.view.record(&name, None),
            resource if resource == SERVICE.plural => {
                lock(&services.inner.gone).insert(name.clone());
                state.view.service(&name, None);
            }
            // Berth's own that somebody deletes comes back.
            resource if resource == ENDPOINTS.plural && is_own(object) => endpoints::look_at(services, name),
            resource if resource == ENDPOINTS.plural => state.view.endpoints(&name, None),
            _ if is_own(object) => {
                let service = object.meta.labels.get(berth_controller_core::services::SERVICE_NAME);
                endpoints::look_at(services, (name.0, service.unwrap_or_default().to_owned()));
            }
            _ => state.view.slice(&name, None),
        }
    }
}

fn put(view: &mut View, object: &Object) {
    let name = named(&object.key);
    match &*object.key.resource {
        "nodes" => view.node(&name.1, Some(&object.value())),
        "pods" => view.pod(&name, Some(&object.value())),
        identity::RESOURCE => view.record(&name, Record::read(&object.value()).as_ref()),
        resource if resource == SERVICE.plural => view.service(&name, Some(&object.value())),
        // Those that follow from the view are no news to it, and not worth reading.
        resource if resource == ENDPOINTS.plural => {
            view.endpoints(&name, Some(object).filter(|o| !is_own(o)).map(|o| o.value()).as_ref());
        }
        _ => view.slice(&name, Some(object).filter(|o| !is_own(o)).map(|o| o.value()).as_ref()),
    }
}

fn is_own(object: &Object) -> bool {
    let labels = &object.meta.labels;
    labels.get(MANAGED_BY) == Some(SLICE_KEEPER) || labels.get(ENDPOINTS_MANAGED_BY) == Some(ENDPOINTS_KEEPER)
}

fn named(key: &Key) -> Named {
    (key.namespace.clone(), key.name.clone())
}

/// Makes a revision of what has changed; `first`: also if nothing has, since now everything is known.
fn publish(services: &Services, first: bool) {
    let inner = &services.inner;
    let mut state = inner.state();
    let refreshed = state.view.refresh();
    if refreshed.update.is_some() || (first && state.revision == 0) {
        state.log(refreshed.update.unwrap_or_default());
        let revision = state.revision;
        drop(state);
        inner.newest.send_replace(revision);
    }
    for service in refreshed.services {
        endpoints::look_at(services, service);
    }
}

impl State {
    fn log(&mut self, update: NetworkUpdate) {
        self.revision += 1;
        for part in view::split(update) {
            let told = Told::new(part);
            self.logged += told.weight;
            self.log.push_back((self.revision, told));
        }
        while self.logged > LOG && self.log.len() > 1 {
            let Some((_, oldest)) = self.log.pop_front() else { break };
            self.logged -= oldest.weight;
        }
    }
}

/// Everything the view is made from, watched.
struct Watches {
    all: Vec<Watch>,
}

impl Watches {
    fn resources() -> impl Iterator<Item = std::borrow::Cow<'static, str>> {
        let kinds = [&SERVICE, &ENDPOINTS, &ENDPOINT_SLICE];
        let kinds = kinds.map(|kind| objects::key(kind, "", "").resource);
        ["nodes", "pods", identity::RESOURCE].map(Into::into).into_iter().chain(kinds)
    }

    fn new(store: &Store) -> Result<Watches, Expired> {
        let now = store.revision();
        let all = Watches::resources().map(|resource| store.watch(&Scope::all(resource), now));
        Ok(Watches { all: all.collect::<Result<_, _>>()? })
    }

    /// What happened, of whichever kind comes first. May be dropped at any time.
    async fn next(&mut self) -> Result<Vec<Event>, Expired> {
        let waiting = self.all.iter_mut().map(|watch| watch.next().boxed());
        let (batch, _, _) = future::select_all(waiting).await;
        Ok(batch?.events)
    }

    /// What else has happened already.
    fn poll(&mut self) -> Result<Option<Vec<Event>>, Expired> {
        let mut events = Vec::new();
        for watch in &mut self.all {
            events.extend(watch.poll()?.into_iter().flat_map(|batch| batch.events));
        }
        Ok((!events.is_empty()).then_some(events))
    }
}
