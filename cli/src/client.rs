//! The agent's API over its unix socket.
//!
//! Decides how a failure reads. It must not know commands.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// How often, and how long apart, an agent that is starting is asked again.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// The agent could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent answers at {}: {cause}\n  start it with 'systemctl start skein' or 'skein agent', or name its socket with --socket", path.display())]
    NoAgent { path: PathBuf, cause: std::io::Error },
    #[error("the connection to the agent broke: {0}")]
    Broken(String),
    /// What the API answered.
    #[error("{message}")]
    Api { code: u16, message: String },
    /// It has done nothing, and will answer soon.
    #[error("{0}")]
    Starting(String),
    #[error("the agent's answer makes no sense: {0}")]
    Nonsense(String),
}

impl ClientError {
    /// The HTTP status with which the API refused.
    pub fn code(&self) -> Option<u16> {
        match self {
            ClientError::Api { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Body of a request.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Asks one agent.
#[derive(Debug, Clone)]
pub struct Client {
    pub socket: PathBuf,
}

/// The answer with its warnings.
pub struct Answer {
    pub value: Value,
    pub warnings: Vec<String>,
}

/// A body of bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

impl Client {
    /// Sends a request; the answer's body is still to be read. Errors of the API are errors here.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|cause| ClientError::NoAgent { path: self.socket.clone(), cause })?;
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        start(async move {
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await.map_err(broken)?;
        let code = response.status().as_u16();
        if code < 400 {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        let status: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let message = status["message"]
            .as_str()
            .map(String::from)
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_string());
        if status["details"]["causes"][0]["reason"] == api::errors::STARTING {
            return Err(ClientError::Starting(message));
        }
        Err(ClientError::Api { code, message })
    }

    /// Sends a request that is made anew for each try, while the agent is starting.
    pub async fn send_patiently(
        &self,
        make: impl Fn() -> Result<Request<Body>, hyper::http::Error>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut tried = 0;
        loop {
            let request = make().map_err(|error| ClientError::Broken(error.to_string()))?;
            match self.send(request).await {
                Err(ClientError::Starting(_)) if tried < TRIES => {}
                other => return other,
            }
            if tried == 0 {
                crate::output::warn("the agent of this machine is starting: waiting for it");
            }
            tried += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A request with a JSON answer.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Answer, ClientError> {
        self.ask_as(method, path, content_type, body, "application/json").await
    }

    pub async fn ask_as(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
        accept: &str,
    ) -> Result<Answer, ClientError> {
        let body = Bytes::from(body);
        let make = || {
            let request = build(method.clone(), path).header(CONTENT_TYPE, content_type);
            request.header(ACCEPT, accept).body(full(body.clone()))
        };
        let response = self.send_patiently(make).await?;
        let warnings = response.headers().get_all("warning").iter().filter_map(|value| value.to_str().ok());
        let warnings = warnings.map(warning_text).collect();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| ClientError::Broken(error.to_string()))?
            .to_bytes();
        let value =
            serde_json::from_slice(&body).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        Ok(Answer { value, warnings })
    }

    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        Ok(self.ask(Method::GET, path, "application/json", Vec::new()).await?.value)
    }

    /// A table of a collection or an object.
    pub async fn table(&self, path: &str) -> Result<Value, ClientError> {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        Ok(self.ask_as(Method::GET, path, "application/json", Vec::new(), accept).await?.value)
    }

    /// The body of a long answer, piece by piece.
    pub async fn stream(&self, path: &str, accept: &str) -> Result<Incoming, ClientError> {
        let make = || build(Method::GET, path).header(ACCEPT, accept).body(full(Vec::new()));
        Ok(self.send_patiently(make).await?.into_body())
    }
}

/// The text of a `Warning` header: `299 - "TEXT"`, quotes in it escaped.
fn warning_text(header: &str) -> String {
    let quoted = header.strip_prefix("299 - ").unwrap_or(header);
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(quoted);
    inner.replace("\\\"", "\"").replace("\\\\", "\\")
}

/// A request's beginning.
pub fn build(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header("host", "skein")
}

/// Starts a connection's task.
#[expect(clippy::disallowed_methods, reason = "the connection of one request; ends with it")]
pub fn start(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// Lines of JSON out of a stream.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    pub fn new(body: Incoming) -> Lines {
        Lines { body, rest: Vec::new() }
    }

    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=at).collect();
                return serde_json::from_slice(&line).ok();
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(bytes) = frame.data_ref() {
                self.rest.extend_from_slice(bytes);
            }
        }
    }
}

/// Percent-encodes a query value or path segment (RFC 3986).
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
