//! Driver.
pub async fn run(_cluster: std::sync::Arc<crate::cluster::Cluster>) {}
