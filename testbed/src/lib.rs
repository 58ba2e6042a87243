//! Clusters to break: hosts made of namespaces on one machine, the demo's images, the demo.
//!
//! A [`Bed`] is a switch, some [`Host`]s and an outside. Everything it makes lies in namespaces and cgroups of its
//! own and ends with its process. It must not touch the machine's interfaces, rules, mounts or clock.

pub mod bed;
pub mod bench;
pub mod chaos;
pub mod clock;
pub mod demo;
pub mod host;
pub mod http;
pub mod images;
pub mod init;
pub mod lacking;
mod namespace;
pub mod outside;
pub mod process;
pub mod small_image;
mod sys;
pub mod wire;

pub use bed::{Bed, BedConfig, BedError};
pub use host::{Host, HostError, Kind};
pub use outside::Outside;
pub use process::Output;
