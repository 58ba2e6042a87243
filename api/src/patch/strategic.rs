//! Strategic merge patch (Kubernetes API conventions): like a merge patch, but lists whose elements have a key merge element by element.
//!
//! Decides by the `patch=` and `key=` flags of the schema. It must not know single kinds.
//!
//! Directives: `$patch: replace | delete | merge` in a map, `$setElementOrder/FIELD`, `$deleteFromPrimitiveList/FIELD`, `$retainKeys`.

use serde_json::{Map, Value};

use crate::schema::{Field, Schema, Shape, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// The patch does not fit the document's schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrategicError {
    #[error("element of {field} has no {key}: elements of this list are matched by it")]
    NoKey { field: String, key: String },
    #[error("$patch must be replace, delete or merge, got {0}")]
    Directive(String),
    #[error("{0} must be a list")]
    NotAList(String),
}

/// Applies `patch` to `document`, which is of the named type.
pub fn merge(type_name: &str, document: &mut Value, patch: &Value) -> Result<(), StrategicError> {
    merge_value(Schema::get().lookup(type_name), document, patch)
}

fn merge_value(kind: Option<&Type>, target: &mut Value, patch: &Value) -> Result<(), StrategicError> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match patch.get(PATCH).map(|word| word.as_str().unwrap_or("")) {
        None | Some("merge") => {}
        Some("replace") => {
            *target = Value::Object(patch.iter().filter(|(key, _)| !key.starts_with('$')).map(own).collect());
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Null;
            return Ok(());
        }
        Some(other) => return Err(StrategicError::Directive(other.into())),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        merge_map(kind, target, patch)?;
    }
    Ok(())
}

fn own((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn merge_map(
    kind: Option<&Type>,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), StrategicError> {
    if let Some(retain) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        target.retain(|key, _| retain.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_primitives(target, field, value)?;
        } else if !key.starts_with('$') {
            merge_field(kind.and_then(|kind| kind.fields.get(key)), target, key, value)?;
        }
    }
    for (key, order) in patch {
        if let Some(name) = key.strip_prefix(SET_ORDER) {
            let merge_key =
                kind.and_then(|kind| kind.fields.get(name)).and_then(|field| field.merge_key.as_deref());
            let wanted = order.as_array().ok_or_else(|| StrategicError::NotAList(key.clone()))?;
            if let Some(Value::Array(items)) = target.get_mut(name) {
                set_order(items, wanted, merge_key);
            }
        }
    }
    Ok(())
}

fn merge_field(
    field: Option<&Field>,
    target: &mut Map<String, Value>,
    key: &str,
    patch: &Value,
) -> Result<(), StrategicError> {
    if patch.is_null() {
        target.remove(key);
        return Ok(());
    }
    match (field, patch) {
        (Some(field), Value::Array(items)) if field.patch.merge => {
            let list = target.entry(key.to_string()).or_insert_with(|| Value::Array(Vec::new()));
            if !list.is_array() {
                *list = Value::Array(Vec::new());
            }
            let Value::Array(list) = list else { return Ok(()) };
            merge_list(field, list, items)
        }
        (field, Value::Object(_)) => {
            let kind = field.and_then(|field| Schema::get().of(&field.shape));
            let entry = target.entry(key.to_string()).or_insert(Value::Null);
            merge_value(kind, entry, patch)?;
            if entry.is_null() {
                target.remove(key);
            }
            Ok(())
        }
        _ => {
            target.insert(key.to_string(), patch.clone());
            Ok(())
        }
    }
}

fn merge_list(field: &Field, target: &mut Vec<Value>, patch: &[Value]) -> Result<(), StrategicError> {
    let Some(key) = &field.merge_key else {
        for item in patch {
            if !target.contains(item) {
                target.push(item.clone());
            }
        }
        return Ok(());
    };
    if patch.iter().any(|item| item[PATCH] == "replace" && item.as_object().is_some_and(|map| map.len() == 1))
    {
        *target = patch.iter().filter(|item| item.get(PATCH).is_none()).cloned().collect();
        return Ok(());
    }
    let element = match &field.shape {
        Shape::List(item) => Schema::get().of(item),
        _ => None,
    };
    for item in patch {
        let wanted = item
            .get(key)
            .ok_or_else(|| StrategicError::NoKey { field: field.name.clone(), key: key.clone() })?;
        let at = target.iter().position(|found| found.get(key) == Some(wanted));
        match (at, item[PATCH] == "delete") {
            (_, true) => target.retain(|found| found.get(key) != Some(wanted)),
            (Some(at), false) => merge_value(element, &mut target[at], item)?,
            (None, false) => {
                let mut fresh = Value::Null;
                merge_value(element, &mut fresh, item)?;
                target.push(fresh);
            }
        }
    }
    Ok(())
}

fn delete_primitives(
    target: &mut Map<String, Value>,
    field: &str,
    gone: &Value,
) -> Result<(), StrategicError> {
    let gone = gone.as_array().ok_or_else(|| StrategicError::NotAList(format!("{DELETE_FROM}{field}")))?;
    if let Some(Value::Array(items)) = target.get_mut(field) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// Puts the elements that `wanted` names into its order; others (the server's own) keep their place relative to what precedes them.
fn set_order(items: &mut Vec<Value>, wanted: &[Value], merge_key: Option<&str>) {
    let identity = |value: &Value| {
        merge_key.map_or_else(|| value.clone(), |key| value.get(key).cloned().unwrap_or(Value::Null))
    };
    let rank: Vec<Value> = wanted.iter().map(identity).collect();
    let mut named: Vec<Value> = Vec::new();
    let mut others: Vec<(usize, Value)> = Vec::new();
    for item in items.drain(..) {
        if rank.contains(&identity(&item)) { named.push(item) } else { others.push((named.len(), item)) }
    }
    named.sort_by_key(|item| rank.iter().position(|name| *name == identity(item)));
    for (offset, (after, item)) in others.into_iter().enumerate() {
        named.insert((after + offset).min(named.len()), item);
    }
    *items = named;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(document: Value, patch: Value) -> Value {
        let mut document = document;
        merge("apps.v1.Deployment", &mut document, &patch).unwrap();
        document
    }

    fn pod_spec(spec: Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn containers_merge_by_name() {
        let before = pod_spec(
            json!({"containers": [{"name": "a", "image": "x:1", "env": [{"name": "K", "value": "1"}]}, {"name": "b"}]}),
        );
        let patch = pod_spec(
            json!({"containers": [{"name": "a", "image": "x:2", "env": [{"name": "L", "value": "2"}]}]}),
        );
        let containers = json!([{"name": "a", "image": "x:2", "env": [{"name": "K", "value": "1"}, {"name": "L", "value": "2"}]}, {"name": "b"}]);
        assert_eq!(merged(before, patch), pod_spec(json!({"containers": containers})));
    }

    #[test]
    fn an_element_can_be_deleted_and_the_order_set() {
        let before = pod_spec(json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}));
        let patch = pod_spec(json!({
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [{"name": "b", "$patch": "delete"}],
        }));
        assert_eq!(merged(before, patch), pod_spec(json!({"containers": [{"name": "c"}, {"name": "a"}]})));
    }

    #[test]
    fn lists_without_a_key_are_replaced() {
        let before = pod_spec(
            json!({"tolerations": [{"key": "a"}], "containers": [{"name": "a", "args": ["x", "y"]}]}),
        );
        let patch =
            pod_spec(json!({"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["z"]}]}));
        assert_eq!(merged(before, patch.clone()), patch);
    }

    #[test]
    fn retain_keys_drops_the_old_strategy() {
        let before =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(merged(before, patch), json!({"spec": {"strategy": {"type": "Recreate"}}}));
    }

    #[test]
    fn a_map_can_be_replaced_whole() {
        let before = json!({"metadata": {"labels": {"a": "1"}}});
        let patch = json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}});
        assert_eq!(merged(before, patch), json!({"metadata": {"labels": {"b": "2"}}}));
    }

    #[test]
    fn finalizers_are_a_set() {
        let before = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch =
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"]}});
        assert_eq!(merged(before, patch), json!({"metadata": {"finalizers": ["b", "c"]}}));
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let error = merge("core.v1.Pod", &mut json!({}), &json!({"spec": {"containers": [{"image": "x"}]}}))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "element of containers has no name: elements of this list are matched by it"
        );
    }
}
