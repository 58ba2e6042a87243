//! Events: what happened to an object, for people (`kubectl describe`, `skein events`).
//!
//! Decides their form and that equal ones are counted instead of repeated. An event that cannot be written is lost, on purpose.

use std::sync::Arc;

use api::kinds::Kind;
use api::{Object, duration, keys};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::clock::{self, spawn};
use crate::cluster::Cluster;
use crate::objects::shown;
use crate::store::{Plan, Store};
use crate::timing;

/// One thing to tell.
#[derive(Debug, Clone)]
pub struct Report {
    involved: serde_json::Value,
    namespace: String,
    name: String,
    reason: String,
    message: String,
    warning: bool,
}

impl Report {
    pub fn normal(kind: &Kind, object: &Object, reason: &str, message: &str) -> Report {
        Report::new(kind, object, reason, message, false)
    }

    pub fn warning(kind: &Kind, object: &Object, reason: &str, message: &str) -> Report {
        Report::new(kind, object, reason, message, true)
    }

    fn new(kind: &Kind, object: &Object, reason: &str, message: &str, warning: bool) -> Report {
        let namespace = if object.namespace().is_empty() { "default" } else { object.namespace() };
        let involved = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(), "namespace": object.namespace(), "name": object.name(), "uid": object.uid(),
        });
        // The same thing said again is the same event, counted.
        let digest = Sha256::digest(format!("{involved}{reason}{message}"));
        let name = format!("{}.{}", object.name(), crate::pki::hex(&digest[..8]));
        Report {
            involved,
            namespace: namespace.into(),
            name,
            reason: reason.into(),
            message: message.into(),
            warning,
        }
    }

    /// Writes it now.
    pub async fn send(self, cluster: &Cluster) {
        self.write(&cluster.store, cluster.name()).await;
    }

    /// Writes it in the background.
    pub fn send_later(self, cluster: &Arc<Cluster>) {
        let cluster = cluster.clone();
        spawn(async move { self.send(&cluster).await });
    }

    async fn write(self, store: &Store, source: &str) {
        let Some(kind) = Kind::by_name("Event") else { return };
        let key = keys::object(kind, &self.namespace, &self.name);
        let now = duration::rfc3339(clock::wall());
        let view = store.view();
        let old = view.get(key.as_bytes());
        let (mut event, plan) =
            match old.and_then(|entry| shown(entry).ok().map(|event| (event, entry.mod_revision()))) {
                Some((event, revision)) => {
                    (event.without_resource_version(), Plan::new().expect_revision(&key, revision.0))
                }
                None => (self.fresh(&now, source), Plan::new().expect_absent(&key)),
            };
        let count = event.int("/count") + 1;
        event.0["count"] = json!(count);
        event.0["lastTimestamp"] = json!(now);
        let plan = plan.put_for(&key, event.to_vec(), timing::EVENT_LIFETIME);
        let _ = store.transact(plan.build(), None).await;
    }

    fn fresh(&self, now: &str, source: &str) -> Object {
        Object(json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": clock::uuid(), "creationTimestamp": now},
            "involvedObject": self.involved, "reason": self.reason, "message": self.message,
            "type": if self.warning { "Warning" } else { "Normal" },
            "source": {"component": "skein", "host": source}, "firstTimestamp": now, "count": 0,
            "reportingComponent": "skein", "reportingInstance": source,
        }))
    }
}
