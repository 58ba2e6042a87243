//! The node's containers: images, root file systems, shims, logs, extra processes.
//!
//! Does what it is told and reports what happened. Restarts, back-off and every other policy are the
//! agent's pod worker's. Uses no other crate of ours; knows nothing of Kubernetes' documents.

pub mod clock;
#[doc(hidden)]
pub mod fuzzing;
pub mod ids;
pub mod image;
pub mod spec;
pub mod state;

pub mod oci;
pub mod shim;

mod bundle;
mod cgroup;
mod files;
mod logs;
mod node;
mod paths;
mod sys;

pub use bundle::BundleError;
pub use cgroup::CgroupError;
pub use logs::{LogError, LogLine, LogOptions, LogReceiver, LogStream};
pub use node::{
    Config, Events, ExecEnd, ExecError, ExecSession, OciRuntime, OpenError, PrepareError, Runtime, Sandbox,
    SandboxError, ShimError, StartError, StopError, VolumeError,
};
