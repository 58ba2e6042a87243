//! A small HTTP/1.1 client on an agent's unix socket, blocking: what tests and benches ask the API with, without a process per question.
//!
//! Decides nothing; it must not be used against anything but our own agents.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Asking failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("no agent at {}: {cause}", path.display())]
    Connect { path: PathBuf, cause: io::Error },
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("not an HTTP answer: {0:?}")]
    Nonsense(String),
    #[error("{code}: {message}")]
    Refused { code: u16, message: String },
}

/// Asks the agent behind one socket.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
    patience: Duration,
}

impl Api {
    /// `root` is the host's root directory as this process sees it (`/proc/PID/root`).
    pub fn at(root: &std::path::Path) -> Api {
        Api { socket: root.join("run/skein/agent.sock"), patience: Duration::from_secs(60) }
    }

    /// Waits no longer than this for the next bytes of an answer.
    pub fn patient(self, patience: Duration) -> Api {
        Api { patience, ..self }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &str,
    ) -> Result<(u16, BufReader<UnixStream>, bool), HttpError> {
        let failed = |cause| HttpError::Connect { path: self.socket.clone(), cause };
        let mut stream = UnixStream::connect(&self.socket).map_err(failed)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: skein\r\nconnection: close\r\naccept: application/json\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let code = line.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| HttpError::Nonsense(line.clone()))?;
        let mut chunked = false;
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            match line.trim().to_ascii_lowercase().as_str() {
                "" => return Ok((code, reader, chunked)),
                "transfer-encoding: chunked" => chunked = true,
                _ => {}
            }
        }
    }

    /// One request with its JSON answer; answers of 400 and above are errors.
    pub fn ask(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<Value, HttpError> {
        let (code, mut reader, chunked) = self.send(method, path, content_type, body)?;
        let mut bytes = Vec::new();
        if chunked {
            while read_chunk(&mut reader, &mut bytes)? {}
        } else {
            reader.read_to_end(&mut bytes)?;
        }
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if code < 400 {
            return Ok(value);
        }
        let message = value["message"]
            .as_str()
            .map_or_else(|| String::from_utf8_lossy(&bytes).into_owned(), String::from);
        Err(HttpError::Refused { code, message })
    }

    pub fn get(&self, path: &str) -> Result<Value, HttpError> {
        self.ask("GET", path, "application/json", "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, HttpError> {
        self.ask("POST", path, "application/json", &body.to_string())
    }

    pub fn merge(&self, path: &str, body: &Value) -> Result<Value, HttpError> {
        self.ask("PATCH", path, "application/merge-patch+json", &body.to_string())
    }

    pub fn delete(&self, path: &str) -> Result<Value, HttpError> {
        self.ask("DELETE", path, "application/json", "")
    }

    /// A watch; its events come one by one until it ends.
    pub fn watch(&self, path: &str) -> Result<Events, HttpError> {
        let (code, reader, _) = self.send("GET", path, "application/json", "")?;
        if code == 200 {
            Ok(Events { reader, waiting: Vec::new() })
        } else {
            Err(HttpError::Refused { code, message: path.into() })
        }
    }
}

/// Appends one chunk of a chunked body; `false` at its end.
fn read_chunk(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> Result<bool, HttpError> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let length = usize::from_str_radix(line.trim(), 16).map_err(|_| HttpError::Nonsense(line.clone()))?;
    let start = bytes.len();
    bytes.resize(start + length, 0);
    reader.read_exact(&mut bytes[start..])?;
    line.clear();
    reader.read_line(&mut line)?;
    Ok(length > 0)
}

/// The events of a watch.
pub struct Events {
    reader: BufReader<UnixStream>,
    waiting: Vec<u8>,
}

impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.waiting.drain(..=at).collect();
                return serde_json::from_slice(&line).ok();
            }
            if !read_chunk(&mut self.reader, &mut self.waiting).ok()? {
                return None;
            }
        }
    }
}
