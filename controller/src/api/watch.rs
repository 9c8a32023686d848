//! Watches: the store's history of a scope as lines of JSON, seen through selectors.
//!
//! The stream is pulled: a client that does not read holds no events, only its place in the history; if the
//! history moves past it, the watch ends with 410 and the client lists again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use berth_controller_core::kinds::Kind;
use berth_controller_core::status::Status;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::accept::Form;
use super::list::{forbidden_option, revision};
use super::query::Query;
use super::respond;
use super::select::Selection;
use super::table::{self, Include};
use crate::store::{self, Event, EventKind, Expired, Object, Revision, Scope, Store};

/// How often a client that wants bookmarks gets one.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long a watch lasts if the client does not say; up to twice that, so that not all end at once.
const LASTS: u64 = 1800;
/// Bytes sent in one piece, about.
const PIECE: usize = 64 * 1024;

/// Begins a watch.
pub fn answer(
    store: &Store,
    scope: &Scope,
    selection: Selection,
    kind: &'static Kind,
    query: &Query,
    (form, include): (Form, Include),
    stop: CancellationToken,
) -> Result<Response, Status> {
    let from = revision(query)?;
    let bookmarks = query.flag("allowWatchBookmarks");
    let initial = initial_events(query)?;
    let lasts = match query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds.unsigned_abs(),
        _ => LASTS + u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * LASTS / 256,
    };
    let printer = Printer { kind, form, include, headers: true };
    let everything = from.unwrap_or_default() == 0;
    let mut watch = Running {
        selection,
        printer,
        waiting: BytesMut::new(),
        initial: Vec::new().into_iter(),
        closing: None,
        bookmarks: bookmarks.then(|| Instant::now() + BOOKMARKS),
        source: None,
        until: Instant::now() + Duration::from_secs(lasts.min(86_400 * 30)),
        stop,
    };
    let start = match initial {
        // What is there now comes first, and then what happens to it.
        Some(true) | None if initial == Some(true) || everything => {
            let list = store.list(scope);
            if let Some(asked) = from
                && asked > list.revision
            {
                return Err(super::list::too_large(asked, list.revision));
            }
            watch.initial = list.objects.into_iter();
            watch.closing = (initial == Some(true) && bookmarks).then_some(list.revision);
            list.revision
        }
        Some(false) if everything => store.revision(),
        _ => from.unwrap_or_default(),
    };
    match store.watch(scope, start) {
        Ok(source) => watch.source = Some(source),
        Err(expired) => watch.expired(expired),
    }
    let stream = stream::unfold(watch, |mut watch| async move {
        let piece = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), watch))
    });
    Ok(respond::body_of(StatusCode::OK, Body::from_stream(stream)))
}

/// `sendInitialEvents`, and whether it is used as it may be.
fn initial_events(query: &Query) -> Result<Option<bool>, Status> {
    let initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    match (initial, query.get("resourceVersionMatch")) {
        (None, None) | (Some(_), Some("NotOlderThan")) => Ok(initial),
        (None, Some(_)) => Err(forbidden_option(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        (Some(_), None) => Err(forbidden_option(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        (Some(_), Some(other)) => Err(Status::new(
            422,
            "Invalid",
            format!(
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: {other:?}: supported values: \"NotOlderThan\""
            ),
        )),
    }
}

struct Running {
    selection: Selection,
    printer: Printer,
    /// Encoded and not sent yet.
    waiting: BytesMut,
    /// Objects still to be shown as they were at the start.
    initial: std::vec::IntoIter<Arc<Object>>,
    /// The bookmark that closes them is still to come.
    closing: Option<Revision>,
    /// When the next bookmark is due, if they are wanted.
    bookmarks: Option<Instant>,
    /// None: nothing comes any more.
    source: Option<store::Watch>,
    until: Instant,
    stop: CancellationToken,
}

impl Running {
    /// The next piece of the stream; None at its end.
    async fn next(&mut self) -> Option<Bytes> {
        while self.waiting.len() < PIECE {
            let Some(object) = self.initial.next() else { break };
            if self.selection.has(&object) {
                self.printer.object(&mut self.waiting, "ADDED", &object.bytes, || object.value());
            }
        }
        if self.initial.len() == 0
            && let Some(revision) = self.closing.take()
        {
            self.printer.bookmark(&mut self.waiting, revision, true);
        }
        while self.waiting.is_empty() {
            self.wait().await?;
        }
        Some(self.waiting.split().freeze())
    }

    /// Waits until something happens; None at the end.
    async fn wait(&mut self) -> Option<()> {
        let source = self.source.as_mut()?;
        let due = self.bookmarks.unwrap_or(self.until).min(self.until);
        let batch = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            batch = source.next() => batch,
            () = sleep_until(due) => {
                if Instant::now() >= self.until {
                    return None;
                }
                let revision = source.revision();
                self.bookmarks = Some(Instant::now() + BOOKMARKS);
                self.printer.bookmark(&mut self.waiting, revision, false);
                return Some(());
            }
        };
        match batch {
            Ok(batch) => batch.events.iter().for_each(|event| self.event(event)),
            Err(expired) => self.expired(expired),
        }
        Some(())
    }

    /// A change, as it looks through the selectors: an object may come into view or leave it.
    fn event(&mut self, event: &Event) {
        let before = event.previous.as_ref().filter(|o| self.selection.has(o));
        let object = &event.object;
        match event.kind {
            EventKind::Deleted => {
                // A deletion without a previous state shows the last one.
                if before.is_some() || (event.previous.is_none() && self.selection.has(object)) {
                    self.printer.object(&mut self.waiting, "DELETED", &object.bytes, || object.value());
                }
            }
            EventKind::Put => match (before, self.selection.has(object)) {
                (None, false) => {}
                (None, true) => {
                    self.printer.object(&mut self.waiting, "ADDED", &object.bytes, || object.value())
                }
                (Some(_), true) => {
                    self.printer.object(&mut self.waiting, "MODIFIED", &object.bytes, || object.value());
                }
                (Some(before), false) => {
                    let mut value = before.value();
                    value["metadata"]["resourceVersion"] = event.revision.to_string().into();
                    let bytes = value.to_string();
                    self.printer.object(&mut self.waiting, "DELETED", bytes.as_bytes(), || value.clone());
                }
            },
        }
    }

    /// The last event: the client must list again.
    fn expired(&mut self, expired: Expired) {
        self.source = None;
        let status = Status::new(410, "Expired", expired.to_string());
        self.printer.line(&mut self.waiting, "ERROR", status.to_json().to_string().as_bytes());
    }
}

/// Writes events in the form the client asked for.
struct Printer {
    kind: &'static Kind,
    form: Form,
    include: Include,
    /// A table's columns are told once.
    headers: bool,
}

impl Printer {
    fn line(&self, out: &mut BytesMut, r#type: &str, object: &[u8]) {
        out.reserve(object.len() + 40);
        out.put_slice(b"{\"type\":\"");
        out.put_slice(r#type.as_bytes());
        out.put_slice(b"\",\"object\":");
        out.put_slice(object);
        out.put_slice(b"}\n");
    }

    fn object(&mut self, out: &mut BytesMut, r#type: &str, bytes: &[u8], value: impl Fn() -> Value) {
        match self.form {
            Form::Table => {
                let value = value();
                let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let headers = std::mem::take(&mut self.headers);
                let table =
                    table::table(self.kind, metadata, &[value], self.include, headers, Timestamp::now());
                self.line(out, r#type, table.to_string().as_bytes());
            }
            Form::Partial => self.line(out, r#type, table::partial(&value()).to_string().as_bytes()),
            _ => self.line(out, r#type, bytes),
        }
    }

    fn bookmark(&mut self, out: &mut BytesMut, revision: Revision, closing: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if closing {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object =
            json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata});
        self.object(out, "BOOKMARK", object.to_string().as_bytes(), || object.clone());
    }
}
