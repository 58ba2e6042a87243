//! Rules for Deployment, ReplicaSet and Job.
//!
//! Decides what their specs must hold; the pod template goes through the rules for pods.

use serde_json::{Value, json};

use super::pod;
use crate::errors::Cause;
use crate::object::Object;
use crate::selector::LabelSelector;

pub fn check_deployment(object: &Object) -> Vec<Cause> {
    let mut causes = check_replica_set(object);
    let spec = &object.0["spec"];
    pod::one_of("spec.strategy", &spec["strategy"], "type", &["Recreate", "RollingUpdate"], &mut causes);
    let rolling = &spec["strategy"]["rollingUpdate"];
    for field in ["maxSurge", "maxUnavailable"] {
        if !rolling[field].is_null() && share(&rolling[field], 100, true).is_none() {
            causes.push(Cause::invalid(
                &format!("spec.strategy.rollingUpdate.{field}"),
                &rolling[field],
                "must be a whole number or a percentage such as 25%",
            ));
        }
    }
    if share(&rolling["maxSurge"], 100, true) == Some(0)
        && share(&rolling["maxUnavailable"], 100, false) == Some(0)
    {
        causes.push(Cause::invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            &rolling["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    causes
}

pub fn check_replica_set(object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &object.0["spec"];
    not_negative("spec.replicas", &spec["replicas"], &mut causes);
    not_negative("spec.minReadySeconds", &spec["minReadySeconds"], &mut causes);
    selects_template(spec, &mut causes);
    causes.extend(template(spec));
    if spec["template"]["spec"]["restartPolicy"] != "Always" {
        let value = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or("");
        causes.push(Cause::not_supported("spec.template.spec.restartPolicy", value, &["Always"]));
    }
    causes
}

pub fn check_job(object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &object.0["spec"];
    for field in
        ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"]
    {
        not_negative(&format!("spec.{field}"), &spec[field], &mut causes);
    }
    causes.extend(template(spec));
    let policy = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or("");
    if !["OnFailure", "Never"].contains(&policy) {
        causes.push(Cause::not_supported(
            "spec.template.spec.restartPolicy",
            policy,
            &["OnFailure", "Never"],
        ));
    }
    causes
}

pub fn check_job_update(old: &Object, new: &Object) -> Vec<Cause> {
    immutable(old, new, &["completions", "selector", "template"])
}

pub fn check_selector_update(old: &Object, new: &Object) -> Vec<Cause> {
    immutable(old, new, &["selector"])
}

fn immutable(old: &Object, new: &Object, fields: &[&str]) -> Vec<Cause> {
    let changed = fields.iter().filter(|field| old.0["spec"][**field] != new.0["spec"][**field]);
    changed
        .map(|field| Cause::invalid(&format!("spec.{field}"), &new.0["spec"][*field], "field is immutable"))
        .collect()
}

fn template(spec: &Value) -> Vec<Cause> {
    let mut causes = super::labels("spec.template.labels", spec.pointer("/template/metadata/labels"));
    causes.extend(pod::check_spec("spec.template.spec", &spec["template"]["spec"]));
    causes
}

fn selects_template(spec: &Value, causes: &mut Vec<Cause>) {
    match LabelSelector::from_object(&spec["selector"]) {
        Err(error) => causes.push(Cause::invalid("spec.selector", &spec["selector"], &error.to_string())),
        Ok(selector) if selector.is_empty() => {
            causes.push(Cause::invalid(
                "spec.selector",
                &spec["selector"],
                "empty selector is invalid: it would select every pod",
            ));
        }
        Ok(selector) => {
            let labels = spec.pointer("/template/metadata/labels");
            if !selector.matches(labels.and_then(Value::as_object)) {
                let shown = labels.cloned().unwrap_or(json!({}));
                causes.push(Cause::invalid(
                    "spec.template.metadata.labels",
                    &shown,
                    "`selector` does not match template `labels`",
                ));
            }
        }
    }
}

fn not_negative(field: &str, value: &Value, causes: &mut Vec<Cause>) {
    if value.as_i64().is_some_and(|number| number < 0) {
        causes.push(Cause::invalid(field, value, "must be greater than or equal to 0"));
    }
}

/// A whole number, or a percentage of `total` (rounded up or down). `None` for anything else.
pub fn share(value: &Value, total: i64, up: bool) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return (number >= 0).then_some(number);
    }
    let percent: i64 = value.as_str()?.strip_suffix('%')?.parse().ok()?;
    let product = percent.checked_mul(total).filter(|product| *product >= 0)?;
    Some(if up { (product + 99) / 100 } else { product / 100 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_that_misses_its_template_is_refused() {
        let object = Object(
            json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "c"}},
            "spec": {"restartPolicy": "Always", "containers": [{"name": "x", "image": "y"}]}}}}),
        );
        let fields: Vec<String> = check_replica_set(&object).into_iter().map(|cause| cause.field).collect();
        assert_eq!(fields, ["spec.template.metadata.labels"]);
    }

    #[test]
    fn shares_round_as_asked() {
        assert_eq!(share(&json!("25%"), 3, true), Some(1));
        assert_eq!(share(&json!("25%"), 3, false), Some(0));
        assert_eq!(share(&json!(2), 3, false), Some(2));
        assert_eq!(share(&json!("x"), 3, false), None);
        assert_eq!(share(&json!("9223372036854775807%"), 3, true), None);
    }
}
