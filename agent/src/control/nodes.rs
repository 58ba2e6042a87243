//! Pods on dead nodes.
//!
//! Decides when a node counts as lost, and what becomes of its pods that no controller replaces. Controllers replace their own
//! ([`super::replica_set`], [`super::job`]), in the transaction that removes the lost ones. Must not decide deaths.

use api::Object;
use api::kinds::Kind;

use super::conditions::{self, Condition};
use super::index::{Known, World};
use super::key::ObjectKey;
use super::pod::PodFacts;
use super::removal;
use super::step::{Context, Step};

/// A node's key.
pub fn key(node: &str) -> Option<ObjectKey> {
    Kind::by_name("Node").map(|kind| ObjectKey::new(kind, "", node))
}

/// Whether pods bound to this node are lost: its death is written down, or it was removed from the cluster.
pub fn is_lost(world: &World, node: &str) -> bool {
    key(node).and_then(|key| world.get(&key)).is_none_or(|known| is_dead(&known.object))
}

/// The leader has set the Ready condition to Unknown.
fn is_dead(node: &Object) -> bool {
    node.list("/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "Unknown")
}

/// Whether a pod's controller should remove and replace it because its node is lost. What is on its way out anyway
/// goes even with the brake on: nobody is left to finish it.
pub fn is_forfeit(cx: &Context<'_>, pod: &PodFacts) -> bool {
    let lost = !pod.node.is_empty() && !pod.ended() && is_lost(cx.world, &pod.node);
    lost && (pod.deleting || !cx.brake)
}

/// Gives a forfeit pod up, for whoever replaces it. One with finalizers stays until they are gone, marked, and counts no more.
pub fn give_up(cx: &Context<'_>, (key, known, pod): (&ObjectKey, &Known, &PodFacts), step: &mut Step) {
    let writes = step.writes.len();
    removal::remove(cx, key, known, step);
    if step.writes.len() == writes {
        return;
    }
    step.reads.extend(self::key(&pod.node).filter(|node| cx.known(node).is_some()));
    let text = format!("Node {} does not answer: the pod is replaced", pod.node);
    step.warn((known.kind, &known.object), "TaintManagerEviction", text);
}

/// What becomes of the pods of a lost node that no controller removes.
pub fn reconcile(cx: &Context<'_>, node: &str) -> Vec<Step> {
    if !is_lost(cx.world, node) {
        return Vec::new();
    }
    let pods = cx.world.pods_on(node).filter(|(_, _, pod)| !(is_replaced(cx, pod) && is_forfeit(cx, pod)));
    let steps = pods.map(|(key, known, pod)| {
        let mut step = Step::default();
        if pod.deleting && known.object.finalizers().is_empty() {
            step.delete(key.clone());
        } else if pod.is_ready() {
            let mut kept = known.object.clone();
            let message = "the node does not answer";
            for name in ["Ready", "ContainersReady"] {
                let condition = Condition { name, status: "False", reason: "NodeLost", message };
                conditions::set(&mut kept, &condition, &cx.time());
            }
            let text = format!("Node {node} does not answer; nothing replaces this pod");
            step.warn((known.kind, &known.object), "NodeNotReady", text);
            step.put_changed(key, known, kept);
        }
        step
    });
    steps.collect()
}

/// Whether one of our controllers looks after it.
fn is_replaced(cx: &Context<'_>, pod: &PodFacts) -> bool {
    let owner = pod.controller.as_ref().and_then(|uid| cx.world.by_uid(uid));
    owner.is_some_and(|(_, known)| matches!(known.kind.kind, "ReplicaSet" | "Job"))
}
