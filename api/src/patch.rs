//! Patches: JSON patch, merge patch and strategic merge patch.
//!
//! Decides what a patch makes of a document. It must not validate the result or judge who may change what.

pub mod strategic;
pub mod three_way;

use serde_json::Value;

use crate::errors::{ApiError, Cause};
use crate::kinds::Kind;

/// The patch formats that are understood, by media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchFormat {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: lists with keys are merged.
    Strategic,
}

/// Media types that PATCH takes, for the error that names them.
pub const ACCEPTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

impl PatchFormat {
    pub fn from_media_type(media_type: &str) -> Result<PatchFormat, ApiError> {
        match media_type.split(';').next().unwrap_or("").trim() {
            "application/json-patch+json" => Ok(PatchFormat::Json),
            "application/merge-patch+json" => Ok(PatchFormat::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchFormat::Strategic),
            _ => Err(ApiError::UnsupportedMediaType { accepted: ACCEPTED.into() }),
        }
    }
}

/// Applies a patch to a document of some kind, in place.
pub fn apply(
    kind: &Kind,
    name: &str,
    format: PatchFormat,
    patch: &[u8],
    document: &mut Value,
) -> Result<(), ApiError> {
    let bad =
        |error: serde_json::Error| ApiError::BadRequest(format!("the patch is not valid JSON: {error}"));
    match format {
        PatchFormat::Json => {
            let operations: json_patch::Patch = serde_json::from_slice(patch).map_err(bad)?;
            json_patch::patch(document, &operations).map_err(|error| ApiError::Invalid {
                kind: kind.kind.into(),
                group: kind.group.into(),
                name: name.into(),
                causes: vec![Cause {
                    reason: "FieldValueInvalid",
                    message: error.to_string(),
                    field: "patch".into(),
                }],
            })
        }
        PatchFormat::Merge => {
            let patch: Value = serde_json::from_slice(patch).map_err(bad)?;
            object_only(&patch)?;
            json_patch::merge(document, &patch);
            Ok(())
        }
        PatchFormat::Strategic => {
            let patch: Value = serde_json::from_slice(patch).map_err(bad)?;
            object_only(&patch)?;
            strategic::merge(kind.type_name, document, &patch)
                .map_err(|error| ApiError::BadRequest(error.to_string()))
        }
    }
}

fn object_only(patch: &Value) -> Result<(), ApiError> {
    if patch.is_object() {
        Ok(())
    } else {
        Err(ApiError::BadRequest("the patch must be a JSON object".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployments() -> &'static Kind {
        Kind::by_name("Deployment").unwrap()
    }

    #[test]
    fn a_failed_json_patch_test_is_invalid_and_changes_nothing() {
        let mut document = json!({"spec": {"replicas": 1}});
        let patch = br#"[{"op":"replace","path":"/spec/replicas","value":5},{"op":"test","path":"/spec/replicas","value":9}]"#;
        let error = apply(deployments(), "web", PatchFormat::Json, patch, &mut document).unwrap_err();
        assert_eq!(error.code_and_reason().0, 422);
        assert_eq!(document, json!({"spec": {"replicas": 1}}));
    }

    #[test]
    fn null_in_a_merge_patch_deletes() {
        let mut document = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        apply(
            deployments(),
            "web",
            PatchFormat::Merge,
            br#"{"metadata":{"labels":{"a":null}}}"#,
            &mut document,
        )
        .unwrap();
        assert_eq!(document, json!({"metadata": {"labels": {"b": "2"}}}));
    }

    #[test]
    fn an_unknown_format_names_the_known_ones() {
        let error = PatchFormat::from_media_type("text/plain").unwrap_err();
        assert!(error.to_string().contains("strategic-merge-patch"));
    }
}
