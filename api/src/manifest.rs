//! Manifests: YAML or JSON files with one or many documents.
//!
//! Decides how a file becomes documents. It must not check them against a schema; the server does that.

use serde::Deserialize;
use serde_json::Value;

/// The file cannot be read as manifests.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("document {document} is not valid YAML or JSON: {cause}")]
    Syntax { document: usize, cause: serde_yaml_ng::Error },
    #[error("document {document} has no {field}: every document needs apiVersion, kind and metadata.name")]
    Missing { document: usize, field: &'static str },
}

/// The documents of a file in order; empty documents are skipped, `List` documents are opened.
pub fn parse(text: &str) -> Result<Vec<Value>, ManifestError> {
    let mut found = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let document_number = index + 1;
        let value = Value::deserialize(document)
            .map_err(|cause| ManifestError::Syntax { document: document_number, cause })?;
        match value {
            Value::Null => {}
            value if value["kind"] == "List" => {
                found.extend(value["items"].as_array().cloned().unwrap_or_default())
            }
            value => found.push(value),
        }
    }
    for (index, value) in found.iter().enumerate() {
        for (field, pointer) in [("apiVersion", "/apiVersion"), ("kind", "/kind")] {
            if value.pointer(pointer).and_then(Value::as_str).is_none() {
                return Err(ManifestError::Missing { document: index + 1, field });
            }
        }
        let named = ["/metadata/name", "/metadata/generateName"].iter().any(|p| value.pointer(p).is_some());
        if !named {
            return Err(ManifestError::Missing { document: index + 1, field: "metadata.name" });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_documents_and_lists_are_read() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n---\nkind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n";
        let names: Vec<_> = parse(text).unwrap().iter().map(|v| v["metadata"]["name"].clone()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = parse("apiVersion: v1\nkind: Pod\n").unwrap_err();
        assert!(error.to_string().starts_with("document 1 has no metadata.name"), "{error}");
        assert!(parse("a: [").is_err());
    }
}
