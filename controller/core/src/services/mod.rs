//! Services: what they hold of what is scarce ([`allocate`]), which pods stand behind them ([`backing`]), how
//! clients of the API see that ([`objects`]), and what every host must know of it ([`view`]).
//!
//! Everything here follows from stored objects alone. What a host does with it (rules, names) is the agent's.

pub mod allocate;
pub mod backing;
pub mod objects;
pub mod service;
pub mod view;

/// Who keeps an EndpointSlice, in its label [`MANAGED_BY`]: those of this name are Berth's own.
pub const SLICE_KEEPER: &str = "endpointslice-controller.k8s.io";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The service an EndpointSlice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Who keeps an Endpoints object.
pub const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub const ENDPOINTS_KEEPER: &str = "endpoint-controller";
/// On endpoints of a service without a cluster address.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints that are not to be used for names and rules although they belong to a service.
pub const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// A slice holds no more than this.
pub const MOST_ENDPOINTS: usize = 1000;

/// Namespace and name.
pub type Named = (String, String);
