//! Cluster versions: what a cluster may use while its machines run different binaries.
//!
//! Decides which versions this binary supports, what each of them brought, and to which a cluster can be raised. A cluster is at one
//! version; it is raised by a log entry once every member supports more, and never lowered. Whatever an older binary would not
//! understand waits for its version: commands, forms of a snapshot, rules of apply. Must not know how members say what they support.

use std::fmt;

use bincode::{Decode, Encode};

/// A cluster's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Version(pub u32);

/// The first.
pub const FIRST: Version = Version(1);
/// Brought `Command::SetVersion`, version 3 of a state's bytes (which names the cluster's version), and the rule that the running hash
/// covers what the keys hold.
pub const HASHED_VALUES: Version = Version(2);

/// What a binary can take part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supported {
    /// The oldest cluster version.
    pub oldest: Version,
    /// The newest one.
    pub newest: Version,
}

impl Supported {
    /// This binary.
    pub const OURS: Supported = Supported { oldest: FIRST, newest: HASHED_VALUES };
    /// Binaries that say nothing: those from before there were cluster versions.
    pub const UNSAID: Supported = Supported { oldest: FIRST, newest: FIRST };

    /// Whether a machine that supports these can be in a cluster of this version.
    pub fn holds(&self, version: Version) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

/// To which version the cluster should be raised now: the newest that every member supports, if that is more.
pub fn raise(current: Version, members: impl IntoIterator<Item = Supported>) -> Option<Version> {
    let newest = members.into_iter().map(|member| member.newest).min()?;
    (newest > current).then_some(newest)
}

impl Default for Version {
    fn default() -> Version {
        FIRST
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_to(newest: u32) -> Supported {
        Supported { oldest: FIRST, newest: Version(newest) }
    }

    #[test]
    fn a_cluster_is_raised_to_what_its_oldest_member_supports_and_never_lowered() {
        assert_eq!(raise(Version(1), [up_to(3), up_to(2), up_to(3)]), Some(Version(2)));
        assert_eq!(raise(Version(2), [up_to(3), up_to(2)]), None);
        assert_eq!(raise(Version(3), [up_to(1)]), None);
        assert_eq!(raise(Version(1), []), None, "of nobody nothing is known");
        assert_eq!(raise(Version(1), [Supported::UNSAID, Supported::OURS]), None);
    }

    #[test]
    fn a_machine_fits_a_cluster_within_its_bounds() {
        let binary = Supported { oldest: Version(2), newest: Version(4) };
        assert!(!binary.holds(Version(1)), "too new a binary");
        assert!(binary.holds(Version(2)) && binary.holds(Version(4)));
        assert!(!binary.holds(Version(5)), "too old a binary");
    }
}
