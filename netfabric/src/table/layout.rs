//! The chains of our table: what every packet of the node passes.
//!
//! Decides the rules, as a function of the networks, the service range and the DNS address; everything that changes
//! often is in sets and maps instead. Must not depend on pods, peers or services.

use std::net::Ipv4Addr;

use super::{Chain, SLOT_MASK, SLOT_SHIFT, draw_chain, slot_chain};
use crate::desired::{Desired, Network};
use crate::net::{Ipv4Net, LinkName, VXLAN_PORT};

/// Declarations of the sets, maps and counters, in nft's syntax.
pub const SETS: &[&str] = &[
    "set peers { type ipv4_addr; }",
    "set node_addresses { type ipv4_addr; }",
    "set pod_sources { type ifname . ipv4_addr; }",
    "map hairpin { type ipv4_addr . ipv4_addr : ipv4_addr; }",
    "map vip_draw { type ipv4_addr . inet_proto . inet_service : verdict; }",
    "map vip_slots { type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; }",
    "set vip_empty { type ipv4_addr . inet_proto . inet_service; }",
    "map port_draw { type inet_proto . inet_service : verdict; }",
    "map port_slots { type inet_proto . inet_service . mark : ipv4_addr . inet_service; }",
    "set port_empty { type inet_proto . inet_service; }",
    "counter strangers { }",
    "counter spoofed { }",
    "counter crossed { }",
    "counter no_endpoints { }",
    "counter untranslated { }",
];

/// All chains that do not depend on numbers of endpoints. Chains come after those that they jump to.
pub fn chains(desired: &Desired) -> Vec<Chain> {
    let local_dns = desired.dns.map(|dns| dns.local);
    vec![
        plain("refuse", refuse()),
        plain("unserved", unserved()),
        plain("services", services()),
        base("guard", "type filter hook prerouting priority raw; policy accept;", guard(desired, local_dns)),
        base("guard_out", "type filter hook output priority raw; policy accept;", untracked(local_dns)),
        base("translate", "type nat hook prerouting priority dstnat; policy accept;", jump_services()),
        base("translate_out", "type nat hook output priority -100; policy accept;", jump_services()),
        base("settle", "type filter hook prerouting priority dstnat + 1; policy accept;", settle()),
        base("settle_out", "type filter hook output priority -99; policy accept;", settle()),
        base("arrive", "type filter hook input priority filter; policy accept;", arrive(desired, local_dns)),
        base("pass", "type filter hook forward priority filter; policy accept;", pass(desired)),
        base("leave", "type filter hook output priority filter; policy accept;", leave(desired, local_dns)),
        base("source", "type nat hook postrouting priority srcnat; policy accept;", source(desired)),
    ]
}

/// The chain that draws one of `count` slots.
pub fn draw(count: u16) -> Chain {
    let rule = if count == 1 {
        format!("goto {}", slot_chain(0))
    } else {
        let arms: Vec<String> =
            (0..count).map(|slot| format!("{slot} : goto {}", slot_chain(slot))).collect();
        format!("numgen random mod {count} vmap {{ {} }}", arms.join(", "))
    };
    plain(&draw_chain(count), vec![rule])
}

/// The chain that writes a slot into our bits of the mark and leaves the others alone.
pub fn slot(slot: u16) -> Chain {
    let rule =
        format!("meta mark set meta mark & {:#010x} | {:#010x}", !SLOT_MASK, u32::from(slot) << SLOT_SHIFT);
    plain(&slot_chain(slot), vec![rule])
}

fn plain(name: &str, rules: Vec<String>) -> Chain {
    Chain { name: name.to_owned(), hook: None, rules }
}

fn base(name: &str, hook: &'static str, rules: Vec<String>) -> Chain {
    Chain { name: name.to_owned(), hook: Some(hook), rules }
}

fn refuse() -> Vec<String> {
    vec!["meta l4proto tcp reject with tcp reset".to_owned(), "reject with icmpx port-unreachable".to_owned()]
}

fn unserved() -> Vec<String> {
    vec![
        "ip daddr . meta l4proto . th dport @vip_empty counter name no_endpoints goto refuse".to_owned(),
        "counter name untranslated".to_owned(),
        "goto refuse".to_owned(),
    ]
}

/// Only the first packet of a connection comes here; the kernel translates the others alike.
fn services() -> Vec<String> {
    vec![
        "ip daddr . meta l4proto . th dport vmap @vip_draw".to_owned(),
        format!(
            "dnat ip to ip daddr . meta l4proto . th dport . (meta mark & {SLOT_MASK:#010x}) map @vip_slots"
        ),
        "ip daddr @node_addresses meta l4proto . th dport vmap @port_draw".to_owned(),
        format!(
            "ip daddr @node_addresses dnat ip to meta l4proto . th dport . (meta mark & {SLOT_MASK:#010x}) map @port_slots"
        ),
    ]
}

fn jump_services() -> Vec<String> {
    vec!["meta l4proto { tcp, udp } jump services".to_owned()]
}

/// The drawn slot is of no use after the translation, and somebody's policy routing might look at it.
fn settle() -> Vec<String> {
    vec![format!("meta mark & {SLOT_MASK:#010x} != 0 meta mark set meta mark & {:#010x}", !SLOT_MASK)]
}

/// Sources that cannot be, before connection tracking sees them.
fn guard(desired: &Desired, local_dns: Option<Ipv4Addr>) -> Vec<String> {
    let mut rules = vec![
        r#"iifname "skp*" meta nfproto ipv6 drop"#.to_owned(),
        r#"iifname "skp*" iifname . ip saddr != @pod_sources counter name spoofed drop"#.to_owned(),
    ];
    for network in &desired.networks {
        let link = LinkName::of_overlay(network.id.0);
        rules.push(format!(r#"iifname "{link}" ip saddr != {} counter name spoofed drop"#, network.cidr));
        rules.push(format!(r#"iifname "{link}" ip saddr {} counter name spoofed drop"#, network.block));
        rules.push(format!(
            r#"iifname != "{link}" iifname != "skp*" iifname != "lo" ip saddr {} counter name spoofed drop"#,
            network.cidr
        ));
    }
    rules.extend(untracked(local_dns));
    rules
}

/// Lookups at the local DNS address cost no tracked connection.
fn untracked(local_dns: Option<Ipv4Addr>) -> Vec<String> {
    let Some(address) = local_dns else { return Vec::new() };
    vec![
        format!("ip daddr {address} meta l4proto {{ tcp, udp }} th dport 53 notrack"),
        format!("ip saddr {address} meta l4proto {{ tcp, udp }} th sport 53 notrack"),
    ]
}

fn arrive(desired: &Desired, local_dns: Option<Ipv4Addr>) -> Vec<String> {
    let mut rules = vec![
        format!("udp dport {VXLAN_PORT} ip saddr != @peers counter name strangers drop"),
        format!("udp dport {VXLAN_PORT} meta nfproto ipv6 counter name strangers drop"),
    ];
    rules.extend(between_networks(&desired.networks));
    rules.push(to_services(desired.service_cidr, local_dns));
    rules.push(
        "ip daddr @node_addresses meta l4proto . th dport @port_empty counter name no_endpoints goto refuse"
            .to_owned(),
    );
    rules
}

fn pass(desired: &Desired) -> Vec<String> {
    // Masqueraded to our address a pod's VXLAN would count as ours with the peer.
    let mut rules =
        vec![format!(r#"iifname "skp*" ip daddr @peers udp dport {VXLAN_PORT} counter name spoofed drop"#)];
    rules.extend(between_networks(&desired.networks));
    rules.push(to_services(desired.service_cidr, None));
    rules
}

fn leave(desired: &Desired, local_dns: Option<Ipv4Addr>) -> Vec<String> {
    vec![to_services(desired.service_cidr, local_dns)]
}

fn to_services(cidr: Ipv4Net, local_dns: Option<Ipv4Addr>) -> String {
    match local_dns {
        Some(address) => format!("ip daddr {cidr} ip daddr != {address} jump unserved"),
        None => format!("ip daddr {cidr} jump unserved"),
    }
}

fn between_networks(networks: &[Network]) -> Vec<String> {
    let others = |of: &Network| -> Vec<String> {
        networks
            .iter()
            .filter(|network| network.id != of.id)
            .map(|network| network.cidr.to_string())
            .collect()
    };
    networks
        .iter()
        .map(|network| (network, others(network)))
        .filter(|(_, others)| !others.is_empty())
        .map(|(network, others)| {
            let others = others.join(", ");
            format!("ip saddr {} ip daddr {{ {others} }} counter name crossed drop", network.cidr)
        })
        .collect()
}

/// Sources of first packets: a pod that reaches itself, the node into the overlay, pods to the outside.
fn source(desired: &Desired) -> Vec<String> {
    let mut rules = vec!["snat ip to ip saddr . ip daddr map @hairpin".to_owned()];
    let cidrs: Vec<String> = desired.networks.iter().map(|network| network.cidr.to_string()).collect();
    let cidrs = cidrs.join(", ");
    for network in &desired.networks {
        let link = LinkName::of_overlay(network.id.0);
        rules
            .push(format!(r#"oifname "{link}" ip saddr != {} snat ip to {}"#, network.cidr, network.overlay));
        rules.push(format!(
            r#"ip saddr {} ip daddr != {{ {cidrs} }} oifname != "skp*" oifname != "skx*" oifname != "lo" masquerade"#,
            network.cidr
        ));
    }
    rules
}
