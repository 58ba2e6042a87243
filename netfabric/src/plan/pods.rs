//! Which of the desired pods can be had.
//!
//! Decides conflicts among pods: the first by uid wins, the other is refused with the reason. Must not attach anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::Draft;
use crate::action::Subject;
use crate::desired::{Desired, LocalPod, Network};
use crate::net::LinkName;

/// A pod that will be attached, with what follows from it.
pub struct Pod<'a> {
    pub pod: &'a LocalPod,
    pub network: &'a Network,
    pub link: LinkName,
}

/// The pods in order of their uids, without those that contradict another or the networks.
pub fn accepted<'a>(desired: &'a Desired, draft: &mut Draft) -> Vec<Pod<'a>> {
    let mut sorted: Vec<&LocalPod> = desired.pods.iter().collect();
    sorted.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut addresses: BTreeMap<Ipv4Addr, &LocalPod> = BTreeMap::new();
    let mut links = BTreeSet::new();
    let mut accepted = Vec::new();
    for pod in sorted {
        match check(desired, pod, &addresses, &links, draft) {
            Ok(found) => {
                addresses.insert(pod.address, pod);
                links.insert(found.link.clone());
                accepted.push(found);
            }
            Err(reason) => draft.refuse(Subject::Pod(pod.uid.clone()), reason),
        }
    }
    accepted
}

fn check<'a>(
    desired: &'a Desired,
    pod: &'a LocalPod,
    addresses: &BTreeMap<Ipv4Addr, &LocalPod>,
    links: &BTreeSet<LinkName>,
    draft: &Draft,
) -> Result<Pod<'a>, String> {
    let network = desired.networks.iter().find(|network| network.id == pod.network);
    let network = network.ok_or_else(|| format!("this node has no part of network {} yet", pod.network.0))?;
    if let Some(other) = addresses.get(&pod.address) {
        return Err(format!("address {} is already that of pod {}", pod.address, other.uid));
    }
    if !network.block.contains(pod.address) || pod.address == network.overlay {
        return Err(format!(
            "address {} is not for pods: this node gives out {} without {}",
            pod.address, network.block, network.overlay
        ));
    }
    let link = LinkName::of_pod(&pod.uid.0);
    if links.contains(&link) {
        return Err(format!(
            "interface name {link} is already that of another pod; delete and recreate the pod"
        ));
    }
    if draft.after.taken_names.contains(&link) {
        return Err(format!(
            "an interface {link} that is not ours is in the way; remove it (ip link del {link})"
        ));
    }
    Ok(Pod { pod, network, link })
}
