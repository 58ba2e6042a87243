//! Routing netlink, in terms of interface indexes.
//!
//! One function per request or dump. Decides nothing; whose an object is, the caller knows.

pub mod addresses;
pub mod links;
pub mod neighbours;
pub mod routes;

use std::net::{IpAddr, Ipv4Addr};

/// Create, and fail if it is there already.
const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
/// Create or overwrite.
const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}
