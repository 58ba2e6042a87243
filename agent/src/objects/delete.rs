//! Deletion: at once, after a grace period, or when the last finalizer is gone.
//!
//! Decides which of these it is. It must not delete dependents; the garbage collector does.

use api::errors::{ApiError, deleted_status};
use api::kinds::Kind;
use api::{Object, duration};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::admission::{ADDRESSES, PORTS, node_ports};
use super::{Freshness, Objects, TRIES, Target, shown, write_error};
use crate::clock;
use crate::store::{Plan, TransactError};

/// `DeleteOptions` of a request.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    /// `Background` (default), `Foreground` or `Orphan`.
    pub propagation: Option<String>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body of a DELETE; query parameters are laid over it by the server.
    pub fn from_body(body: &Value) -> DeleteOptions {
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(String::from);
        DeleteOptions {
            grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
            propagation: text("/propagationPolicy"),
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            dry_run: body["dryRun"].as_array().is_some_and(|list| !list.is_empty()),
        }
    }
}

/// What becomes of the object.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It goes now.
    Remove,
    /// It stays for a while, changed like this.
    Keep(Object),
}

/// Whether the last finalizer's removal deletes an object that is being deleted. A pod goes when its node says so, unless it has
/// none or was given no grace; a namespace when it is empty.
pub fn ends_with_finalizers(kind: &Kind, object: &Object) -> bool {
    match kind.kind {
        "Namespace" => false,
        "Pod" => {
            object.text("/spec/nodeName").is_empty()
                || object.0.pointer("/metadata/deletionGracePeriodSeconds") == Some(&json!(0))
        }
        _ => true,
    }
}

/// Decides about one object.
pub fn decide(kind: &Kind, object: &Object, options: &DeleteOptions, now: Timestamp) -> Verdict {
    let mut kept = object.clone();
    let finalizer = match options.propagation.as_deref() {
        Some("Foreground") => Some("foregroundDeletion"),
        Some("Orphan") => Some("orphan"),
        _ => None,
    };
    if let Some(name) = finalizer
        && !kept.finalizers().contains(&name)
    {
        let mut list: Vec<Value> = kept.list("/metadata/finalizers").to_vec();
        list.push(json!(name));
        kept.set(&["metadata", "finalizers"], json!(list));
    }
    let grace = match kind.kind {
        "Pod" => pod_grace(object, options),
        _ => 0,
    };
    if grace == 0 && kept.finalizers().is_empty() && kind.kind != "Namespace" {
        return Verdict::Remove;
    }
    let earlier = kept.0.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if !kept.is_deleting() || earlier.is_some_and(|earlier| grace < earlier) {
        if !kept.is_deleting() && kind.counts_generation {
            kept.set(&["metadata", "generation"], json!(object.generation() + 1));
        }
        let end = Timestamp::from_second(now.as_second() + grace).unwrap_or(now);
        kept.set(&["metadata", "deletionTimestamp"], json!(duration::rfc3339(end)));
        kept.set(&["metadata", "deletionGracePeriodSeconds"], json!(grace));
    }
    if kind.kind == "Namespace" {
        kept.set(&["status", "phase"], json!("Terminating"));
    }
    Verdict::Keep(kept)
}

/// Grace of a pod: none where nothing runs.
fn pod_grace(pod: &Object, options: &DeleteOptions) -> i64 {
    let ended = matches!(pod.text("/status/phase"), "Succeeded" | "Failed");
    if pod.text("/spec/nodeName").is_empty() {
        return 0;
    }
    let asked = options
        .grace_period_seconds
        .or_else(|| pod.0.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64));
    let grace = asked.unwrap_or(30).max(0);
    // What has ended needs no time to stop, but its node still has to clean up: the shortest grace that is not none.
    if ended && grace > 0 { 1 } else { grace }
}

/// The operations that remove an object with what it held.
pub fn release(target: Target<'_>, object: &Object, plan: Plan) -> Plan {
    let mut plan = plan.delete(&target.key());
    if target.kind.kind == "Service" {
        let address = object.text("/spec/clusterIP");
        if !address.is_empty() && address != "None" {
            plan = plan.delete(&format!("{ADDRESSES}{address}"));
        }
        for port in node_ports(object) {
            plan = plan.delete(&format!("{PORTS}{port}"));
        }
    }
    plan
}

impl Objects {
    /// Deletes one object. Answers the `Status` of a finished deletion, or the object that is on its way.
    pub async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Value, ApiError> {
        for attempt in 0..TRIES {
            let view =
                if attempt == 0 { self.store.view() } else { self.view(Freshness::Linearizable).await? };
            let Some(entry) = view.get(target.key().as_bytes()) else {
                if attempt == 0 {
                    continue;
                }
                return Err(target.not_found());
            };
            let object = shown(entry)?;
            match check_preconditions(target, &object, options) {
                Err(_) if attempt == 0 => continue,
                met => met?,
            }
            let verdict =
                decide(target.kind, &object.clone().without_resource_version(), options, clock::wall());
            let done = deleted_status(target.kind.plural, target.kind.group, target.name, object.uid());
            if options.dry_run {
                return Ok(if verdict == Verdict::Remove { done } else { object.0 });
            }
            let plan = Plan::new().expect_revision(&target.key(), entry.mod_revision().0);
            let (plan, answer) = match verdict {
                Verdict::Remove => (release(target, &object, plan), None),
                Verdict::Keep(kept) => (plan.put(&target.key(), kept.to_vec()), Some(kept)),
            };
            match self.store.transact(plan.build(), None).await {
                Ok(revision) => {
                    return Ok(answer.map_or(done, |kept| kept.with_resource_version(revision.0).0));
                }
                Err(TransactError::CompareFailed { .. }) => {}
                Err(error) => return Err(write_error(error)),
            }
        }
        Err(target.conflict())
    }
}

fn check_preconditions(target: Target<'_>, object: &Object, options: &DeleteOptions) -> Result<(), ApiError> {
    if let Some(uid) = &options.uid
        && uid != object.uid()
    {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", object.uid());
        return Err(target.conflict_because(&why));
    }
    if let Some(wanted) = &options.resource_version
        && Some(wanted.as_str()) != object.resource_version()
    {
        return Err(target.conflict_because("Precondition failed: the object has another resourceVersion"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, phase: &str) -> Object {
        Object(
            json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}}),
        )
    }

    fn verdict(object: &Object, options: DeleteOptions) -> Verdict {
        decide(Kind::by_name("Pod").unwrap(), object, &options, Timestamp::from_second(100).unwrap())
    }

    #[test]
    fn a_pod_without_a_node_goes_at_once_and_a_running_one_after_its_grace() {
        assert_eq!(verdict(&pod("", "Pending"), DeleteOptions::default()), Verdict::Remove);
        let Verdict::Keep(kept) = verdict(&pod("a", "Running"), DeleteOptions::default()) else {
            unreachable!()
        };
        assert_eq!(kept.text("/metadata/deletionTimestamp"), "1970-01-01T00:02:10Z");
        assert_eq!(kept.generation(), 2);
    }

    #[test]
    fn force_removes_and_a_second_delete_only_shortens() {
        let force = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        assert_eq!(verdict(&pod("a", "Running"), force), Verdict::Remove);
        let Verdict::Keep(first) = verdict(&pod("a", "Running"), DeleteOptions::default()) else {
            unreachable!()
        };
        let longer = DeleteOptions { grace_period_seconds: Some(60), ..DeleteOptions::default() };
        assert_eq!(verdict(&first, longer), Verdict::Keep(first));
    }

    #[test]
    fn foreground_waits_for_dependents() {
        let object = Object(json!({"metadata": {"name": "d"}}));
        let options = DeleteOptions { propagation: Some("Foreground".into()), ..DeleteOptions::default() };
        let Verdict::Keep(kept) =
            decide(Kind::by_name("Deployment").unwrap(), &object, &options, Timestamp::UNIX_EPOCH)
        else {
            unreachable!()
        };
        assert_eq!(kept.finalizers(), ["foregroundDeletion"]);
        assert!(kept.is_deleting());
    }
}
