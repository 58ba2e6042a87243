//! Defaults: what a document says without saying it.
//!
//! Decides the value of absent fields: constants from the schema, and the few that depend on other fields. It must not
//! change a value that is there.

use serde_json::{Map, Value, json};

use crate::schema::{Schema, Shape, Type};

/// Fills in the defaults of the named type.
pub fn apply(type_name: &str, value: &mut Value) {
    if let Some(kind) = Schema::get().lookup(type_name) {
        fill(type_name, kind, value);
    }
}

fn fill(type_name: &str, kind: &Type, value: &mut Value) {
    let Value::Object(map) = value else { return };
    for field in kind.fields.values() {
        if let (Some(default), false) = (&field.default, map.contains_key(&field.name)) {
            map.insert(field.name.clone(), default.clone());
        }
    }
    computed(type_name, map);
    for field in kind.fields.values() {
        if let Some(item) = map.get_mut(&field.name) {
            descend(&field.shape, item);
        }
    }
}

fn descend(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Type(name), value) => apply(name, value),
        (Shape::List(item), Value::Array(items)) => {
            items.iter_mut().for_each(|element| descend(item, element))
        }
        (Shape::Map(item), Value::Object(map)) => map.values_mut().for_each(|entry| descend(item, entry)),
        _ => {}
    }
}

/// Defaults that depend on other fields of the same type.
fn computed(type_name: &str, map: &mut Map<String, Value>) {
    match type_name {
        "core.v1.Container" => pull_policy(map),
        "core.v1.ServicePort" => {
            if let Some(port) = map.get("port").cloned() {
                map.entry("targetPort").or_insert(port);
            }
        }
        "core.v1.ServiceSpec" => service(map),
        "apps.v1.DeploymentStrategy" if map.get("type") == Some(&json!("RollingUpdate")) => {
            let rolling = map.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Value::Object(rolling) = rolling {
                rolling.entry("maxSurge").or_insert(json!("25%"));
                rolling.entry("maxUnavailable").or_insert(json!("25%"));
            }
        }
        "batch.v1.JobSpec" => {
            if !map.contains_key("completions") && !map.contains_key("parallelism") {
                map.insert("completions".into(), json!(1));
            }
            map.entry("parallelism").or_insert(json!(1));
        }
        "core.v1.ResourceRequirements" => requests_from_limits(map),
        _ => {}
    }
}

fn pull_policy(map: &mut Map<String, Value>) {
    let image = map.get("image").and_then(Value::as_str).unwrap_or("");
    let name = image.rsplit('/').next().unwrap_or("");
    let tag = name.split_once('@').map(|_| "digest").or_else(|| name.split_once(':').map(|(_, tag)| tag));
    let policy = if matches!(tag, None | Some("latest")) { "Always" } else { "IfNotPresent" };
    map.entry("imagePullPolicy").or_insert(json!(policy));
}

fn service(map: &mut Map<String, Value>) {
    if map.get("type") != Some(&json!("ExternalName")) {
        map.entry("internalTrafficPolicy").or_insert(json!("Cluster"));
        map.entry("ipFamilies").or_insert(json!(["IPv4"]));
        map.entry("ipFamilyPolicy").or_insert(json!("SingleStack"));
    }
    if matches!(map.get("type").and_then(Value::as_str), Some("NodePort" | "LoadBalancer")) {
        map.entry("externalTrafficPolicy").or_insert(json!("Cluster"));
    }
}

fn requests_from_limits(map: &mut Map<String, Value>) {
    let Some(limits) = map.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = map.entry("requests").or_insert_with(|| json!({}));
    if let Value::Object(requests) = requests {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_what_kubernetes_would_give_it() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "nginx:1", "ports": [{"containerPort": 80}]}]}});
        apply("core.v1.Pod", &mut pod);
        assert_eq!(pod["spec"]["restartPolicy"], "Always");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
    }

    #[test]
    fn an_untagged_image_is_always_pulled() {
        let mut container = json!({"image": "registry:5000/team/app"});
        apply("core.v1.Container", &mut container);
        assert_eq!(container["imagePullPolicy"], "Always");
    }

    #[test]
    fn defaulting_twice_changes_nothing() {
        let mut deployment = json!({"spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "a", "image": "x:1"}]}}}});
        apply("apps.v1.Deployment", &mut deployment);
        let once = deployment.clone();
        apply("apps.v1.Deployment", &mut deployment);
        assert_eq!(deployment, once);
        assert_eq!(once["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    }

    #[test]
    fn what_is_there_stays() {
        let mut spec = json!({"replicas": 0, "selector": {}});
        apply("apps.v1.ReplicaSetSpec", &mut spec);
        assert_eq!(spec["replicas"], 0);
    }
}
