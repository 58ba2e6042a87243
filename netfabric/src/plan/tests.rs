//! Properties of the planner: whatever the kernel held and in whatever order the world changed, one pass gets there
//! and a second has nothing to do; foreign things are never named.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::plan;
use super::samples::{desired, empty_machine, peer, pod, service};
use crate::action::{Action, Subject};
use crate::desired::{Desired, Endpoint, HostPort, LocalPod, Protocol};
use crate::net::{LinkName, Mac};
use crate::observed::{Frontend, Observed};
use crate::table::Element;

fn settle(desired: &Desired, observed: &mut Observed) -> Vec<Action> {
    let plan = plan(desired, observed);
    let actions: Vec<Action> = plan.steps.into_iter().map(|step| step.action).collect();
    actions.iter().for_each(|action| observed.absorb(action));
    actions
}

fn assert_settled(desired: &Desired, observed: &Observed) {
    let again = plan(desired, observed);
    assert_eq!(again.steps, [], "the second pass");
}

#[test]
fn a_second_plan_is_empty() {
    let mut observed = empty_machine();
    assert!(!settle(&desired(), &mut observed).is_empty());
    assert_settled(&desired(), &observed);
}

#[test]
fn nothing_is_refused_of_a_sane_state() {
    assert_eq!(plan(&desired(), &empty_machine()).refused, []);
}

#[test]
fn a_host_port_gives_way_to_a_node_port_and_is_named() {
    let mut state = desired();
    state.pods[1].host_ports = [30001, 8080].map(host_port).to_vec();
    let plan = plan(&state, &empty_machine());
    assert_eq!(plan.refused.len(), 1, "{:?}", plan.refused);
    assert_eq!(plan.refused[0].subject, Subject::Pod("pod-11".into()));
    assert_eq!(
        plan.refused[0].reason,
        "node port 30001/tcp already belongs to web: choose another port or address"
    );
    let mut observed = empty_machine();
    settle(&state, &mut observed);
    assert_settled(&state, &observed);
    let elements = observed.table.unwrap().elements;
    let behind = |port| -> Vec<Endpoint> {
        let wanted = Frontend::NodePort { protocol: Protocol::Tcp, port };
        let slots = elements.iter().filter_map(|element| match element {
            Element::Slot(frontend, _, endpoint) if *frontend == wanted => Some(*endpoint),
            _ => None,
        });
        slots.collect()
    };
    assert_eq!(behind(8080), [Endpoint { address: [10, 42, 1, 11].into(), port: 80 }]);
    assert_eq!(behind(30001).len(), 2, "both of the service's");
}

#[test]
fn a_later_pod_does_not_take_the_host_port_of_one_that_has_it_whatever_their_uids() {
    let mut state = desired();
    let wanted = Frontend::NodePort { protocol: Protocol::Tcp, port: 8080 };
    for holder in [0, 1] {
        state.pods.iter_mut().for_each(|pod| pod.host_ports.clear());
        state.pods[holder].host_ports = vec![host_port(8080)];
        let mut observed = empty_machine();
        settle(&state, &mut observed);
        state.pods[1 - holder].host_ports = vec![host_port(8080)];
        let refused = plan(&state, &observed).refused;
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].subject, Subject::Pod(state.pods[1 - holder].uid.clone()));
        settle(&state, &mut observed);
        let endpoint = Endpoint { address: state.pods[holder].address, port: 80 };
        let elements = observed.table.unwrap().elements;
        assert!(elements.contains(&Element::Slot(wanted, 0, endpoint)), "{elements:?}");
    }
}

#[test]
fn rules_stand_before_the_first_pod_is_attached() {
    let steps = plan(&desired(), &empty_machine()).steps;
    let first = |wanted: fn(&Action) -> bool| steps.iter().position(|step| wanted(&step.action)).unwrap();
    let rules = first(|action| matches!(action, Action::Table(_)));
    assert!(rules < first(|action| matches!(action, Action::AttachPod { .. })));
    assert!(
        rules < first(|action| matches!(action, Action::SetSysctl { .. })),
        "nothing is forwarded unguarded"
    );
}

#[test]
fn surplus_slots_go_in_a_second_transaction() {
    let mut observed = empty_machine();
    let mut state = desired();
    state.services = vec![service("web", 1, &[10, 11, 12])];
    settle(&state, &mut observed);
    state.services = vec![service("web", 1, &[11, 12])];
    let tables: Vec<_> = settle(&state, &mut observed)
        .into_iter()
        .filter_map(|action| if let Action::Table(transaction) = action { Some(transaction) } else { None })
        .collect();
    let [first, second] = tables.as_slice() else { panic!("{tables:?}") };
    let is_surplus = |element: &Element| matches!(element, Element::Slot(_, 2, _));
    assert!(!first.remove.iter().any(is_surplus), "{first:?}");
    assert!(second.remove.iter().all(is_surplus) && second.remove.len() == 2, "{second:?}");
    assert!(second.delete_chains.contains(&"draw_3".to_owned()));
}

#[test]
fn connections_to_endpoints_that_left_are_forgotten() {
    let mut observed = empty_machine();
    settle(&desired(), &mut observed);
    let mut state = desired();
    state.services[0] = service("web", 1, &[11]);
    let forgotten = settle(&state, &mut observed).into_iter().find_map(|action| match action {
        Action::Forget { flows, .. } => Some(flows),
        _ => None,
    });
    let endpoint = Endpoint { address: Ipv4Addr::new(10, 42, 1, 10), port: 8080 };
    let flows = forgotten.unwrap();
    assert_eq!(flows.len(), 2, "address and node port");
    assert!(flows.iter().all(|flow| flow.endpoint == endpoint));
}

#[test]
fn a_dead_nodes_connections_are_cut_once() {
    let mut observed = empty_machine();
    let mut state = desired();
    settle(&state, &mut observed);
    state.dead_blocks = BTreeSet::from(["10.42.3.0/24".parse().unwrap()]);
    assert!(matches!(settle(&state, &mut observed).as_slice(), [Action::Forget { .. }]));
    assert_settled(&state, &observed);
}

#[test]
fn two_pods_with_one_address_are_not_both_attached() {
    let mut state = desired();
    let mut twin = pod(10);
    twin.uid = "zz".into();
    state.pods.push(twin);
    let plan = plan(&state, &empty_machine());
    assert_eq!(plan.refused.len(), 1);
    assert_eq!(plan.refused[0].subject, Subject::Pod("zz".into()));
    assert!(plan.refused[0].reason.contains("already that of pod pod-10"));
}

#[test]
fn a_foreign_interface_on_our_name_is_reported_and_left_alone() {
    let mut observed = empty_machine();
    observed.taken_names.insert(LinkName::of_overlay(0));
    let plan = plan(&desired(), &observed);
    assert!(plan.refused[0].reason.contains("skx0"), "{:?}", plan.refused);
    assert!(!plan.steps.iter().any(|step| matches!(step.action, Action::DeleteLink { .. })));
}

#[test]
fn fallback_dns_leads_to_the_next_members_that_serve() {
    let mut state = desired();
    state.peers.push(peer("d", 4));
    state.peers[0].serves_dns = false;
    let mut observed = empty_machine();
    settle(&state, &mut observed);
    let frontend =
        Frontend::Vip { address: [10, 43, 0, 11].into(), protocol: crate::desired::Protocol::Udp, port: 53 };
    let behind: Vec<Ipv4Addr> = observed
        .table
        .unwrap()
        .elements
        .iter()
        .filter_map(|element| match element {
            Element::Slot(front, _, endpoint) if *front == frontend => Some(endpoint.address),
            _ => None,
        })
        .collect();
    assert_eq!(behind, [Ipv4Addr::new(10, 42, 3, 0), Ipv4Addr::new(10, 42, 4, 0)]);
}

fn host_port(port: u16) -> HostPort {
    HostPort { protocol: Protocol::Tcp, port, target: 80 }
}

prop_compose! {
    fn any_desired()(
        pods in btree_set((1u8..20, option::of(30000u16..30008)), 0..6),
        peers in btree_set(2u8..9, 0..4),
        services in vec((1u8..5, btree_set(1u8..20, 0..6)), 0..4),
        dead in btree_set(2u8..9, 0..2),
        dns in any::<bool>(),
    ) -> Desired {
        let mut state = desired();
        state.pods = pods.into_iter().map(|(last, port)| LocalPod {
            host_ports: port.map(host_port).into_iter().collect(),
            ..pod(last)
        }).collect();
        state.peers = peers.into_iter().map(|number| peer(&format!("p{number}"), number)).collect();
        state.services = services
            .into_iter()
            .map(|(last, ends)| service(&format!("s{last}"), last, &ends.into_iter().collect::<Vec<_>>()))
            .collect();
        state.dead_blocks = dead.into_iter().map(|n| format!("10.42.{n}.0/24").parse().unwrap()).collect();
        state.dns = state.dns.filter(|_| dns);
        state
    }
}

/// Loses a part of what is in the kernel, as others might do to it.
fn damage(observed: &mut Observed, which: usize) {
    match which {
        0 => observed.table = None,
        1 => {
            let links: Vec<LinkName> = observed.links.keys().cloned().collect();
            links.into_iter().for_each(|link| observed.absorb(&Action::DeleteLink { link }));
        }
        2 => observed.routes.clear(),
        3 => observed.neighbours.clear(),
        4 => observed.forwarding.clear(),
        5 => observed.addresses.clear(),
        6 => observed.pods.clear(),
        7 => observed.links.values_mut().for_each(|link| (link.up, link.mac) = (false, Mac([0; 6]))),
        8 => observed.table.iter_mut().for_each(|table| drop(table.chains.pop_first())),
        9 => observed.table.iter_mut().for_each(|table| drop(table.elements.pop_last())),
        10 => observed.table.iter_mut().for_each(|table| table.version.clear()),
        _ => {}
    }
}

proptest! {
    #[test]
    fn any_history_converges_in_one_pass(history in vec((any_desired(), 0usize..12, 0usize..40), 1..6)) {
        let mut observed = empty_machine();
        for (state, damaged, killed_after) in history {
            // The agent is killed in the middle; then the world changes behind its back.
            let steps = plan(&state, &observed).steps;
            steps.iter().take(killed_after).for_each(|step| observed.absorb(&step.action));
            damage(&mut observed, damaged);
            settle(&state, &mut observed);
            prop_assert_eq!(&plan(&state, &observed).steps, &[]);

            let mut fresh = empty_machine();
            settle(&state, &mut fresh);
            prop_assert_eq!(&observed.links, &fresh.links);
            prop_assert_eq!(&observed.routes, &fresh.routes);
            prop_assert_eq!(&observed.neighbours, &fresh.neighbours);
            prop_assert_eq!(&observed.forwarding, &fresh.forwarding);
            prop_assert_eq!(&observed.addresses, &fresh.addresses);
            prop_assert_eq!(&observed.pods, &fresh.pods);
            prop_assert_eq!(&observed.table.as_ref().map(|table| &table.chains), &fresh.table.as_ref().map(|table| &table.chains));
        }
    }

    #[test]
    fn every_slot_below_the_count_is_filled_at_every_step(before in any_desired(), after in any_desired()) {
        let mut observed = empty_machine();
        settle(&before, &mut observed);
        for step in plan(&after, &observed).steps {
            observed.absorb(&step.action);
            let elements = observed.table.clone().unwrap_or_default().elements;
            let slots: BTreeSet<(Frontend, u16)> = elements.iter().filter_map(|element| match element {
                Element::Slot(frontend, slot, _) => Some((*frontend, *slot)),
                _ => None,
            }).collect();
            for element in &elements {
                if let Element::Draw(frontend, count) = element {
                    prop_assert!((0..*count).all(|slot| slots.contains(&(*frontend, slot))), "{element:?}");
                }
            }
        }
    }

    #[test]
    fn only_our_interfaces_are_ever_named(before in any_desired(), after in any_desired()) {
        let mut observed = empty_machine();
        settle(&before, &mut observed);
        for step in plan(&after, &observed).steps {
            let text = format!("{:?}", step.action);
            prop_assert!(!text.contains("eth0"), "{text}");
        }
    }
}
