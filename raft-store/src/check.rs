//! Judges of histories, apart from the code under test: the simulator and the chaos tests on real processes share them.
//! Decides only whether a history could be. Must not be used by anything that runs in a cluster.

pub mod linear;
pub mod watch;
