//! An object as a JSON document with accessors for the metadata that every kind has.
//!
//! Decides nothing; it must not check or default anything (see [`crate::decode`], [`crate::defaults`], [`crate::validate`]).

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// A JSON document of some kind. Stored without `metadata.resourceVersion`, which is the store's revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object(pub Value);

impl Object {
    /// Reads a stored document. Fails on bytes that are not a JSON object.
    pub fn from_slice(bytes: &[u8]) -> Result<Object, serde_json::Error> {
        let map: Map<String, Value> = serde_json::from_slice(bytes)?;
        Ok(Object(Value::Object(map)))
    }

    pub fn to_vec(&self) -> Vec<u8> {
        // A `Value` has string keys only, so serialising it cannot fail.
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    /// The document as a typed view, for code that reads many fields.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.0)
    }

    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub fn api_version(&self) -> &str {
        self.text("/apiVersion")
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    pub fn resource_version(&self) -> Option<&str> {
        self.0.pointer("/metadata/resourceVersion").and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    pub fn generation(&self) -> i64 {
        self.int("/metadata/generation")
    }

    pub fn is_deleting(&self) -> bool {
        self.0.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
    }

    pub fn finalizers(&self) -> Vec<&str> {
        self.list("/metadata/finalizers").iter().filter_map(Value::as_str).collect()
    }

    pub fn labels(&self) -> Option<&Map<String, Value>> {
        self.0.pointer("/metadata/labels").and_then(Value::as_object)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key)?.as_str()
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.0.pointer("/metadata/annotations")?.get(key)?.as_str()
    }

    /// The uid of the owner that controls this object.
    pub fn controller_uid(&self) -> Option<&str> {
        let owners = self.list("/metadata/ownerReferences");
        owners.iter().find(|owner| owner["controller"] == true)?.get("uid")?.as_str()
    }

    /// Text at a JSON pointer, empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or("")
    }

    /// Integer at a JSON pointer, 0 where there is none.
    pub fn int(&self, pointer: &str) -> i64 {
        self.0.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
    }

    /// List at a JSON pointer, empty where there is none.
    pub fn list(&self, pointer: &str) -> &[Value] {
        self.0.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or(&[])
    }

    /// The metadata map, made where it is missing or not a map.
    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        child(root(&mut self.0), "metadata")
    }

    /// Sets a value below a top-level field (`spec`, `status`, `metadata`), making maps on the way.
    pub fn set(&mut self, path: &[&str], value: Value) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut map = root(&mut self.0);
        for parent in parents {
            map = child(map, parent);
        }
        map.insert((*last).to_string(), value);
    }

    pub fn set_label(&mut self, key: &str, value: &str) {
        child(self.metadata_mut(), "labels").insert(key.to_string(), json!(value));
    }

    pub fn set_annotation(&mut self, key: &str, value: &str) {
        child(self.metadata_mut(), "annotations").insert(key.to_string(), json!(value));
    }

    /// The document as clients see it: with the revision of its last change.
    pub fn with_resource_version(mut self, revision: u64) -> Object {
        self.set(&["metadata", "resourceVersion"], json!(revision.to_string()));
        self
    }

    /// The document as it is stored.
    pub fn without_resource_version(mut self) -> Object {
        self.metadata_mut().remove("resourceVersion");
        self
    }
}

fn root(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

fn child<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    root(map.entry(key.to_string()).or_insert_with(|| Value::Object(Map::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_makes_maps_on_the_way() {
        let mut object = Object(json!({"spec": null}));
        object.set(&["spec", "replicas"], json!(3));
        assert_eq!(object.0, json!({"spec": {"replicas": 3}}));
    }

    #[test]
    fn the_controller_is_the_owner_that_says_so() {
        let object = Object(
            json!({"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b", "controller": true}]}}),
        );
        assert_eq!(object.controller_uid(), Some("b"));
    }
}
