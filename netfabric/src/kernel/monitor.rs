//! Hears when others change what is ours.
//!
//! Decides only whether a notification is about our objects. What our own passes cause is drained at their end
//! (`settle`). Must not be relied on alone: notifications get lost; a full pass now and then finds what was missed.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::observe::Indexes;
use super::rtnl::links::read_link;
use super::rtnl::routes::read_route;
use super::socket::{Listener, Raw};
use crate::net::{LINK_GROUP, LinkName};

const LINK_GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6; // RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE
const NFTABLES_GROUP: u32 = 1 << (7 - 1); // NFNLGRP_NFTABLES
const NEW_GENERATION: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | 15; // NFT_MSG_NEWGEN

/// Sockets that collect the kernel's notifications.
#[derive(Debug)]
pub struct Monitor {
    route: Listener,
    netfilter: Listener,
}

/// What happened to our objects since the last pass.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Interfaces of ours that are gone, mostly with their pod's namespace.
    pub lost_links: Vec<LinkName>,
    /// Something else changed: everything has to be looked at.
    pub unknown: bool,
}

#[derive(Default)]
struct Heard {
    lost: BTreeMap<u32, LinkName>,
    touched: Vec<u32>,
    unknown: bool,
}

impl Monitor {
    /// Listens from now on, in the caller's network namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            route: Listener::open(NETLINK_ROUTE, LINK_GROUPS)?,
            netfilter: Listener::open(NETLINK_NETFILTER, NFTABLES_GROUP)?,
        })
    }

    /// What somebody else changed of ours since the last call.
    pub fn drift(&self, indexes: &Indexes) -> Drift {
        let mut heard = Heard::default();
        let lost = self.route.drain(|message| heard.take(message)).is_err();
        let mut committed = false;
        let lost =
            self.netfilter.drain(|message| committed |= message.message_type() == NEW_GENERATION).is_err()
                || lost;
        // What hung on a lost interface went with it.
        let is_ours = |index: &u32| {
            !heard.lost.contains_key(index)
                && indexes.iter().any(|(name, own)| own == index && is_looked_after(name))
        };
        let unknown = heard.unknown || committed || lost || heard.touched.iter().any(is_ours);
        Drift { lost_links: heard.lost.into_values().collect(), unknown }
    }

    /// Forgets what has been heard: a pass of our own caused it.
    pub fn settle(&self) {
        // What was lost here was caused by the pass as well.
        let _ = self.route.drain(|_| ());
        let _ = self.netfilter.drain(|_| ());
    }
}

impl Heard {
    fn take(&mut self, message: Raw<'_>) {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message.into_inner());
        match message.map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => self.take_message(message),
            Ok(_) => {}
            // Whatever it says, it may be about ours.
            Err(_) => self.unknown = true,
        }
    }

    fn take_message(&mut self, message: RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.take_link(&link, false),
            RouteNetlinkMessage::DelLink(link) => self.take_link(&link, true),
            RouteNetlinkMessage::DelRoute(route) => self.unknown |= read_route(&route).is_some(),
            // By then the entry no longer says that it was permanent.
            RouteNetlinkMessage::DelNeighbour(entry) => self.touched.push(entry.header.ifindex),
            RouteNetlinkMessage::DelAddress(address) => self.touched.push(address.header.index),
            _ => {}
        }
    }

    fn take_link(&mut self, message: &LinkMessage, gone: bool) {
        let link = read_link(message);
        let name = LinkName::foreign(link.name);
        if link.group != LINK_GROUP || !(name.is_pod() || name.is_overlay()) {
            return;
        }
        if gone {
            self.lost.insert(link.index, name);
        } else {
            self.unknown |= !link.up;
        }
    }
}

fn is_looked_after(name: &LinkName) -> bool {
    name.is_pod() || name.is_overlay() || name.is_loopback()
}
