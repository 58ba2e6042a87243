//! The addresses of this node's pods, out of the node's block.
//!
//! Decides which address a pod gets: the next in turn, so that one that was given back rests for as long as the block allows.
//! What was given is kept in the run directory, which lives exactly as long as the sandboxes do.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Addresses by pod uid.
pub struct Addresses {
    directory: PathBuf,
    block: u8,
    state: Mutex<State>,
}

struct State {
    given: BTreeMap<String, Ipv4Addr>,
    last: u8,
}

/// No address can be given.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("all 252 pod addresses of this node are in use")]
    Exhausted,
    #[error("{}: {cause}", path.display())]
    Record { path: PathBuf, cause: std::io::Error },
}

impl Addresses {
    /// Reads what an earlier agent gave out.
    pub fn open(run: &std::path::Path, block: u8) -> Result<Addresses, AddressError> {
        let directory = run.join("addresses");
        fs::create_dir_all(&directory)
            .map_err(|cause| AddressError::Record { path: directory.clone(), cause })?;
        let entries = fs::read_dir(&directory)
            .map_err(|cause| AddressError::Record { path: directory.clone(), cause })?;
        let mut given = BTreeMap::new();
        for entry in entries.flatten() {
            let address = fs::read_to_string(entry.path()).ok().and_then(|text| text.trim().parse().ok());
            if let (Some(address), Ok(uid)) = (address, entry.file_name().into_string()) {
                given.insert(uid, address);
            }
        }
        let last = given.values().map(|address: &Ipv4Addr| address.octets()[3]).max().unwrap_or(1);
        Ok(Addresses { directory, block, state: Mutex::new(State { given, last }) })
    }

    /// The pod's address, a new one unless it has one.
    pub fn give(&self, uid: &str) -> Result<Ipv4Addr, AddressError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = state.given.get(uid) {
            return Ok(*address);
        }
        let taken: Vec<u8> = state.given.values().map(|address| address.octets()[3]).collect();
        let start = u16::from(state.last.max(1) - 1);
        let next = (0..253u16).map(|step| (2 + (start + step) % 253) as u8).find(|low| !taken.contains(low));
        let low = next.ok_or(AddressError::Exhausted)?;
        let address = Ipv4Addr::new(10, 42, self.block, low);
        let path = self.directory.join(uid);
        fs::write(&path, address.to_string()).map_err(|cause| AddressError::Record { path, cause })?;
        state.given.insert(uid.into(), address);
        state.last = low;
        Ok(address)
    }

    pub fn get(&self, uid: &str) -> Option<Ipv4Addr> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).given.get(uid).copied()
    }

    pub fn take_back(&self, uid: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).given.remove(uid);
        let _ = fs::remove_file(self.directory.join(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_in_turn_and_survive_a_restart() {
        let run = std::env::temp_dir().join(format!("skein-addresses-{}", std::process::id()));
        let addresses = Addresses::open(&run, 3).unwrap();
        let first = addresses.give("a").unwrap();
        let second = addresses.give("b").unwrap();
        assert_eq!((first, second), (Ipv4Addr::new(10, 42, 3, 2), Ipv4Addr::new(10, 42, 3, 3)));
        addresses.take_back("a");
        assert_eq!(addresses.give("c").unwrap(), Ipv4Addr::new(10, 42, 3, 4), "the returned address rests");
        let again = Addresses::open(&run, 3).unwrap();
        assert_eq!(again.give("b").unwrap(), second);
        for n in 0..251 {
            again.give(&format!("x{n}")).unwrap();
        }
        assert!(matches!(again.give("more"), Err(AddressError::Exhausted)));
        fs::remove_dir_all(&run).unwrap();
    }
}
