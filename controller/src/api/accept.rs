//! What a client accepts, of what is served: JSON, as it is or as one of its transformations.

use berth_controller_core::status::Status;
use http::{HeaderMap, header};

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Plain,
    /// metav1.Table
    Table,
    /// PartialObjectMetadata or its list.
    Partial,
    /// APIGroupDiscoveryList of this version (`v2`, `v2beta1`).
    Discovery(&'static str),
    /// OpenAPI v2 in protobuf.
    OpenApiV2Protobuf,
}

/// The forms an endpoint can give besides plain JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    Objects,
    Discovery,
    OpenApi,
    Nothing,
}

/// The first form the client names that can be given; 406 if there is none.
pub fn negotiate(headers: &HeaderMap, offer: Offer) -> Result<Form, Status> {
    let mut asked = false;
    for value in headers.get_all(header::ACCEPT) {
        for clause in value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|c| !c.is_empty()) {
            asked = true;
            if let Some(form) = read(clause, offer) {
                return Ok(form);
            }
        }
    }
    if asked {
        return Err(Status::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        ));
    }
    Ok(Form::Plain)
}

fn read(clause: &str, offer: Offer) -> Option<Form> {
    let mut parts = clause.split(';').map(str::trim);
    let media = parts.next()?;
    if media == "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
        || media == "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    {
        return (offer == Offer::OpenApi).then_some(Form::OpenApiV2Protobuf);
    }
    if !matches!(media, "application/json" | "application/*" | "*/*") {
        return None;
    }
    let (mut name, mut group, mut version) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => name = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    match (name, group, version, offer) {
        ("", ..) => Some(Form::Plain),
        ("Table", "meta.k8s.io", "v1", Offer::Objects) => Some(Form::Table),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1", Offer::Objects) => {
            Some(Form::Partial)
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2", Offer::Discovery) => {
            Some(Form::Discovery("v2"))
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1", Offer::Discovery) => {
            Some(Form::Discovery("v2beta1"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str, offer: Offer) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        negotiate(&headers, offer).ok()
    }

    #[test]
    fn the_first_form_that_can_be_given_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(table, Offer::Objects), Some(Form::Table));
        assert_eq!(form(table, Offer::Nothing), Some(Form::Plain));
        assert_eq!(
            form("application/vnd.kubernetes.protobuf, application/json", Offer::Objects),
            Some(Form::Plain)
        );
        assert_eq!(form("application/vnd.kubernetes.protobuf", Offer::Objects), None);
        assert_eq!(form("*/*", Offer::Objects), Some(Form::Plain));
        assert_eq!(
            form(
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                Offer::Discovery
            ),
            Some(Form::Discovery("v2"))
        );
        assert_eq!(negotiate(&HeaderMap::new(), Offer::Objects), Ok(Form::Plain));
    }
}
