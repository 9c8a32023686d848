//! `pods/eviction`: a deletion that asks the pod's disruption budget first, as `kubectl drain` uses it.
//!
//! The budget gives up one of the disruptions it allows in the transaction that marks the pod as deleted: of two
//! evictions at once, the second is decided on what the first left. It must never delete a pod whose budget did
//! not grant that, nor take from a budget for a pod that stays.

use std::sync::Arc;

use axum::response::Response;
use berth_controller_core::disruption::{self, Needs};
use berth_controller_core::kinds::pod::POD;
use berth_controller_core::kinds::pod_disruption_budget::POD_DISRUPTION_BUDGET;
use berth_controller_core::object;
use berth_controller_core::status::Status;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Connect, Connection, delete_options_of, respond};
use crate::objects::{Objects, key};
use crate::store::{Object, Scope, Transaction};

/// For the API: who evicts.
pub fn connect(objects: Objects) -> Connect {
    Connect::new("pods", "eviction", "Eviction", &["create"], move |connection| {
        let objects = objects.clone();
        async move { evict(&objects, connection).await }
    })
}

async fn evict(objects: &Objects, connection: Connection) -> Result<Response, Status> {
    let pod = connection.object.key.clone();
    let (eviction, writing) = connection.body("Eviction", "v1", "io.k8s.api.policy.v1.Eviction").await?;
    about(&eviction, &pod.namespace, &pod.name)?;
    let mut options = delete_options_of(&eviction["deleteOptions"])?;
    options.dry_run |= writing.dry_run;
    objects
        .delete_with(&POD, &pod.namespace, &pod.name, &options, |value| {
            let budgets = budgets(objects, &pod.namespace);
            let transaction = granted(value, &budgets)?;
            disruption::target(value, "EvictionByEvictionAPI", "Eviction API: evicting", Timestamp::now());
            Ok(transaction)
        })
        .await?;
    let success = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "code": StatusCode::CREATED.as_u16(),
    });
    let mut response = respond::json(StatusCode::CREATED, &success);
    respond::warn(&mut response, &writing.warnings.take());
    Ok(response)
}

/// Whether the object posted is an eviction of this pod.
fn about(eviction: &Value, namespace: &str, name: &str) -> Result<(), Status> {
    let text = |field: &str| eviction[field].as_str().unwrap_or_default();
    if !matches!((text("apiVersion"), text("kind")), ("" | "policy/v1", "" | "Eviction")) {
        return Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as an Eviction of policy/v1",
            text("kind"),
            text("apiVersion")
        )));
    }
    if object::name(eviction) != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let said = object::namespace(eviction);
    if !said.is_empty() && said != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

fn budgets(objects: &Objects, namespace: &str) -> Vec<(Arc<Object>, Value)> {
    let scope = Scope::namespaced(key(&POD_DISRUPTION_BUDGET, "", "").resource, namespace);
    let budgets = objects.store().list(&scope).objects.into_iter();
    budgets.map(|budget| (budget.clone(), budget.value())).collect()
}

/// What the budget gives up, as part of the deletion; or its refusal.
fn granted(pod: &Value, budgets: &[(Arc<Object>, Value)]) -> Result<Transaction, Status> {
    let values: Vec<Value> = budgets.iter().map(|(_, value)| value.clone()).collect();
    let Needs::Disruption(budget) = disruption::needs(pod, &values)? else { return Ok(Transaction::new()) };
    let status = disruption::take(budget, Timestamp::now())?;
    let stored = budgets.iter().find(|(stored, _)| stored.key.name == object::name(budget));
    let Some((stored, value)) = stored else {
        return Err(Status::internal("the budget is not among those of its namespace"));
    };
    let mut value = value.clone();
    value["status"] = status;
    Ok(Transaction::new().unchanged(stored.key.clone(), stored.revision).put(stored.key.clone(), value))
}
