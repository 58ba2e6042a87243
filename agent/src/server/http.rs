//! Bodies, headers and content negotiation.
//!
//! Decides how an answer looks on the wire. It must not know resources.

use std::convert::Infallible;

use api::errors::ApiError;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response};
use serde_json::Value;

/// Every answer's type.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;
/// An answer or an error that becomes a `Status` document.
pub type Reply = Result<Answer, ApiError>;

/// Longest body of a write. Kubernetes' own limit is 3 MiB.
pub const BODY_LIMIT: usize = 3 << 20;

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
    if let ApiError::Unavailable(_) = error {
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

/// The whole body, refused when it is longer than the limit.
pub async fn body(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    match Limited::new(request.into_body(), BODY_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::TooLarge { limit: BODY_LIMIT })
        }
        Err(error) => Err(ApiError::BadRequest(format!("the body broke off: {error}"))),
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
