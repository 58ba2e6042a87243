//! The part of an image's configuration that says how to run it.
//!
//! Labels, history and everything else an image claims are not even parsed.

use serde::Deserialize;

use super::manifest::ManifestError;
use crate::ids::Digest;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub working_dir: String,
    pub stop_signal: Option<i32>,
    /// The digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl ImageConfig {
    pub(super) fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self, ManifestError> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|source| ManifestError::Malformed { digest: *digest, source })?;
        let process = document.config.unwrap_or_default();
        Ok(Self {
            user: process.user.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            entrypoint: process.entrypoint.unwrap_or_default(),
            command: process.cmd.unwrap_or_default(),
            working_dir: process.working_dir.unwrap_or_default(),
            stop_signal: process.stop_signal.as_deref().and_then(parse_signal),
            diff_ids: document.rootfs.diff_ids,
        })
    }
}

/// `SIGQUIT`, `QUIT` or `3`.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_absent_fields_are_empty() {
        let text = br#"{"config":{"Env":null,"Cmd":["a"],"StopSignal":"quit"},"rootfs":{"diff_ids":[]}}"#;
        let config = ImageConfig::parse(&Digest::of(text), text).unwrap();
        assert_eq!(config.command, ["a"]);
        assert_eq!(config.stop_signal, Some(3));
        assert_eq!(parse_signal("SIGRTMIN+3"), None);
    }
}
