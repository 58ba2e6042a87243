//! The errors of the API, and their form on the wire: a Kubernetes `Status` document.
//!
//! Decides code, reason and wording for each case (API-SPEC "HTTP basics"). It must not decide *whether* something is an error.

use serde_json::{Value, json};

/// The cause by which clients tell a machine that is starting from one that is not a member, or has no leader.
pub const STARTING: &str = "AgentStarting";

/// One reason why an object is not valid, with the field it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, … as Kubernetes names them.
    pub reason: &'static str,
    pub message: String,
    /// A path such as `spec.containers[0].name`.
    pub field: String,
}

impl Cause {
    pub fn invalid(field: &str, value: &Value, why: &str) -> Cause {
        Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {why}"),
            field: field.into(),
        }
    }

    pub fn required(field: &str, why: &str) -> Cause {
        let message = if why.is_empty() { "Required value".into() } else { format!("Required value: {why}") };
        Cause { reason: "FieldValueRequired", message, field: field.into() }
    }

    pub fn not_supported(field: &str, value: &str, supported: &[&str]) -> Cause {
        let list = supported.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: \"{value}\": supported values: {list}");
        Cause { reason: "FieldValueNotSupported", message, field: field.into() }
    }

    pub fn duplicate(field: &str, value: &str) -> Cause {
        Cause {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: \"{value}\""),
            field: field.into(),
        }
    }

    pub fn forbidden(field: &str, why: &str) -> Cause {
        Cause { reason: "FieldValueForbidden", message: format!("Forbidden: {why}"), field: field.into() }
    }
}

/// Everything that the API can answer instead of what was asked for. `resource` is the plural with its group (`deployments.apps`).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    #[error("{resource} \"{name}\" not found")]
    NotFound { resource: String, name: String },
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists { resource: String, name: String },
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {why}")]
    Conflict { resource: String, name: String, why: String },
    #[error("{kind} \"{name}\" is invalid: {}", list_causes(causes))]
    Invalid { kind: String, group: String, name: String, causes: Vec<Cause> },
    #[error("{0}")]
    BadRequest(String),
    #[error("Unauthorized")]
    Unauthorized,
    #[error("{0}")]
    Forbidden(String),
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    #[error("the body of the request was in an unknown format - accepted media types include: {accepted}")]
    UnsupportedMediaType { accepted: String },
    #[error(
        "only the following media types are accepted: application/json, application/json;as=Table;v=v1;g=meta.k8s.io"
    )]
    NotAcceptable,
    #[error("Request entity too large: limit is {limit} bytes")]
    TooLarge { limit: usize },
    #[error("too old resource version: {asked} ({floor})")]
    Expired { asked: u64, floor: u64 },
    #[error("Too large resource version: {asked}, current: {current}")]
    FutureRevision { asked: u64, current: u64 },
    /// No leader or no majority in time: nothing was done.
    #[error("{0}")]
    Unavailable(String),
    /// The agent of this machine is not far enough yet to answer: nothing was done.
    #[error("the agent of this machine is starting: try again in a moment")]
    Starting,
    /// The write may or may not have happened.
    #[error("{0}")]
    OutcomeUnknown(String),
    #[error("{0}")]
    Internal(String),
}

fn list_causes(causes: &[Cause]) -> String {
    let texts: Vec<String> =
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) }
}

impl ApiError {
    /// HTTP status code and the `reason` word of the `Status` document.
    pub fn code_and_reason(&self) -> (u16, &'static str) {
        match self {
            ApiError::NotFound { .. } | ApiError::NoSuchPath => (404, "NotFound"),
            ApiError::AlreadyExists { .. } => (409, "AlreadyExists"),
            ApiError::Conflict { .. } => (409, "Conflict"),
            ApiError::Invalid { .. } => (422, "Invalid"),
            ApiError::BadRequest(_) => (400, "BadRequest"),
            ApiError::Unauthorized => (401, "Unauthorized"),
            ApiError::Forbidden(_) => (403, "Forbidden"),
            ApiError::MethodNotAllowed => (405, "MethodNotAllowed"),
            ApiError::UnsupportedMediaType { .. } => (415, "UnsupportedMediaType"),
            ApiError::NotAcceptable => (406, "NotAcceptable"),
            ApiError::TooLarge { .. } => (413, "RequestEntityTooLarge"),
            ApiError::Expired { .. } => (410, "Expired"),
            ApiError::FutureRevision { .. } => (504, "Timeout"),
            ApiError::Unavailable(_) | ApiError::Starting => (503, "ServiceUnavailable"),
            ApiError::OutcomeUnknown(_) => (504, "Timeout"),
            ApiError::Internal(_) => (500, "InternalError"),
        }
    }

    /// The `Status` document of this error.
    pub fn to_status(&self) -> Value {
        let (code, reason) = self.code_and_reason();
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "code": code,
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status
    }

    fn details(&self) -> Option<Value> {
        match self {
            ApiError::NotFound { resource, name }
            | ApiError::AlreadyExists { resource, name }
            | ApiError::Conflict { resource, name, .. } => {
                let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
                let mut details = json!({"name": name, "kind": plural});
                if !group.is_empty() {
                    details["group"] = json!(group);
                }
                Some(details)
            }
            ApiError::Invalid { kind, group, name, causes } => {
                let causes: Vec<Value> = causes
                    .iter()
                    .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
                    .collect();
                Some(json!({"name": name, "group": group, "kind": kind, "causes": causes}))
            }
            ApiError::FutureRevision { .. } => Some(json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            })),
            ApiError::Unavailable(_) => Some(json!({"retryAfterSeconds": 1})),
            ApiError::Starting => Some(json!({
                "causes": [{"reason": STARTING, "message": self.to_string()}],
                "retryAfterSeconds": 1,
            })),
            _ => None,
        }
    }
}

/// The `Status` document that answers a deletion that is complete.
pub fn deleted_status(plural: &str, group: &str, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": plural, "uid": uid});
    if !group.is_empty() {
        details["group"] = json!(group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_reads_like_kubernetes() {
        let status =
            ApiError::NotFound { resource: "deployments.apps".into(), name: "web".into() }.to_status();
        assert_eq!(status["message"], "deployments.apps \"web\" not found");
        assert_eq!(status["details"], json!({"name": "web", "kind": "deployments", "group": "apps"}));
        assert_eq!(status["code"], 404);
    }

    #[test]
    fn several_causes_are_listed_in_brackets() {
        let causes = vec![Cause::required("spec.a", ""), Cause::duplicate("spec.b", "x")];
        let error = ApiError::Invalid { kind: "Pod".into(), group: String::new(), name: "p".into(), causes };
        assert_eq!(
            error.to_string(),
            "Pod \"p\" is invalid: [spec.a: Required value, spec.b: Duplicate value: \"x\"]"
        );
    }
}
