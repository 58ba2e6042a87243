//! The patch that turns what was applied last into what is applied now, leaving everybody else's fields alone.
//!
//! Decides like `kubectl apply`: what the new document says is set, what only the last one said is deleted. The result is a strategic
//! merge patch. It must not look at the live object: the server merges.

use serde_json::{Map, Value, json};

use crate::schema::{Field, Schema, Shape, Type};

/// The patch from `last` to `new`, both of the named type.
pub fn create(type_name: &str, last: &Value, new: &Value) -> Value {
    between(Schema::get().lookup(type_name), last, new)
}

fn between(kind: Option<&Type>, last: &Value, new: &Value) -> Value {
    let (Some(last), Some(new)) = (last.as_object(), new.as_object()) else { return new.clone() };
    let mut patch = Map::new();
    for key in last.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        let field = kind.and_then(|kind| kind.fields.get(key));
        let before = last.get(key).unwrap_or(&Value::Null);
        patch.insert(key.clone(), field_patch(field, before, value));
    }
    Value::Object(patch)
}

fn field_patch(field: Option<&Field>, last: &Value, new: &Value) -> Value {
    match (field, last, new) {
        (Some(field), Value::Array(last), Value::Array(new)) if field.patch.merge => {
            list_patch(field, last, new)
        }
        (Some(field), Value::Object(_), Value::Object(_)) => {
            between(Schema::get().of(&field.shape), last, new)
        }
        (None, Value::Object(_), Value::Object(_)) => between(None, last, new),
        _ => new.clone(),
    }
}

fn list_patch(field: &Field, last: &[Value], new: &[Value]) -> Value {
    let Some(key) = &field.merge_key else { return json!(new) };
    let element = match &field.shape {
        Shape::List(item) => Schema::get().of(item),
        _ => None,
    };
    // What has no key, or is no object at all, is like nothing else.
    let find = |list: &[Value], wanted: &Value| {
        let wanted = wanted.get(key)?;
        list.iter().find(|item| item.get(key) == Some(wanted)).cloned()
    };
    let mut items: Vec<Value> = new
        .iter()
        .map(|item| match find(last, item) {
            Some(before) => {
                let mut patch = between(element, &before, item);
                patch[key.as_str()] = item[key.as_str()].clone();
                patch
            }
            None => item.clone(),
        })
        .collect();
    for gone in last.iter().filter(|item| item.get(key).is_some() && find(new, item).is_none()) {
        let mut directive = Map::new();
        directive.insert(key.clone(), gone[key.as_str()].clone());
        directive.insert("$patch".into(), json!("delete"));
        items.push(Value::Object(directive));
    }
    json!(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::strategic;

    fn deployment(containers: Value, labels: Value) -> Value {
        json!({"metadata": {"labels": labels}, "spec": {"template": {"spec": {"containers": containers}}}})
    }

    #[test]
    fn what_was_dropped_is_deleted_and_what_others_set_stays() {
        let last = deployment(
            json!([{"name": "a", "image": "x:1", "args": ["1"]}, {"name": "b"}]),
            json!({"k": "1", "gone": "1"}),
        );
        let new = deployment(json!([{"name": "a", "image": "x:2"}]), json!({"k": "2"}));
        let mut live = last.clone();
        live["metadata"]["labels"]["other"] = json!("kept");
        live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        strategic::merge("apps.v1.Deployment", &mut live, &create("apps.v1.Deployment", &last, &new))
            .unwrap();
        let containers = json!([{"name": "a", "image": "x:2", "imagePullPolicy": "Always"}]);
        assert_eq!(live, deployment(containers, json!({"k": "2", "other": "kept"})));
    }

    #[test]
    fn elements_that_are_no_objects_are_handed_on_for_the_server_to_refuse() {
        for (last, new) in [(json!(["a", 1]), json!(["a", {}])), (json!([{}]), json!([null, {"name": "b"}]))]
        {
            let patch = create(
                "apps.v1.Deployment",
                &deployment(last, json!({})),
                &deployment(new.clone(), json!({})),
            );
            assert_eq!(patch, deployment(new, json!({})));
        }
    }

    #[test]
    fn the_same_again_changes_nothing() {
        let same = deployment(json!([{"name": "a", "image": "x:1"}]), json!({"k": "1"}));
        let mut live = same.clone();
        strategic::merge("apps.v1.Deployment", &mut live, &create("apps.v1.Deployment", &same, &same))
            .unwrap();
        assert_eq!(live, same);
    }
}
