//! Reads our table back from what `nft -j list table` prints.
//!
//! Decides which elements are ours to know; what it cannot read becomes a rule or version that no plan wants, so that
//! the table is made anew. Must not fail on what a newer nft adds.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::{Element, NAME, RuleId, SLOT_MASK, SLOT_SHIFT, VERSION_PREFIX};
use crate::desired::{Endpoint, Protocol};
use crate::net::LinkName;
use crate::observed::{Frontend, Table};

/// What is not understood in the table.
const UNREADABLE: &str = "unreadable";

/// The items of a listing in nft's JSON; `None` when the text is not such JSON.
pub fn items(json: &str) -> Option<Vec<Value>> {
    let mut document: Value = serde_json::from_str(json).ok()?;
    match document.get_mut("nftables").map(Value::take) {
        Some(Value::Array(items)) => Some(items),
        _ => None,
    }
}

/// Our table among the items of a listing.
pub fn parse(items: &[Value]) -> Option<Table> {
    let mut table = Table::default();
    let mut present = false;
    for item in items {
        let Some((kind, body)) = item.as_object().and_then(|object| object.iter().next()) else { continue };
        let owner = if kind == "table" { "name" } else { "table" };
        if text(body, "family") != Some("inet") || text(body, owner) != Some(NAME) {
            continue;
        }
        present = true;
        match kind.as_str() {
            "chain" => read_chain(&mut table, text(body, "name").unwrap_or_default()),
            "rule" => read_rule(&mut table, body),
            "set" | "map" => read_elements(&mut table, body),
            _ => {}
        }
    }
    present.then_some(table)
}

fn text<'a>(body: &'a Value, field: &str) -> Option<&'a str> {
    body.get(field)?.as_str()
}

fn read_chain(table: &mut Table, name: &str) {
    if !name.starts_with(VERSION_PREFIX) {
        table.chains.entry(name.to_owned()).or_default();
    } else if table.version != UNREADABLE {
        name.clone_into(&mut table.version);
    }
}

fn read_rule(table: &mut Table, body: &Value) {
    let chain = text(body, "chain").unwrap_or_default().to_owned();
    let id = text(body, "comment").unwrap_or(UNREADABLE).to_owned();
    table.chains.entry(chain).or_default().push(RuleId(id));
}

fn read_elements(table: &mut Table, body: &Value) {
    let set = text(body, "name").unwrap_or_default();
    let Some(elements) = body.get("elem").and_then(Value::as_array) else { return };
    for element in elements {
        match read_element(set, element) {
            Some(element) => drop(table.elements.insert(element)),
            None => UNREADABLE.clone_into(&mut table.version),
        }
    }
}

fn read_element(set: &str, element: &Value) -> Option<Element> {
    // Elements of maps are pairs; a verdict map's value is an object of its own kind.
    let (key, value) = match element.as_array().map(Vec::as_slice) {
        Some([key, value]) => (key, Some(value)),
        _ => (element, None),
    };
    let parts = concat(key);
    Some(match set {
        "peers" => Element::Peer(address(parts.first()?)?),
        "node_addresses" => Element::NodeAddress(address(parts.first()?)?),
        "pod_sources" => {
            Element::PodSource(LinkName::foreign(parts.first()?.as_str()?), address(parts.get(1)?)?)
        }
        "hairpin" => Element::Hairpin(address(parts.first()?)?, address(value?)?),
        "vip_draw" | "port_draw" => Element::Draw(frontend(&parts)?, drawn(value?)?),
        "vip_empty" | "port_empty" => Element::Empty(frontend(&parts)?),
        "vip_slots" | "port_slots" => {
            let (mark, front) = parts.split_last()?;
            Element::Slot(frontend(front)?, slot(mark)?, endpoint(value?)?)
        }
        _ => return None,
    })
}

fn concat(key: &Value) -> Vec<Value> {
    match key.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.clone(),
        None => vec![key.clone()],
    }
}

fn address(value: &Value) -> Option<Ipv4Addr> {
    value.as_str()?.parse().ok()
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

fn protocol(value: &Value) -> Option<Protocol> {
    match (value.as_str(), value.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Some(Protocol::Tcp),
        (Some("udp"), _) | (_, Some(17)) => Some(Protocol::Udp),
        _ => None,
    }
}

fn frontend(parts: &[Value]) -> Option<Frontend> {
    match parts {
        [vip, layer4, number] => {
            Some(Frontend::Vip { address: address(vip)?, protocol: protocol(layer4)?, port: port(number)? })
        }
        [layer4, number] => Some(Frontend::NodePort { protocol: protocol(layer4)?, port: port(number)? }),
        _ => None,
    }
}

fn drawn(value: &Value) -> Option<u16> {
    value.get("jump")?.get("target")?.as_str()?.strip_prefix("draw_")?.parse().ok()
}

fn slot(value: &Value) -> Option<u16> {
    let mark = u32::try_from(value.as_u64()?).ok()?;
    u16::try_from((mark & SLOT_MASK) >> SLOT_SHIFT).ok()
}

fn endpoint(value: &Value) -> Option<Endpoint> {
    let parts = concat(value);
    Some(Endpoint { address: address(parts.first()?)?, port: port(parts.get(1)?)? })
}
