//! What a loop sees of the store: everything there is, then every change.

use std::sync::Arc;

use crate::store::{Event, Object, Scope, Store};

pub enum Seen<'a> {
    /// All there is: at the start, and again if this loop has fallen so far behind that it may have missed
    /// something (also that something is gone).
    All(&'a [Arc<Object>]),
    Changed(&'a Event),
}

/// Shows a scope to a loop, for ever.
pub async fn follow(store: &Store, scope: Scope, mut see: impl FnMut(Seen<'_>)) {
    loop {
        let list = store.list(&scope);
        see(Seen::All(&list.objects));
        let mut after = store.watch(&scope, list.revision);
        while let Ok(watch) = &mut after {
            match watch.next().await {
                Ok(batch) => batch.events.iter().for_each(|event| see(Seen::Changed(event))),
                Err(expired) => after = Err(expired),
            }
        }
        tracing::debug!(resource = %scope.resource, "fell behind; looking at everything again");
        tokio::task::yield_now().await;
    }
}
