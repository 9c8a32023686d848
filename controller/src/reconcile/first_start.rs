//! What a new controller begins with. Deleted later, it stays deleted.

use berth_controller_core::{claims, kinds, status::Status};
use serde_json::json;

use crate::objects::Objects;
use crate::store::{Scope, Transaction};

/// Makes the namespaces that everybody expects and the storage class `local`, in a store that has no
/// namespace yet.
pub async fn first_start(objects: &Objects) -> Result<(), Status> {
    let namespaces = &kinds::namespace::NAMESPACE;
    let classes = &kinds::storage_class::STORAGE_CLASS;
    if !objects.store().list(&Scope::all(namespaces.plural)).objects.is_empty() {
        return Ok(());
    }
    // One transaction: either all of it is there, or the next start makes it.
    let mut transaction = Transaction::new();
    for name in ["default", "kube-system", "kube-public"] {
        let labels = json!({"kubernetes.io/metadata.name": name});
        let value =
            objects.stage_create(namespaces, "", json!({"metadata": {"name": name, "labels": labels}}))?;
        let key = crate::objects::key(namespaces, "", name);
        transaction = transaction.absent(key.clone()).put(key, value);
    }
    let key = crate::objects::key(classes, "", "local");
    let class = objects.stage_create(classes, "", claims::local_class())?;
    transaction = transaction.absent(key.clone()).put(key, class);
    objects.store().commit(transaction).await.map_err(|e| Status::internal(e.to_string()))?;
    Ok(())
}
