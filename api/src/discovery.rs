//! Discovery and OpenAPI documents, made from the table of kinds.
//!
//! Decides their form (API-SPEC sections 2 and 3). It must not name a kind.

use serde_json::{Value, json};

use crate::kinds::{KINDS, Kind};

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Groups in the order of the table, each once, with its version.
fn groups() -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for row in &KINDS {
        if !found.contains(&(row.group, row.version)) {
            found.push((row.group, row.version));
        }
    }
    found
}

fn kinds_of(group: &str) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |row| row.group == group)
}

fn subresource_kind(row: &Kind, subresource: &str) -> (&'static str, &'static str, &'static str) {
    match subresource {
        "scale" => ("autoscaling", "v1", "Scale"),
        "exec" => ("", "v1", "PodExecOptions"),
        _ => (row.group, row.version, row.kind),
    }
}

fn subresource_verbs(subresource: &str) -> &'static [&'static str] {
    match subresource {
        "log" => &["get"],
        "exec" => &["create", "get"],
        "finalize" => &["update"],
        _ => &["get", "patch", "update"],
    }
}

/// `/api` or `/apis` in aggregated form (`APIGroupDiscoveryList` v2).
pub fn aggregated(core: bool) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, version)| {
            let resources: Vec<Value> = kinds_of(group).map(aggregated_resource).collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": [{"version": version, "freshness": "Current", "resources": resources}]})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(row: &'static Kind) -> Value {
    let subresources: Vec<Value> = row
        .subresources
        .iter()
        .map(|name| {
            let (group, version, kind) = subresource_kind(row, name);
            json!({"subresource": name, "responseKind": {"group": group, "version": version, "kind": kind}, "verbs": subresource_verbs(name)})
        })
        .collect();
    let mut resource = json!({
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular, "verbs": VERBS,
    });
    for (key, list) in [("shortNames", row.short_names), ("categories", row.categories)] {
        if !list.is_empty() {
            resource[key] = json!(list);
        }
    }
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}

/// `/api` in legacy form.
pub fn versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn group_document(group: &str, version: &str) -> Value {
    let named = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [named.clone()], "preferredVersion": named})
}

/// `/apis` in legacy form.
pub fn group_list() -> Value {
    let groups: Vec<Value> = groups()
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, version)| group_document(group, version))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`, `None` for a group that is not served.
pub fn group(name: &str) -> Option<Value> {
    let (group, version) = groups().into_iter().find(|(group, _)| *group == name && !group.is_empty())?;
    let mut document = group_document(group, version);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Some(document)
}

/// `/api/v1` and `/apis/GROUP/VERSION`: the resources of a group version.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    groups().into_iter().find(|found| *found == (group, version))?;
    let mut resources = Vec::new();
    for row in kinds_of(group) {
        let mut entry = json!({"name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind, "verbs": VERBS});
        for (key, list) in [("shortNames", row.short_names), ("categories", row.categories)] {
            if !list.is_empty() {
                entry[key] = json!(list);
            }
        }
        resources.push(entry);
        for name in row.subresources {
            let (group, version, kind) = subresource_kind(row, name);
            let mut entry = json!({
                "name": format!("{}/{name}", row.plural), "singularName": "", "namespaced": row.namespaced,
                "kind": kind, "verbs": subresource_verbs(name),
            });
            if group != row.group {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            resources.push(entry);
        }
    }
    let group_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}

/// `/openapi/v3`: where the document of each group version is.
pub fn openapi_index() -> Value {
    let mut paths = serde_json::Map::new();
    for (group, version) in groups() {
        let path = openapi_path(group, version);
        let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn openapi_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The OpenAPI document of a group version: for each kind the PATCH operation with its `fieldValidation` parameter,
/// which is what tells clients to leave validation to the server.
pub fn openapi(path: &str) -> Option<Value> {
    let (group, version) =
        groups().into_iter().find(|(group, version)| openapi_path(group, version) == path)?;
    let mut paths = serde_json::Map::new();
    for row in kinds_of(group) {
        let namespace = row.namespaced.then_some("{namespace}");
        let operation = json!({
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": row.group, "version": row.version, "kind": row.kind},
        });
        paths.insert(format!("{}/{{name}}", row.path(namespace)), json!({"patch": operation}));
    }
    let info = json!({"title": "skein", "version": version});
    Some(json!({"openapi": "3.0.0", "info": info, "paths": paths}))
}

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "35", "gitVersion": format!("{}+skein-{}", crate::KUBERNETES_VERSION, env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_discovered_both_ways() {
        for row in &KINDS {
            let list = resource_list(row.group, row.version).unwrap();
            assert!(
                list["resources"].as_array().unwrap().iter().any(|entry| entry["name"] == row.plural),
                "{}",
                row.kind
            );
            let text = aggregated(row.group.is_empty()).to_string();
            assert!(text.contains(&format!("\"resource\":\"{}\"", row.plural)), "{}", row.kind);
        }
    }

    #[test]
    fn scale_is_named_with_its_own_group() {
        let list = resource_list("apps", "v1").unwrap();
        let scale = list["resources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["name"] == "deployments/scale")
            .unwrap();
        assert_eq!(scale["group"], "autoscaling");
    }

    #[test]
    fn openapi_says_that_the_server_validates() {
        let document = openapi("apis/apps/v1").unwrap();
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["parameters"][0]["name"], "fieldValidation");
        assert!(openapi("apis/none/v1").is_none());
    }
}
