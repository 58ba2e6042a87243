//! Controllers and scheduler.
pub mod driver;
