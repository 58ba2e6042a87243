//! Who a container's process is: numbers and names, names by the image's own files.
//!
//! Reads /etc/passwd and /etc/group inside the root only, bounded in size. Must not ask this host's user
//! database.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::image::read_in_root;
use crate::spec::Security;

/// Honest user databases are kilobytes (CVE-2026-47262: unbounded parsing of an image's files).
const DATABASE_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("the image has no user named {0:?} in its /etc/passwd; use a numeric uid")]
    NoUser(String),
    #[error("the image has no group named {0:?} in its /etc/group; use a numeric gid")]
    NoGroup(String),
    #[error("the image's {file} cannot be read: {source}")]
    Database { file: &'static str, source: io::Error },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

struct PasswdEntry {
    name: String,
    uid: u32,
    gid: u32,
}

pub(super) fn resolve(root: &OwnedFd, security: &Security, image_user: &str) -> Result<User, UserError> {
    let text = security.user.as_deref().unwrap_or(image_user);
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let entry = find_user(&database(root, "/etc/passwd")?, user);
    let (uid, own_gid) = match (&entry, user.parse()) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Ok(uid)) => (uid, 0),
        (None, Err(_)) => return Err(UserError::NoUser(user.to_owned())),
    };
    let groups = database(root, "/etc/group")?;
    let gid = match (security.group, group.filter(|group| !group.is_empty())) {
        (Some(gid), _) => gid,
        (None, Some(group)) => find_group(&groups, group)?,
        (None, None) => own_gid,
    };
    let mut all = security.supplementary_groups.clone();
    if let Some(entry) = entry {
        all.extend(memberships(&groups, &entry.name));
    }
    all.sort_unstable();
    all.dedup();
    Ok(User { uid, gid, groups: all })
}

fn database(root: &OwnedFd, file: &'static str) -> Result<String, UserError> {
    let bytes = read_in_root(root, Path::new(file), DATABASE_MAX)
        .map_err(|source| UserError::Database { file, source })?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}

/// By name first, as Docker does: a user may be called `1000`.
fn find_user(passwd: &str, wanted: &str) -> Option<PasswdEntry> {
    let entries = || passwd.lines().filter_map(parse_passwd);
    let by_number = || wanted.parse().ok().and_then(|uid: u32| entries().find(|entry| entry.uid == uid));
    entries().find(|entry| entry.name == wanted).or_else(by_number)
}

fn parse_passwd(line: &str) -> Option<PasswdEntry> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(PasswdEntry { name, uid, gid })
}

fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    Some((name, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or("")))
}

fn find_group(groups: &str, wanted: &str) -> Result<u32, UserError> {
    let named = groups.lines().filter_map(parse_group).find(|(name, ..)| *name == wanted);
    let gid = named.map(|(_, gid, _)| gid).or_else(|| wanted.parse().ok());
    gid.ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn memberships(groups: &str, user: &str) -> Vec<u32> {
    let member = |(_, gid, members): (_, u32, &str)| members.split(',').any(|m| m == user).then_some(gid);
    groups.lines().filter_map(parse_group).filter_map(member).collect()
}
