//! The long-lived `nft -i` process: a change takes 0.3 ms through it, 18 ms through a new process.
//!
//! Runs scripts and tells whether they took effect. Decides nothing. nft prints no word after success, so every script
//! is followed by a line that is always wrong, and what comes before the complaint about that line is the answer.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long nft may take for a transaction.
const PATIENCE_MS: u16 = 30_000;
/// nft keeps every line in its history, in memory: after so many bytes a new process takes over.
const HISTORY_LIMIT: usize = 8 << 20;

/// Why a script had no effect.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is missing.
    #[error("cannot run nft: {0}; install it (apt-get install nftables)")]
    Start(#[source] io::Error),
    /// nft or the kernel refused; nothing was changed.
    #[error("nft refused: {0}")]
    Refused(String),
    /// The process went away or hung; the transaction may or may not have taken effect.
    #[error("nft stopped answering: {0}")]
    Lost(String),
}

/// The process, started when first needed.
#[derive(Debug, Default)]
pub struct Session {
    running: Option<Running>,
    scripts: u64,
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    errors: ChildStderr,
    sent: usize,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Session {
    /// Runs a script of one line: one transaction.
    pub fn run(&mut self, script: &str) -> Result<(), NftError> {
        if self.running.as_ref().is_some_and(|running| running.sent > HISTORY_LIMIT) {
            self.running = None;
        }
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start().map_err(NftError::Start)?,
        };
        self.scripts += 1;
        let answer = running.ask(script, &format!("@done{}", self.scripts))?;
        self.running = Some(running);
        match complaint(&answer) {
            None => Ok(()),
            Some(complaint) => Err(NftError::Refused(complaint)),
        }
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let mut child = Command::new("nft")
            .arg("-i")
            // It would read and write a history file in the home directory.
            .env("HOME", "/nonexistent")
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let gone = || io::Error::other("its pipes are missing");
        let (input, errors) = (child.stdin.take().ok_or_else(gone)?, child.stderr.take().ok_or_else(gone)?);
        Ok(Self { child, input, errors, sent: 0 })
    }

    /// Sends the script and the wrong line, and reads up to nft's complaint about the latter.
    fn ask(&mut self, script: &str, wrong: &str) -> Result<String, NftError> {
        let line = format!("{script}\n{wrong}\n");
        self.sent += line.len();
        self.input.write_all(line.as_bytes()).map_err(|error| NftError::Lost(error.to_string()))?;
        let end = format!("{wrong}\n^\n");
        let mut answer = Vec::new();
        let mut chunk = [0; 16 * 1024];
        while !answer.ends_with(end.as_bytes()) {
            let mut ready = [PollFd::new(self.errors.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::from(PATIENCE_MS)) {
                Ok(0) => return Err(NftError::Lost(format!("silent for {PATIENCE_MS} ms"))),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(NftError::Lost(error.to_string())),
                Ok(_) => {}
            }
            let length = self.errors.read(&mut chunk).map_err(|error| NftError::Lost(error.to_string()))?;
            if length == 0 {
                return Err(NftError::Lost(format!("it ended: {}", String::from_utf8_lossy(&answer).trim())));
            }
            answer.extend_from_slice(chunk.get(..length).unwrap_or_default());
        }
        let own = answer.len() - end.len();
        Ok(String::from_utf8_lossy(answer.get(..own).unwrap_or_default()).into_owned())
    }
}

/// The first complaint in the answer, apart from the one about the wrong line, which is the last.
fn complaint(answer: &str) -> Option<String> {
    let mut errors = answer.lines().filter(|line| line.contains("Error:"));
    let first = errors.next()?;
    errors.next().map(|_| first.trim().to_owned())
}

/// Runs nft once on a script with any number of lines.
pub fn run_once(script: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Start)?;
    if let Some(mut input) = child.stdin.take() {
        // A child that gave up early says why on its standard error.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(NftError::Start)?;
    if output.status.success() { Ok(()) } else { Err(refusal(&output.stderr)) }
}

/// Prints something in JSON; `None` when it does not exist.
pub fn list(what: &[&str]) -> Result<Option<String>, NftError> {
    let mut command = Command::new("nft");
    command.args(["-j", "list"]).args(what).stdin(Stdio::null());
    let output = command.output().map_err(NftError::Start)?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    match refusal(&output.stderr) {
        NftError::Refused(text) if text.contains("No such file or directory") => Ok(None),
        error => Err(error),
    }
}

fn refusal(stderr: &[u8]) -> NftError {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().find(|line| line.contains("Error:")).or_else(|| text.lines().next());
    NftError::Refused(line.unwrap_or("without a word").trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wrong_line_means_success() {
        assert_eq!(complaint("Error: syntax error, unexpected @\n"), None);
        let refused = "Error: Could not process rule: File exists\nadd element …\n   ^^^\nError: syntax error, unexpected @\n";
        assert_eq!(complaint(refused).as_deref(), Some("Error: Could not process rule: File exists"));
    }
}
