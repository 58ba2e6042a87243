//! The table of kinds: one row for each kind that the API serves.
//!
//! Decides names, scope, subresources and which functions validate and print a kind. Adding a kind is a row here, its types in
//! `api/schema`, and its controller; it must never take a new branch in the API server.

use jiff::Timestamp;
use serde_json::Value;

use crate::errors::Cause;
use crate::names::NameForm;
use crate::object::Object;
use crate::{tables, validate};

/// A column of the kind's table. `wide` columns are printed by `-o wide` only.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    pub format: &'static str,
    pub kind: &'static str,
    pub wide: bool,
}

/// One kind.
#[derive(Debug)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// `status`, `scale`, `log`, `exec`: what can follow the name in a path.
    pub subresources: &'static [&'static str],
    pub name_form: NameForm,
    /// Name of the type in [`crate::schema`].
    pub type_name: &'static str,
    /// Fields beside `metadata.name` and `metadata.namespace` that field selectors may use.
    pub selectable_fields: &'static [&'static str],
    /// Whether `metadata.generation` counts changes of `spec`.
    pub counts_generation: bool,
    pub columns: &'static [Column],
    pub cells: fn(&Object, Timestamp) -> Vec<Value>,
    /// Checks a new object.
    pub validate: fn(&Object) -> Vec<Cause>,
    /// Checks what may not change: (old, new).
    pub validate_update: fn(&Object, &Object) -> Vec<Cause>,
}

const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    name_form: NameForm::Subdomain,
    type_name: "",
    selectable_fields: &[],
    counts_generation: false,
    columns: &[],
    cells: tables::name_and_age,
    validate: validate::nothing,
    validate_update: validate::nothing_changed,
};

/// All kinds, core group first.
pub static KINDS: [Kind; 11] = [
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        subresources: &["finalize", "status"],
        name_form: NameForm::Label,
        type_name: "core.v1.Namespace",
        selectable_fields: &["status.phase"],
        columns: tables::NAMESPACE,
        cells: tables::namespace,
        ..BASE
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: &["status"],
        type_name: "core.v1.Node",
        selectable_fields: &["spec.unschedulable"],
        columns: tables::NODE,
        cells: tables::node,
        ..BASE
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &["exec", "log", "status"],
        type_name: "core.v1.Pod",
        selectable_fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        counts_generation: true,
        columns: tables::POD,
        cells: tables::pod,
        validate: validate::pod::check,
        validate_update: validate::pod::check_update,
        ..BASE
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &["status"],
        name_form: NameForm::ServiceLabel,
        type_name: "core.v1.Service",
        columns: tables::SERVICE,
        cells: tables::service,
        validate: validate::service::check,
        validate_update: validate::service::check_update,
        ..BASE
    },
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        type_name: "core.v1.ConfigMap",
        columns: tables::CONFIG_MAP,
        cells: tables::config_map,
        validate: validate::config_map,
        validate_update: validate::config_map_update,
        ..BASE
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "core.v1.Event",
        selectable_fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        columns: tables::EVENT,
        cells: tables::event,
        ..BASE
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &["scale", "status"],
        type_name: "apps.v1.Deployment",
        counts_generation: true,
        columns: tables::DEPLOYMENT,
        cells: tables::deployment,
        validate: validate::workload::check_deployment,
        validate_update: validate::workload::check_selector_update,
        ..BASE
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &["scale", "status"],
        type_name: "apps.v1.ReplicaSet",
        selectable_fields: &["status.replicas"],
        counts_generation: true,
        columns: tables::REPLICA_SET,
        cells: tables::replica_set,
        validate: validate::workload::check_replica_set,
        validate_update: validate::workload::check_selector_update,
        ..BASE
    },
    Kind {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        categories: &["all"],
        subresources: &["status"],
        type_name: "batch.v1.Job",
        selectable_fields: &["status.successful"],
        counts_generation: true,
        columns: tables::JOB,
        cells: tables::job,
        validate: validate::workload::check_job,
        validate_update: validate::workload::check_job_update,
        ..BASE
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        type_name: "discovery.v1.EndpointSlice",
        counts_generation: true,
        columns: tables::ENDPOINT_SLICE,
        cells: tables::endpoint_slice,
        ..BASE
    },
    Kind {
        group: "skein.dev",
        kind: "Image",
        plural: "images",
        singular: "image",
        short_names: &["img"],
        namespaced: false,
        name_form: NameForm::PathSegment,
        type_name: "skein.v1.Image",
        columns: tables::IMAGE,
        cells: tables::image,
        ..BASE
    },
];

impl Kind {
    /// The row of a kind by its name in documents (`Pod`).
    pub fn by_name(kind: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|row| row.kind == kind)
    }

    /// The row behind a path: group (empty for core), version, plural.
    pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|row| row.group == group && row.version == version && row.plural == plural)
    }

    /// The row of a document by its `apiVersion` and `kind`.
    pub fn of(api_version: &str, kind: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|row| row.api_version() == api_version && row.kind == kind)
    }

    /// What a user may type for a kind: plural, singular, kind, short name, or any with its group (`deployments.apps`).
    pub fn by_user_word(word: &str) -> Option<&'static Kind> {
        let word = word.to_lowercase();
        let (name, group) =
            word.split_once('.').map_or((word.as_str(), None), |(name, group)| (name, Some(group)));
        KINDS.iter().find(|row| {
            let named = row.plural == name || row.singular == name || row.short_names.contains(&name);
            named && group.is_none_or(|group| row.group == group || group.is_empty())
        })
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Plural with group, as errors name it: `deployments.apps`.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The path of the collection: `/apis/apps/v1/namespaces/default/deployments`.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            "/api/v1".to_string()
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) if self.namespaced => format!("{root}/namespaces/{namespace}/{}", self.plural),
            _ => format!("{root}/{}", self.plural),
        }
    }

    pub fn has_status(&self) -> bool {
        self.subresources.contains(&"status")
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Kind {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    #[test]
    fn every_kind_has_its_type_and_as_many_cells_as_columns() {
        for row in &KINDS {
            assert!(Schema::get().lookup(row.type_name).is_some(), "{}", row.kind);
            let cells = (row.cells)(&Object(serde_json::json!({})), Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), row.columns.len(), "{}", row.kind);
        }
    }

    #[test]
    fn users_may_shorten() {
        assert_eq!(Kind::by_user_word("po").unwrap().kind, "Pod");
        assert_eq!(Kind::by_user_word("Deployment").unwrap().kind, "Deployment");
        assert_eq!(Kind::by_user_word("deployments.apps").unwrap().kind, "Deployment");
        assert!(Kind::by_user_word("pods.apps").is_none());
    }
}
