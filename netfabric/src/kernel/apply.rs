//! Carries out one action of a plan.
//!
//! Decides nothing but how to say what went wrong and what to do about it. Asking for what is already so succeeds: a
//! plan made from an old picture must not fail because of it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::conntrack::{self, Translated, Which};
use super::nft::{self, NftError, Session};
use super::observe::{self, Indexes};
use super::pod;
use super::rtnl::neighbours::{self, NeighbourInfo};
use super::rtnl::routes::{self, RouteInfo};
use super::rtnl::{Routing, addresses, links};
use super::socket::Requester;
use crate::action::Action;
use crate::desired::{Desired, Protocol};
use crate::net::{Ipv4Net, LOOPBACK_LABEL, LinkName};
use crate::observed::{Flow, Route};
use crate::table::script;

/// From this many bytes on, a script goes to a process of its own.
const LONG_SCRIPT: usize = 64 * 1024;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A kernel setting could not be written.
    #[error("cannot set {path} to {value}: {source}{}", sysctl_advice(.source))]
    Sysctl { path: String, value: String, source: io::Error },
    /// The kernel refused a change.
    #[error("cannot {what}: {source}{}", netlink_advice(.source))]
    Netlink { what: String, source: io::Error },
    /// A pod's namespace could not be set up.
    #[error("cannot attach the pod through {netns}: {source}")]
    Attach { netns: String, source: io::Error },
    /// The rules could not be changed.
    #[error(transparent)]
    Table(#[from] NftError),
}

fn sysctl_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EROFS) => {
            "; /proc/sys is read-only here: set it on the machine itself (sysctl -w net.ipv4.ip_forward=1)"
        }
        Some(libc::EACCES | libc::EPERM) => "; the agent needs root",
        _ => "",
    }
}

fn netlink_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => "; the agent needs CAP_NET_ADMIN",
        Some(libc::EEXIST) => {
            "; something that is not ours is in the way: see ip route, ip addr and ip link, and remove it"
        }
        Some(libc::EOPNOTSUPP) => {
            "; the kernel lacks it: load vxlan and veth (modprobe), or install the full module package"
        }
        _ => "",
    }
}

/// What actions are carried out with.
pub struct Tools<'a> {
    pub route: &'a Routing,
    pub netfilter: &'a Requester,
    pub nft: &'a mut Session,
    pub indexes: &'a mut Indexes,
    pub desired: &'a Desired,
}

impl Tools<'_> {
    /// Carries out one action.
    pub fn apply(&mut self, action: &Action) -> Result<(), ApplyError> {
        match action {
            Action::SetSysctl { path, value } => set_sysctl(path, value),
            Action::CreateOverlay { link, vni, local, mac, mtu } => {
                let made = links::create_vxlan(self.route, link, *vni, *local, *mac, *mtu);
                self.said(format!("make {link} (VXLAN {vni})"), made)?;
                quieten(link);
                Ok(())
            }
            Action::RepairLink { link, mac, mtu } => {
                self.with(link, "repair", |tools, index| links::repair_link(tools.route, index, *mac, *mtu))
            }
            Action::DeleteLink { link } => {
                self.indexes.remove(link);
                let done = absent_is_fine(links::delete_link(self.route, link));
                self.said(format!("remove {link}"), done)
            }
            Action::AddAddress { link, address } => {
                self.with(link, &format!("put {address} on"), |tools, index| {
                    present_is_fine(addresses::add(tools.route, index, *address, label(link)))
                })
            }
            Action::DeleteAddress { link, address } => {
                self.without(link, &format!("take {address} from"), |tools, index| {
                    addresses::delete(tools.route, index, *address, label(link))
                })
            }
            Action::AttachPod { link, netns, address, mtu } => {
                self.indexes.remove(link);
                let netns_name = || netns.display().to_string();
                pod::attach(self.route, link, netns, *address, *mtu)
                    .map_err(|source| ApplyError::Attach { netns: netns_name(), source })?;
                quieten(link);
                Ok(())
            }
            Action::Table(transaction) => Ok(self.run(&script::render(transaction))?),
            Action::Forget { flows, dead } => {
                let done = self.forget(flows, dead);
                self.said("delete tracked connections".to_owned(), done)
            }
            Action::PutRoute { .. } | Action::DeleteRoute { .. } => self.apply_route(action),
            _ => self.apply_entry(action),
        }
    }

    /// Reading a long line is what the interactive nft is slow at (three times the time for 40,000 elements).
    fn run(&mut self, script: &str) -> Result<(), NftError> {
        if script.len() > LONG_SCRIPT { nft::run_once(script) } else { self.nft.run(script) }
    }

    fn apply_route(&mut self, action: &Action) -> Result<(), ApplyError> {
        let (to, route) = match action {
            Action::PutRoute { to, route, .. } | Action::DeleteRoute { to, route } => (to, route),
            _ => return Ok(()),
        };
        let Some(info) = self.route_info(*to, route).transpose() else { return Ok(()) };
        let done = info.and_then(|info| match action {
            Action::PutRoute { replace, .. } => routes::put_route(self.route, &info, *replace),
            _ => absent_is_fine(routes::delete_route(self.route, &info)),
        });
        self.said(format!("change the route to {to}"), done)
    }

    /// `None`: the interface is gone, and the route with it.
    fn route_info(&mut self, to: Ipv4Net, route: &Route) -> io::Result<Option<RouteInfo>> {
        let Some(link) = route.link() else { return Ok(Some(RouteInfo::unreachable(to))) };
        let Some(index) = self.index(link)? else { return Ok(None) };
        Ok(Some(match route {
            Route::Overlay { via, source, .. } => RouteInfo::through(to, index, *via, Some(*source)),
            Route::Pod { source, .. } | Route::Source { source, .. } => {
                RouteInfo::direct(to, index, Some(*source))
            }
            Route::Unreachable => RouteInfo::unreachable(to),
        }))
    }

    fn apply_entry(&mut self, action: &Action) -> Result<(), ApplyError> {
        match action {
            Action::PutNeighbour { link, address, mac } => {
                self.with(link, &format!("put neighbour {address} on"), |tools, index| {
                    neighbours::put_neighbour(
                        tools.route,
                        NeighbourInfo { link: index, address: *address, mac: *mac },
                    )
                })
            }
            Action::DeleteNeighbour { link, address } => {
                self.without(link, &format!("take neighbour {address} from"), |tools, index| {
                    neighbours::delete_neighbour(tools.route, index, *address)
                })
            }
            Action::PutForwarding { link, mac, to } => {
                self.with(link, &format!("send {mac} to {to} on"), |tools, index| {
                    neighbours::put_forwarding(
                        tools.route,
                        NeighbourInfo { link: index, address: *to, mac: *mac },
                    )
                })
            }
            Action::DeleteForwarding { link, mac, to } => {
                self.without(link, &format!("no longer send {mac} to {to} on"), |tools, index| {
                    let entry = NeighbourInfo { link: index, address: *to, mac: *mac };
                    neighbours::delete_forwarding(tools.route, entry)
                })
            }
            _ => Ok(()),
        }
    }

    fn forget(&self, flows: &[Flow], dead: &[Ipv4Net]) -> io::Result<()> {
        let flows: BTreeSet<&Flow> = flows.iter().collect();
        let protocols: Vec<Protocol> = flows.iter().map(|flow| flow.frontend.protocol()).collect();
        let left = |found: &Translated| {
            let frontend = observe::frontend_of(found, self.desired);
            frontend.is_some_and(|frontend| flows.contains(&Flow { frontend, endpoint: found.endpoint }))
        };
        for found in conntrack::movable(self.netfilter, &protocols)?.iter().filter(|found| left(found)) {
            conntrack::delete(self.netfilter, found)?;
        }
        if dead.is_empty() {
            return Ok(());
        }
        let cut = |found: &&Translated| dead.iter().any(|block| block.contains(found.endpoint.address));
        for found in conntrack::translated(self.netfilter, Which::All)?.iter().filter(cut) {
            conntrack::delete(self.netfilter, found)?;
        }
        Ok(())
    }

    fn index(&mut self, link: &LinkName) -> io::Result<Option<u32>> {
        if let Some(index) = self.indexes.get(link) {
            return Ok(Some(*index));
        }
        let found = links::link_by_name(self.route, link.as_str())?.map(|found| found.index);
        if let Some(index) = found {
            self.indexes.insert(link.clone(), index);
        }
        Ok(found)
    }

    fn with(
        &mut self,
        link: &LinkName,
        what: &str,
        work: impl FnOnce(&mut Self, u32) -> io::Result<()>,
    ) -> Result<(), ApplyError> {
        let index = self.index(link).and_then(|index| {
            index.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the interface does not exist"))
        });
        let done = index.and_then(|index| work(self, index));
        self.said(format!("{what} {link}"), done)
    }

    /// Removes something from an interface; without the interface there is nothing to remove.
    fn without(
        &mut self,
        link: &LinkName,
        what: &str,
        work: impl FnOnce(&mut Self, u32) -> io::Result<()>,
    ) -> Result<(), ApplyError> {
        match self.index(link) {
            Ok(None) => Ok(()),
            Ok(Some(index)) => {
                let done = absent_is_fine(work(self, index));
                self.said(format!("{what} {link}"), done)
            }
            Err(source) => Err(ApplyError::Netlink { what: format!("find {link}"), source }),
        }
    }

    fn said(&self, what: String, done: io::Result<()>) -> Result<(), ApplyError> {
        done.map_err(|source| ApplyError::Netlink { what, source })
    }
}

fn label(link: &LinkName) -> Option<&'static str> {
    (*link == LinkName::loopback()).then_some(LOOPBACK_LABEL)
}

fn set_sysctl(path: &str, value: &str) -> Result<(), ApplyError> {
    let failed = |source| ApplyError::Sysctl { path: path.to_owned(), value: value.to_owned(), source };
    std::fs::write(Path::new("/proc/sys").join(path), value).map_err(failed)
}

/// No IPv6 chatter on interfaces that carry only IPv4, and loose reverse path filtering where the machine has it
/// strict: our own table checks sources. Not worth a failure.
fn quieten(link: &LinkName) {
    for (path, value) in [("ipv6/conf", "disable_ipv6"), ("ipv4/conf", "rp_filter")] {
        let file = Path::new("/proc/sys/net").join(path).join(link.as_str()).join(value);
        let _ = std::fs::write(file, if value == "rp_filter" { "2" } else { "1" });
    }
}

fn present_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.raw_os_error() == Some(libc::EEXIST) { Ok(()) } else { Err(error) })
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    const ABSENT: [i32; 5] = [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENXIO];
    result.or_else(|error| {
        if error.raw_os_error().is_some_and(|code| ABSENT.contains(&code)) { Ok(()) } else { Err(error) }
    })
}
