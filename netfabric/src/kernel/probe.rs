//! Looks, at start, whether this kernel and machine have what the fabric needs.
//!
//! Tries it in a scratch network namespace that nobody else sees and that goes away with the thread. Must not touch
//! the machine's own namespace.

use std::io;
use std::net::Ipv4Addr;

use nix::sched::{CloneFlags, unshare};

use super::nft::{self, NftError};
use super::rtnl::{Routing, links};
use crate::net::{LinkName, Mac};

/// What is missing, and how to get it.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No namespaces: not root, or forbidden.
    #[error("cannot make a network namespace: {0}; the agent needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")]
    Namespace(#[source] io::Error),
    /// No VXLAN.
    #[error(
        "this kernel cannot make VXLAN devices ({0}): load the module (modprobe vxlan) or install the kernel's full \
         module package"
    )]
    Vxlan(#[source] io::Error),
    /// The nft program is missing.
    #[error("{0}")]
    Program(#[source] NftError),
    /// The kernel lacks something that our rules use.
    #[error(
        "this kernel cannot take our rules ({0}): load nf_tables, nft_chain_nat, nft_masq, nft_numgen, nft_reject_inet \
             (modprobe), or install the kernel's full module package"
    )]
    Rules(#[source] NftError),
}

/// Tries everything once; `rules` is a script that uses all that we use.
#[expect(clippy::disallowed_methods, reason = "driver: the thread is joined here")]
pub fn probe(rules: String) -> Result<(), ProbeError> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| ProbeError::Namespace(error.into()))?;
        let routing = Routing::open().map_err(ProbeError::Vxlan)?;
        let (link, local) = (LinkName::of_overlay(0), Ipv4Addr::LOCALHOST.into());
        links::create_vxlan(&routing, &link, 1, local, Mac::of_overlay("probe", 0), 1450)
            .map_err(ProbeError::Vxlan)?;
        nft::run_once(&rules).map_err(|error| match error {
            NftError::Start(_) => ProbeError::Program(error),
            error => ProbeError::Rules(error),
        })
    });
    thread
        .join()
        .unwrap_or_else(|_| Err(ProbeError::Namespace(io::Error::other("the probing thread panicked"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as all tests do that ask the kernel for something.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a namespace belongs to a thread")]
    fn a_kernel_that_does_not_know_a_kind_of_interface_is_named_as_such() {
        let asked = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            links::create(&Routing::open().unwrap(), "skx0", "no-such-kind").unwrap_err()
        });
        let answer = asked.join().unwrap();
        assert_eq!(answer.raw_os_error(), Some(libc::EOPNOTSUPP));
        let text = ProbeError::Vxlan(answer).to_string();
        assert!(text.starts_with("this kernel cannot make VXLAN devices (Operation not supported"), "{text}");
        assert!(text.contains("modprobe vxlan"), "{text}");
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let program = ProbeError::Program(NftError::Start(io::ErrorKind::NotFound.into()));
        assert!(program.to_string().contains("apt-get install nftables"), "{program}");
        let rules = ProbeError::Rules(NftError::Refused("Could not process rule: No such file".to_owned()));
        assert!(rules.to_string().contains("nft_numgen"), "{rules}");
    }
}
