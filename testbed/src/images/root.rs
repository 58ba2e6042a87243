//! A root directory of Debian by debootstrap, in memory, seen by one thread only.
//!
//! Decides where it is built: on a tmpfs in a mount namespace of its own, because dpkg syncs every file it writes and
//! because debootstrap's own mounts must not reach the machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::mirror::Mirror;
use super::{ImageError, at};
use crate::namespace::on_own_thread;

/// Makes the root at `place`, hands it to `act`, and lets it vanish.
pub fn with_debian<T: Send>(
    place: &Path,
    suite: &str,
    packages: &str,
    mirror: &Mirror,
    act: impl FnOnce(&Path) -> Result<T, ImageError> + Send,
) -> Result<T, ImageError> {
    fs::create_dir_all(place).map_err(|e| at(place, e))?;
    let log = place.with_extension("log");
    let made = on_own_thread(|| {
        private_tmpfs(place).map_err(|e| at(place, e.into()))?;
        debootstrap(place, suite, packages, mirror, &log)?;
        act(place)
    });
    fs::remove_dir(place).map_err(|e| at(place, e))?;
    made.map_err(|e| at(place, e))?
}

fn private_tmpfs(place: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=1500m"))
}

fn debootstrap(
    place: &Path,
    suite: &str,
    packages: &str,
    mirror: &Mirror,
    log: &Path,
) -> Result<(), ImageError> {
    let output = fs::File::create(log).map_err(|e| at(log, e))?;
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", &format!("--include={packages}"), suite]).arg(place).arg(&mirror.url);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    if let Some(proxy) = &mirror.proxy {
        command.env("http_proxy", proxy).env("https_proxy", proxy);
    }
    command.stdin(Stdio::null()).stderr(output.try_clone().map_err(|e| at(log, e))?).stdout(output);
    let status = command.status().map_err(ImageError::NoDebootstrap)?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut tail: Vec<&str> = text.lines().rev().take(15).collect();
    tail.reverse();
    Err(ImageError::Debootstrap { mirror: mirror.url.clone(), tail: tail.join("\n") })
}
