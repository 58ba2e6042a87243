//! Strict decoding: a document against the schema.
//!
//! Decides which fields are unknown and which values have the wrong type, by path. It must not judge values
//! ([`crate::validate`]) or add any ([`crate::defaults`]).

use serde_json::{Map, Value};

use crate::quantity;
use crate::schema::{Schema, Shape, Type};

/// What was found while decoding.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    /// Paths of fields that the schema does not have; they are removed from the document.
    pub unknown: Vec<String>,
    /// Values that cannot be what the schema says.
    pub mistyped: Vec<String>,
}

impl Decoded {
    /// The unknown fields as Kubernetes words them: `unknown field "spec.bogus"`.
    pub fn unknown_messages(&self) -> Vec<String> {
        self.unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect()
    }
}

/// Checks `value` against the named type, removing unknown fields and explicit nulls (an absent field and a null one are the same).
pub fn decode(type_name: &str, value: &mut Value) -> Decoded {
    let mut found = Decoded::default();
    match Schema::get().lookup(type_name) {
        Some(kind) => check_map(kind, value, "", &mut found),
        None => found.mistyped.push(format!("no type {type_name} in the schema")),
    }
    found
}

fn check_map(kind: &Type, value: &mut Value, path: &str, found: &mut Decoded) {
    let Value::Object(map) = value else {
        return mistyped(found, path, "an object", value);
    };
    map.retain(|_, item| !item.is_null());
    let unknown: Vec<String> = map.keys().filter(|key| !kind.fields.contains_key(*key)).cloned().collect();
    for key in unknown {
        map.remove(&key);
        found.unknown.push(join(path, &key));
    }
    for (key, item) in map.iter_mut() {
        if let Some(field) = kind.fields.get(key) {
            check(&field.shape, item, &join(path, key), found);
        }
    }
}

fn check(shape: &Shape, value: &mut Value, path: &str, found: &mut Decoded) {
    let fits = match shape {
        Shape::String | Shape::Bytes => value.is_string(),
        Shape::Time | Shape::MicroTime => value.as_str().is_some_and(is_time),
        Shape::Int => normalise_integer(value),
        Shape::Number => value.is_number(),
        Shape::Bool => value.is_boolean(),
        Shape::IntOrString => value.is_string() || value.is_i64() || value.is_u64(),
        Shape::Quantity => return check_quantity(value, path, found),
        Shape::Any => true,
        Shape::List(item) => return check_list(item, value, path, found),
        Shape::Map(item) => return check_entries(item, value, path, found),
        Shape::Type(name) => {
            if let Some(kind) = Schema::get().lookup(name) {
                check_map(kind, value, path, found);
            }
            return;
        }
    };
    if !fits {
        mistyped(found, path, word(shape), value);
    }
}

fn check_list(item: &Shape, value: &mut Value, path: &str, found: &mut Decoded) {
    let Value::Array(items) = value else {
        return mistyped(found, path, "a list", value);
    };
    for (index, element) in items.iter_mut().enumerate() {
        check(item, element, &format!("{path}[{index}]"), found);
    }
}

fn check_entries(item: &Shape, value: &mut Value, path: &str, found: &mut Decoded) {
    let Value::Object(map) = value else {
        return mistyped(found, path, "a map", value);
    };
    map.retain(|_, entry| !entry.is_null());
    for (key, entry) in map.iter_mut() {
        check(item, entry, &join(path, key), found);
    }
}

/// A quantity may come as a JSON number; it is kept as text, as Kubernetes shows it.
fn check_quantity(value: &mut Value, path: &str, found: &mut Decoded) {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
    match value.as_str().map(quantity::Quantity::parse) {
        Some(Ok(_)) => {}
        _ => mistyped(found, path, "a quantity such as 500m or 64Mi", value),
    }
}

/// JSON from YAML may carry whole numbers as floats (`3.0`): they are integers.
fn normalise_integer(value: &mut Value) -> bool {
    if value.is_i64() || value.is_u64() {
        return true;
    }
    match value.as_f64() {
        Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => {
            *value = Value::from(float as i64);
            true
        }
        _ => false,
    }
}

fn is_time(text: &str) -> bool {
    text.parse::<jiff::Timestamp>().is_ok()
}

fn word(shape: &Shape) -> &'static str {
    match shape {
        Shape::String => "a string",
        Shape::Bytes => "base64 text",
        Shape::Time | Shape::MicroTime => "an RFC 3339 time",
        Shape::Int => "an integer",
        Shape::Number => "a number",
        Shape::Bool => "a boolean",
        Shape::IntOrString => "an integer or a string",
        Shape::Quantity => "a quantity",
        Shape::Any => "any value",
        Shape::List(_) => "a list",
        Shape::Map(_) => "a map",
        Shape::Type(_) => "an object",
    }
}

fn mistyped(found: &mut Decoded, path: &str, expected: &str, value: &Value) {
    let got = match value {
        Value::Null => "null".to_string(),
        Value::Bool(_) => "a boolean".to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string \"{}\"", text.chars().take(64).collect::<String>()),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    };
    let path = if path.is_empty() { "the document" } else { path };
    found.mistyped.push(format!("{path}: expected {expected}, got {got}"));
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

/// Sets a map entry to an empty map unless it is one; used where a caller needs a place to write.
pub fn ensure_map<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    map.entry(key.to_string()).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
    }

    #[test]
    fn unknown_fields_are_named_and_removed() {
        let mut value = pod(json!({"bogus": 1, "containers": [{"name": "a", "foo": 2}]}));
        let found = decode("core.v1.Pod", &mut value);
        assert_eq!(found.unknown, ["spec.bogus", "spec.containers[0].foo"]);
        assert_eq!(value["spec"], json!({"containers": [{"name": "a"}]}));
    }

    #[test]
    fn wrong_types_are_named_by_path() {
        let mut value = pod(json!({"containers": [{"name": 7, "ports": [{"containerPort": "80"}]}]}));
        let found = decode("core.v1.Pod", &mut value);
        assert_eq!(
            found.mistyped,
            [
                "spec.containers[0].name: expected a string, got the number 7",
                "spec.containers[0].ports[0].containerPort: expected an integer, got the string \"80\"",
            ]
        );
    }

    #[test]
    fn numbers_are_taken_as_quantities() {
        let mut value = pod(
            json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": 1, "memory": "64Mi"}}}]}),
        );
        assert_eq!(decode("core.v1.Pod", &mut value), Decoded::default());
        assert_eq!(value["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
    }

    #[test]
    fn explicit_null_is_as_good_as_absent() {
        let mut value = json!({"metadata": {"name": "p", "creationTimestamp": null}});
        assert_eq!(decode("core.v1.Pod", &mut value), Decoded::default());
        assert_eq!(value, json!({"metadata": {"name": "p"}}));
    }
}
