//! netfabric
