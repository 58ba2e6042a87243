//! Bodies, headers and content negotiation.
//!
//! Decides how an answer looks on the wire. It must not know resources.

use std::convert::Infallible;
use std::time::Duration;

use api::errors::ApiError;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue};
use hyper::{Request, Response};
use serde_json::Value;

/// Every answer's type.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;
/// An answer or an error that becomes a `Status` document.
pub type Reply = Result<Answer, ApiError>;

/// Longest body of a write. Kubernetes' own limit is 3 MiB.
pub const BODY_LIMIT: usize = 3 << 20;
/// How much of a body that is refused is read, so that its sender hears the answer.
const DRAIN_LIMIT: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// What the client wants back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accept {
    pub table: bool,
    pub aggregated: bool,
    pub metadata_only: bool,
    /// Nothing that is accepted can be answered.
    pub impossible: bool,
}

impl Accept {
    pub fn of<B>(request: &Request<B>) -> Accept {
        let text = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        Accept::parse(text)
    }

    /// The first entry that can be served wins.
    fn parse(text: &str) -> Accept {
        let mut accept = Accept::default();
        for entry in text.split(',').map(str::trim) {
            let mut parts = entry.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            let form = parts.find_map(|part| part.strip_prefix("as="));
            match (media, form) {
                ("application/json", Some("Table")) => accept.table = true,
                ("application/json", Some("APIGroupDiscoveryList"))
                    if entry.contains("v=v2;") || entry.ends_with("v=v2") =>
                {
                    accept.aggregated = true
                }
                ("application/json", Some("PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                    accept.metadata_only = true
                }
                ("application/json" | "application/*" | "*/*", None) => {}
                _ => continue,
            }
            return accept;
        }
        accept.impossible = !text.contains("text/plain");
        accept
    }
}

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(bytes.into()).boxed()
}

fn with_type(code: u16, content_type: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() =
        hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// A JSON document.
pub fn json(code: u16, value: &Value) -> Answer {
    let mut text = value.to_string();
    text.push('\n');
    with_type(code, "application/json", full(text))
}

/// An aggregated discovery document, whose content type says so.
pub fn discovery(value: &Value) -> Answer {
    with_type(
        200,
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        full(value.to_string()),
    )
}

/// Plain text.
pub fn plain(code: u16, text: &str) -> Answer {
    with_type(code, "text/plain; charset=utf-8", full(text.to_string()))
}

/// Bytes as they are.
pub fn bytes(content_type: &'static str, bytes: Vec<u8>) -> Answer {
    with_type(200, content_type, full(bytes))
}

/// The `Status` document of an error.
pub fn status(error: &ApiError) -> Answer {
    let mut answer = json(error.code_and_reason().0, &error.to_status());
    if let ApiError::Unavailable(_) | ApiError::Starting = error {
        answer.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    answer
}

/// A body that is written piece by piece.
pub fn stream(content_type: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    with_type(200, content_type, body)
}

/// Adds a `Warning` header for each text (RFC 9111 form that kubectl prints).
pub fn with_warnings(mut answer: Answer, warnings: &[String]) -> Answer {
    for text in warnings {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
    answer
}

/// The whole body, refused when it is longer than the limit. What a client goes on sending is then taken and thrown away, up to
/// another limit: closing on it would tear down the answer with the connection.
pub async fn body(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    let announced_too_large = body.size_hint().lower() > BODY_LIMIT as u64;
    if announced_too_large && waits {
        // It asked before sending and sends nothing now.
        return Err(ApiError::TooLarge { limit: BODY_LIMIT });
    }
    if !announced_too_large {
        match Limited::new(&mut body, BODY_LIMIT).collect().await {
            Ok(collected) => return Ok(collected.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {}
            Err(error) => return Err(ApiError::BadRequest(format!("the body broke off: {error}"))),
        }
    }
    discard(body).await;
    Err(ApiError::TooLarge { limit: BODY_LIMIT })
}

/// An answer to a request whose body nobody wants. Over HTTP/2 a body that is dropped before the answer is out resets the stream,
/// and the client never reads why.
pub async fn refuse(request: Request<Incoming>, error: ApiError) -> Reply {
    discard(request.into_body()).await;
    Err(error)
}

async fn discard(body: Incoming) {
    let _ = tokio::time::timeout(DRAIN_TIME, drain(body)).await;
}

async fn drain(mut body: Incoming) {
    let mut left = DRAIN_LIMIT;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// The media type of the request's body, without parameters.
pub fn content_type<B>(request: &Request<B>) -> String {
    let text = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json");
    text.split(';').next().unwrap_or("").trim().to_string()
}

/// A body as a JSON document; YAML is taken too.
pub fn document(content_type: &str, bytes: &[u8]) -> Result<Value, ApiError> {
    match content_type {
        "" | "application/json" | "text/json" => serde_json::from_slice(bytes)
            .map_err(|error| ApiError::BadRequest(format!("the body is not valid JSON: {error}"))),
        "application/yaml" => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| ApiError::BadRequest("the body is not UTF-8".into()))?;
            let documents =
                api::manifest::parse(text).map_err(|error| ApiError::BadRequest(error.to_string()))?;
            documents.into_iter().next().ok_or_else(|| ApiError::BadRequest("the body is empty".into()))
        }
        _ => Err(ApiError::UnsupportedMediaType { accepted: "application/json, application/yaml".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_can_be_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert!(Accept::parse(kubectl).table);
        let describe = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(Accept::parse(describe), Accept::default());
        assert!(Accept::parse("application/vnd.kubernetes.protobuf").impossible);
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert!(Accept::parse(discovery).aggregated);
    }
}
