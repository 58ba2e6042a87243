//! Storage keys of objects: `o/GROUP/PLURAL/NAMESPACE/NAME`, the group `core` for the empty one.
//!
//! Decides the layout of the key space for objects. It must not be bypassed: no other module spells a key of an object.

use crate::kinds::{KINDS, Kind};

/// Everything that is an object lies below this prefix.
pub const OBJECTS: &str = "o/";

fn collection(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group };
    format!("{OBJECTS}{group}/{}/", kind.plural)
}

/// The key of one object.
pub fn object(kind: &Kind, namespace: &str, name: &str) -> String {
    if kind.namespaced {
        format!("{}{namespace}/{name}", collection(kind))
    } else {
        format!("{}{name}", collection(kind))
    }
}

/// The prefix of a collection, of one namespace or of all.
pub fn prefix(kind: &Kind, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) if kind.namespaced => format!("{}{namespace}/", collection(kind)),
        _ => collection(kind),
    }
}

/// What a key names, `None` for keys that are not objects.
pub fn parse(key: &str) -> Option<(&'static Kind, &str, &str)> {
    let mut parts = key.strip_prefix(OBJECTS)?.splitn(3, '/');
    let (group, plural, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let group = if group == "core" { "" } else { group };
    let kind = KINDS.iter().find(|row| row.group == group && row.plural == plural)?;
    if kind.namespaced {
        let (namespace, name) = rest.split_once('/')?;
        Some((kind, namespace, name))
    } else {
        Some((kind, "", rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_can_be_read_back() {
        for row in &KINDS {
            let namespace = if row.namespaced { "ns" } else { "" };
            let key = object(row, namespace, "name");
            assert_eq!(parse(&key), Some((row, namespace, "name")));
            assert!(key.starts_with(&prefix(row, Some("ns"))));
        }
        assert_eq!(parse("m/host1"), None);
    }
}
