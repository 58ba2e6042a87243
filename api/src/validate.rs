//! Validation: whether a well-typed, defaulted document makes sense.
//!
//! Decides by field, with paths, all mistakes at once. It must not look at other objects; what admission reads elsewhere
//! (namespace, addresses in use) is the API server's.

pub mod pod;
pub mod service;
pub mod workload;

use serde_json::{Value, json};

use crate::errors::{ApiError, Cause};
use crate::kinds::Kind;
use crate::names;
use crate::object::Object;

/// For kinds without rules of their own.
pub fn nothing(_object: &Object) -> Vec<Cause> {
    Vec::new()
}

/// For kinds in which everything may change.
pub fn nothing_changed(_old: &Object, _new: &Object) -> Vec<Cause> {
    Vec::new()
}

/// Checks a new object: metadata, required fields, the kind's own rules.
pub fn create(kind: &Kind, object: &Object) -> Result<(), ApiError> {
    let mut causes = metadata(kind, object);
    causes.extend(required(kind.type_name, &object.0));
    if causes.is_empty() {
        causes.extend((kind.validate)(object));
    }
    refuse(kind, object, causes)
}

/// Checks a change.
pub fn update(kind: &Kind, old: &Object, new: &Object) -> Result<(), ApiError> {
    let mut causes = metadata(kind, new);
    causes.extend(required(kind.type_name, &new.0));
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        if old.0["metadata"][field] != new.0["metadata"][field] {
            causes.push(Cause::invalid(
                &format!("metadata.{field}"),
                &new.0["metadata"][field],
                "field is immutable",
            ));
        }
    }
    if causes.is_empty() {
        causes.extend((kind.validate)(new));
        causes.extend((kind.validate_update)(old, new));
    }
    refuse(kind, new, causes)
}

fn refuse(kind: &Kind, object: &Object, causes: Vec<Cause>) -> Result<(), ApiError> {
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid {
        kind: kind.kind.into(),
        group: kind.group.into(),
        name: object.name().into(),
        causes,
    })
}

fn metadata(kind: &Kind, object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    match object.name() {
        "" => causes.push(Cause::required("metadata.name", "name or generateName is required")),
        name => {
            if let Some(why) = names::problem(kind.name_form, name) {
                causes.push(Cause::invalid("metadata.name", &json!(name), why));
            }
        }
    }
    causes.extend(labels("metadata.labels", object.0.pointer("/metadata/labels")));
    for key in object
        .0
        .pointer("/metadata/annotations")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
    {
        if !names::is_label_key(key) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &json!(key),
                "an annotation's key is PREFIX/NAME or NAME, each part at most 63 characters",
            ));
        }
    }
    for owner in object.list("/metadata/ownerReferences") {
        if ["apiVersion", "kind", "name", "uid"]
            .iter()
            .any(|field| owner[*field].as_str().unwrap_or("").is_empty())
        {
            causes.push(Cause::required(
                "metadata.ownerReferences",
                "apiVersion, kind, name and uid must be set",
            ));
        }
    }
    causes
}

pub(crate) fn labels(field: &str, labels: Option<&Value>) -> Vec<Cause> {
    let pairs = labels.and_then(Value::as_object).into_iter().flatten();
    let mut causes = Vec::new();
    for (key, value) in pairs {
        if !names::is_label_key(key) {
            causes.push(Cause::invalid(
                field,
                &json!(key),
                "a label's key is PREFIX/NAME or NAME, each part at most 63 characters",
            ));
        }
        if !names::is_label_value(value.as_str().unwrap_or("")) {
            causes.push(Cause::invalid(field, value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', at most 63 characters, and must start and end with an alphanumeric character"));
        }
    }
    causes
}

/// Required fields of the schema that are absent, wherever their parent is there.
fn required(type_name: &str, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    required_at(type_name, value, "", &mut causes);
    causes
}

fn required_at(type_name: &str, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    use crate::schema::{Schema, Shape};
    let (Some(kind), Some(map)) = (Schema::get().lookup(type_name), value.as_object()) else { return };
    for field in kind.fields.values() {
        let at = if path.is_empty() { field.name.clone() } else { format!("{path}.{}", field.name) };
        let Some(item) = map.get(&field.name) else {
            // The status is written by controllers, piece by piece.
            if field.required && !path.starts_with("status") {
                causes.push(Cause::required(&at, ""));
            }
            continue;
        };
        match (&field.shape, item) {
            (Shape::Type(name), item) => required_at(name, item, &at, causes),
            (Shape::List(shape), Value::Array(items)) => {
                if let Shape::Type(name) = shape.as_ref() {
                    for (index, element) in items.iter().enumerate() {
                        required_at(name, element, &format!("{at}[{index}]"), causes);
                    }
                }
            }
            _ => {}
        }
    }
}

/// ConfigMap keys name files.
pub fn config_map(object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in ["data", "binaryData"] {
        for key in object.0.get(field).and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key) {
            let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if !plain || key.is_empty() || key.len() > 253 || key == "." || key.starts_with("..") {
                causes.push(Cause::invalid(
                    &format!("{field}[{key}]"),
                    &json!(key),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
                ));
            }
        }
    }
    if object.to_vec().len() > 1 << 20 {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: "Too long: may not be more than 1048576 bytes".into(),
            field: String::new(),
        });
    }
    causes
}

pub fn config_map_update(old: &Object, new: &Object) -> Vec<Cause> {
    let frozen = old.0.get("immutable") == Some(&json!(true));
    if frozen
        && ["data", "binaryData", "immutable"].iter().any(|field| old.0.get(*field) != new.0.get(*field))
    {
        return vec![Cause::forbidden("data", "field is immutable when `immutable` is set")];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_come_at_once() {
        let object = Object(json!({"metadata": {"name": "B", "labels": {"a b": "c"}}}));
        let error = create(Kind::by_name("ConfigMap").unwrap(), &object).unwrap_err();
        let ApiError::Invalid { causes, .. } = error else { unreachable!() };
        let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(fields, ["metadata.name", "metadata.labels"]);
    }

    #[test]
    fn required_fields_are_asked_for_by_path() {
        let object = Object(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"image": "x"}]}}));
        let error = create(Kind::by_name("Pod").unwrap(), &object).unwrap_err();
        assert_eq!(error.to_string(), "Pod \"p\" is invalid: spec.containers[0].name: Required value");
    }

    #[test]
    fn a_name_cannot_change() {
        let old = Object(json!({"metadata": {"name": "a", "uid": "1"}}));
        let new = Object(json!({"metadata": {"name": "a", "uid": "2"}}));
        assert!(update(Kind::by_name("ConfigMap").unwrap(), &old, &new).is_err());
    }
}
