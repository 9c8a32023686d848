//! ServiceAccount: a name that pods carry. No tokens are issued for it.

use super::Kind;
use super::columns::{self, list, number};

pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    columns: &[
        columns::NAME,
        number("Secrets", "How many secrets it refers to.", |account, _| {
            list(&account["secrets"]).len().into()
        }),
        columns::AGE,
    ],
    ..Kind::COMMON
};
