//! The kinds that skein serves: their schema, defaults, validation, selectors, patches, tables, discovery documents
//! and manifests.
//!
//! Decides what a well-formed object is and how it is shown. It must not do IO, read a clock or draw randomness:
//! callers hand those in.

pub mod decode;
pub mod defaults;
pub mod discovery;
pub mod duration;
pub mod errors;
pub mod keys;
pub mod kinds;
pub mod manifest;
pub mod names;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod tables;
pub mod validate;

pub use errors::{ApiError, Cause};
pub use kinds::{KINDS, Kind};
pub use object::Object;

/// The Kubernetes release whose API we follow; `/version` and discovery speak of it.
pub const KUBERNETES_VERSION: &str = "v1.35.0";
