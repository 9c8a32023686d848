//! The verbs on objects as requests: what a method on a place means, and its answer.

use axum::extract::Request;
use axum::response::Response;
use berth_controller_core::kinds::{Kind, Subresource};
use berth_controller_core::status::Status;
use http::{Method, StatusCode};
use serde_json::json;

use super::accept::{Form, Offer, negotiate};
use super::connect::Connection;
use super::query::Query;
use super::route::Place;
use super::select::Selection;
use super::table::Include;
use super::{State, body, list, respond, watch};
use crate::objects::{Deleted, Patch, key, scale};
use crate::store::{Object, Scope};

/// Serves a request for objects.
pub async fn serve(state: &State, place: Place, request: Request) -> Result<Response, Status> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match (&place.name, &place.subresource) {
        (None, _) => collection(state, &place, &query, request).await,
        (Some(name), None) => item(state, &place, name, None, &query, request).await,
        (Some(name), Some(sub)) => {
            let Some(found) = subresource(place.kind, sub) else { return Err(respond::no_such_path()) };
            match found {
                Subresource::Connect(sub) => connect(state, &place, name, sub, query, request).await,
                own => item(state, &place, name, Some(own), &query, request).await,
            }
        }
    }
}

/// The subresource of this name that a kind has.
fn subresource(kind: &Kind, name: &str) -> Option<Subresource> {
    kind.subresources.iter().copied().find(|sub| match sub {
        Subresource::Status => name == "status",
        Subresource::Scale => name == "scale",
        Subresource::Finalize => name == "finalize",
        Subresource::Connect(own) => name == *own,
    })
}

async fn collection(
    state: &State,
    place: &Place,
    query: &Query,
    request: Request,
) -> Result<Response, Status> {
    // Objects of all namespaces can be looked at, not written.
    let writable = place.namespace.is_some() || !place.kind.namespaced;
    match *request.method() {
        Method::GET => read_many(state, place, None, query, &request),
        Method::POST if writable => create(state, place, query, request).await,
        Method::DELETE if writable => {
            let selection = Selection::parse(place.kind, query, None)?;
            let options = body::delete_options(request, query).await?;
            let deleted = state
                .objects
                .delete_collection(
                    place.kind,
                    place.namespace.as_deref(),
                    |object| selection.has(object),
                    &options,
                )
                .await?;
            let revision = state.objects.store().revision();
            let found = list::Found { revision, objects: deleted, next: None, remaining: None };
            Ok(list::answer(place.kind, found, Form::Plain, Include::Metadata))
        }
        _ => Err(respond::no_such_method()),
    }
}

fn read_many(
    state: &State,
    place: &Place,
    name: Option<&str>,
    query: &Query,
    request: &Request,
) -> Result<Response, Status> {
    let form = negotiate(request.headers(), Offer::Objects)?;
    let include = include(query)?;
    let selection = Selection::parse(place.kind, query, name)?;
    let resource = key(place.kind, "", "").resource;
    let scope = Scope { resource, namespace: place.namespace.clone() };
    let store = state.objects.store();
    if query.flag("watch") {
        return watch::answer(
            store,
            &scope,
            selection,
            place.kind,
            query,
            (form, include),
            state.stop.clone(),
        );
    }
    Ok(match list::find(store, &scope, &selection, query) {
        Ok(found) => list::answer(place.kind, found, form, include),
        Err(response) => *response,
    })
}

async fn create(state: &State, place: &Place, query: &Query, request: Request) -> Result<Response, Status> {
    let form = negotiate(request.headers(), Offer::Objects)?;
    let include = include(query)?;
    let options = body::options(query)?;
    let value = body::object(request, expected(place.kind, None), &options).await?;
    let object = state.objects.create(place.kind, place.namespace(), value, &options).await?;
    let mut response = list::one(place.kind, &object, form, include, StatusCode::CREATED);
    respond::warn(&mut response, &options.warnings.take());
    Ok(response)
}

async fn item(
    state: &State,
    place: &Place,
    name: &str,
    sub: Option<Subresource>,
    query: &Query,
    request: Request,
) -> Result<Response, Status> {
    let kind = place.kind;
    let method = request.method().clone();
    let readable = sub != Some(Subresource::Finalize);
    if method == Method::GET && sub.is_none() && query.flag("watch") {
        return read_many(state, place, Some(name), query, &request);
    }
    let form = negotiate(request.headers(), Offer::Objects)?;
    let include = include(query)?;
    let answer = |object: &Object| match sub {
        Some(Subresource::Scale) => respond::json(StatusCode::OK, &scale::of(&object.value())),
        _ => list::one(kind, object, form, include, StatusCode::OK),
    };
    match method {
        Method::GET if readable => Ok(answer(&*state.objects.get(kind, place.namespace(), name)?)),
        Method::PUT => {
            let options = body::options(query)?;
            let value = body::object(request, expected(kind, sub), &options).await?;
            let object = state.objects.update(kind, sub, place.namespace(), name, value, &options).await?;
            let mut response = answer(&object);
            respond::warn(&mut response, &options.warnings.take());
            Ok(response)
        }
        Method::PATCH if readable => {
            let options = body::options(query)?;
            let media_type = body::media_type(&request);
            let bytes = body::read(request.into_body()).await?;
            let patch = Patch::parse(&media_type, &bytes)?;
            let object = state.objects.patch(kind, sub, place.namespace(), name, &patch, &options).await?;
            let mut response = answer(&object);
            respond::warn(&mut response, &options.warnings.take());
            Ok(response)
        }
        Method::DELETE if sub.is_none() => {
            let options = body::delete_options(request, query).await?;
            let deleted = state.objects.delete(kind, place.namespace(), name, &options).await?;
            Ok(match &deleted {
                Deleted::Pending(object) => list::one(kind, object, form, include, StatusCode::OK),
                Deleted::Gone(object) => gone(kind, object),
            })
        }
        _ => Err(respond::no_such_method()),
    }
}

/// What a body for this place is to be.
fn expected(kind: &Kind, sub: Option<Subresource>) -> body::Expected<'_> {
    match sub {
        Some(Subresource::Scale) => body::Expected { kind: "Scale", version: "v1", r#type: scale::SCHEMA },
        _ => body::Expected { kind: kind.kind, version: kind.version, r#type: kind.schema },
    }
}

/// What deleting answers when nothing is left to show.
fn gone(kind: &Kind, object: &Object) -> Response {
    let value = object.value();
    let mut details = json!({"name": object.key.name, "kind": kind.plural, "uid": value["metadata"]["uid"]});
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    respond::json(
        StatusCode::OK,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
    )
}

async fn connect(
    state: &State,
    place: &Place,
    name: &str,
    sub: &'static str,
    query: Query,
    request: Request,
) -> Result<Response, Status> {
    let resource = place.kind.resource();
    let Some(connect) = state.connects.iter().find(|c| c.resource == resource && c.subresource == sub) else {
        return Err(respond::no_such_path());
    };
    let allowed = match *request.method() {
        Method::GET => connect.verbs.contains(&"get"),
        Method::POST => connect.verbs.contains(&"create"),
        _ => false,
    };
    if !allowed {
        return Err(respond::no_such_method());
    }
    let object = state.objects.get(place.kind, place.namespace(), name)?;
    (connect.handler)(Connection { kind: place.kind, object, query, request }).await
}

fn include(query: &Query) -> Result<Include, Status> {
    Include::parse(query.get("includeObject")).ok_or_else(|| {
        Status::bad_request(format!(
            "unrecognized includeObject value: {:?}",
            query.get("includeObject").unwrap_or_default()
        ))
    })
}
