//! Lists: which objects, at which revision, in which form.
//!
//! A list is never built as one value: objects' own bytes are sent one after another.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use berth_controller_core::kinds::Kind;
use berth_controller_core::status::Status;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::accept::Form;
use super::query::Query;
use super::respond;
use super::select::Selection;
use super::table::{self, Include};
use crate::store::{Object, Revision, Scope, Store};

/// Objects looked at in one go while a selector is at work.
const PAGE: usize = 512;
/// Bytes of a list sent in one piece, about.
const PIECE: usize = 64 * 1024;

/// What a list found.
#[derive(Debug)]
pub struct Found {
    pub revision: Revision,
    pub objects: Vec<Arc<Object>>,
    /// Where the rest begins, if there is a rest.
    pub next: Option<String>,
    /// How many objects the rest has, if that is known.
    pub remaining: Option<usize>,
}

/// Where a limited list goes on (`continue`).
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    v: String,
    /// -1: at whatever revision is newest.
    rv: i64,
    /// The last object already sent.
    namespace: String,
    name: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl Token {
    fn encode(&self) -> String {
        BASE64.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Token, Status> {
        BASE64
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Token>(&bytes).ok())
            .filter(|token| token.v == TOKEN_VERSION && token.rv != 0)
            .ok_or_else(|| Status::bad_request("continue key is not valid"))
    }
}

/// A revision as clients write it; None if they name none.
pub fn revision(query: &Query) -> Result<Option<Revision>, Status> {
    match query.get("resourceVersion") {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("Invalid value: {text:?}: resourceVersion must be a whole number"))
        }),
    }
}

pub fn forbidden_option(field: &str, why: &str) -> Status {
    Status::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}"))
}

/// Kubernetes' answer to a revision that is still to come.
pub fn too_large(asked: Revision, current: Revision) -> Status {
    let mut status = Status::new(
        504,
        "Timeout",
        format!("Timeout: Too large resource version: {asked}, current: {current}"),
    );
    status.details = json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    });
    status
}

/// Finds what a list request asks for.
pub fn find(
    store: &Store,
    scope: &Scope,
    selection: &Selection,
    query: &Query,
) -> Result<Found, Box<Response>> {
    let options = Options::parse(query, store).map_err(|s| Box::new(respond::status(&s)))?;
    options.find(store, scope, selection)
}

struct Options {
    limit: Option<usize>,
    at: Option<Revision>,
    after: Option<(String, String)>,
    /// Goes on with an earlier list.
    continued: bool,
}

impl Options {
    fn parse(query: &Query, store: &Store) -> Result<Options, Status> {
        let limit = query.number("limit")?.and_then(|l| usize::try_from(l).ok()).filter(|l| *l > 0);
        let version = revision(query)?;
        let exact = match (query.get("resourceVersionMatch"), version) {
            (None, _) => limit.is_some() && query.get("continue").is_none(),
            (Some(_), None) => {
                return Err(forbidden_option(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            (Some("Exact"), Some(0)) => {
                return Err(forbidden_option(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            (Some("Exact"), _) => true,
            (Some("NotOlderThan"), _) => false,
            (Some(other), _) => {
                return Err(Status::new(
                    422,
                    "Invalid",
                    format!(
                        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                    ),
                ));
            }
        };
        if query.get("sendInitialEvents").is_some() {
            return Err(forbidden_option("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        if let Some(text) = query.get("continue") {
            if version.is_some_and(|v| v > 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = Token::decode(text)?;
            let at = Revision::try_from(token.rv).ok();
            return Ok(Options { limit, at, after: Some((token.namespace, token.name)), continued: true });
        }
        if let Some(asked) = version
            && asked > store.revision()
        {
            return Err(too_large(asked, store.revision()));
        }
        let at = version.filter(|v| exact && *v > 0);
        Ok(Options { limit, at, after: None, continued: false })
    }

    fn find(self, store: &Store, scope: &Scope, selection: &Selection) -> Result<Found, Box<Response>> {
        let everything = selection.is_everything();
        let mut found = Found { revision: 0, objects: Vec::new(), next: None, remaining: None };
        let (mut at, mut after) = (self.at, self.after);
        loop {
            let page = match (everything, self.limit) {
                (true, limit) => limit.unwrap_or(usize::MAX),
                (false, _) => PAGE,
            };
            let place = after.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
            let list = match store.list_page(scope, at, place, page) {
                Ok(list) => list,
                Err(_) => return Err(Box::new(expired(self.continued, place))),
            };
            // All pages show the same moment.
            at = Some(list.revision);
            found.revision = list.revision;
            let mut left = list.objects.len();
            for object in list.objects {
                left -= 1;
                after = Some((object.key.namespace.clone(), object.key.name.clone()));
                if !selection.has(&object) {
                    continue;
                }
                found.objects.push(object);
                if self.limit == Some(found.objects.len()) {
                    break;
                }
            }
            let rest = left + list.remaining;
            if rest == 0 {
                return Ok(found);
            }
            if self.limit == Some(found.objects.len()) {
                found.remaining = everything.then_some(rest);
                found.next = after.map(|(namespace, name)| {
                    let rv = i64::try_from(list.revision).unwrap_or(-1);
                    Token { v: TOKEN_VERSION.to_owned(), rv, namespace, name }.encode()
                });
                return Ok(found);
            }
        }
    }
}

/// The state asked for is forgotten. A continued list is offered to go on with the newest state.
fn expired(continued: bool, after: Option<(&str, &str)>) -> Response {
    let status = if continued {
        Status::new(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        )
    } else {
        Status::new(410, "Expired", "The resourceVersion for the provided list is too old.")
    };
    let mut body = status.to_json();
    if let (true, Some((namespace, name))) = (continued, after) {
        let token = Token {
            v: TOKEN_VERSION.to_owned(),
            rv: -1,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        body["metadata"]["continue"] = token.encode().into();
    }
    respond::json(StatusCode::GONE, &body)
}

/// The list as an answer.
pub fn answer(kind: &'static Kind, found: Found, form: Form, include: Include) -> Response {
    let mut metadata = json!({"resourceVersion": found.revision.to_string()});
    if let Some(next) = found.next {
        metadata["continue"] = next.into();
    }
    if let Some(remaining) = found.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let now = Timestamp::now();
    let (head, items) = match form {
        Form::Table => (table::table(kind, metadata, &[], include, true, now), "rows"),
        Form::Partial => (
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}),
            "items",
        ),
        _ => (
            json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata}),
            "items",
        ),
    };
    let encode = move |object: &Object| -> Bytes {
        match form {
            Form::Table => {
                let mut row = table::table(kind, Value::Null, &[object.value()], include, false, now);
                row["rows"][0].take().to_string().into()
            }
            Form::Partial => table::partial(&object.value()).to_string().into(),
            _ => object.bytes.clone(),
        }
    };
    respond::body_of(
        StatusCode::OK,
        Body::from_stream(stream::iter(pieces(head, items, found.objects, encode))),
    )
}

/// `{<head>,"<items>":[...]}` in pieces of bearable size.
fn pieces(
    mut head: Value,
    items: &str,
    objects: Vec<Arc<Object>>,
    encode: impl Fn(&Object) -> Bytes,
) -> impl Iterator<Item = Result<Bytes, std::convert::Infallible>> {
    if let Some(map) = head.as_object_mut() {
        map.remove(items);
    }
    let mut text = head.to_string();
    text.pop();
    let mut piece = BytesMut::from(format!("{text},\"{items}\":[").as_bytes());
    let mut objects = objects.into_iter();
    let mut first = true;
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        while piece.len() < PIECE {
            let Some(object) = objects.next() else {
                done = true;
                piece.extend_from_slice(b"]}\n");
                break;
            };
            if !std::mem::take(&mut first) {
                piece.extend_from_slice(b",");
            }
            piece.extend_from_slice(&encode(&object));
        }
        Some(Ok(piece.split().freeze()))
    })
}

/// One object as an answer.
pub fn one(kind: &'static Kind, object: &Object, form: Form, include: Include, code: StatusCode) -> Response {
    match form {
        Form::Table => {
            let value = object.value();
            let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
            respond::json(code, &table::table(kind, metadata, &[value], include, true, Timestamp::now()))
        }
        Form::Partial => respond::json(code, &table::partial(&object.value())),
        _ => respond::bytes(code, object.bytes.clone()),
    }
}
