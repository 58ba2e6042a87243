//! Which of the nodes that fit is best: the one with fewest pods of the same group, then the least laden one.
//!
//! Decides the order of nodes, the same for the same facts. Must not decide whether a pod fits.

use super::filter::NodeFacts;
use crate::control::index::Load;
use crate::control::pod::PodFacts;
use crate::control::step::mix;

/// A node's rank for a kind of pod: the least is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    doubled: u32,
    /// Mean share of cpu and memory in use with the pod, in thousandths.
    load: i64,
    /// Between equals: a hash of the pod's group and the node's name, so that not every group begins at the same node.
    lot: u64,
    /// Place of the node in the pass.
    pub node: usize,
}

impl Score {
    pub fn of(at: usize, node: &NodeFacts<'_>, load: &Load, pod: &PodFacts, doubled: u32) -> Score {
        let cpu = share(load.weighed_cpu_millis + pod.requests.weighed_cpu_millis, node.cpu_millis);
        let memory = share(load.weighed_memory_bytes + pod.requests.weighed_memory_bytes, node.memory_bytes);
        Score { doubled, load: i64::midpoint(cpu, memory), lot: lot(&pod.group, node.name), node: at }
    }
}

fn share(used: i64, all: i64) -> i64 {
    used.saturating_mul(1000) / all.max(1)
}

fn lot(group: &str, node: &str) -> u64 {
    let bytes = group.bytes().chain([0]).chain(node.bytes());
    bytes.fold(0, |hash, byte| mix(hash ^ u64::from(byte)))
}
