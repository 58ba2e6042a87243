//! Objects over the store: get, list, create, update, patch, delete, with admission and optimistic concurrency.
//!
//! Decides what a write becomes before it is proposed and what its refusal means to the client. It must not know HTTP.

pub mod admission;
pub mod delete;
pub mod list;

use api::errors::ApiError;
use api::kinds::Kind;
use api::patch::PatchFormat;
use api::{Object, decode, defaults, keys, patch, validate};
use raft_store::{Entry, Revision, View};
use serde_json::{Value, json};

use crate::clock;
use crate::store::{Plan, Store, TransactError};

/// How new a read must be (`resourceVersion` of the request).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Everything acknowledged before: the default.
    Linearizable,
    /// Whatever this machine has.
    Any,
    AtLeast(u64),
}

/// What to do with unknown fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Which part of an object a write is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    #[default]
    Main,
    Status,
}

/// Options of a write.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    pub part: Part,
}

/// A written object and what the client should be warned of.
#[derive(Debug)]
pub struct Written {
    pub object: Object,
    pub warnings: Vec<String>,
}

/// Names one object.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub kind: &'static Kind,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Target<'_> {
    pub fn key(&self) -> String {
        keys::object(self.kind, self.namespace, self.name)
    }

    pub fn not_found(&self) -> ApiError {
        ApiError::NotFound { resource: self.kind.resource(), name: self.name.into() }
    }

    fn conflict(&self) -> ApiError {
        self.conflict_because(
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    fn conflict_because(&self, why: &str) -> ApiError {
        ApiError::Conflict { resource: self.kind.resource(), name: self.name.into(), why: why.into() }
    }
}

/// How often a write is tried again when another one was faster.
const TRIES: usize = 8;

/// The objects of the cluster as the API sees them.
#[derive(Clone)]
pub struct Objects {
    pub store: Store,
}

impl Objects {
    /// A view as new as asked for.
    pub async fn view(&self, freshness: Freshness) -> Result<View, ApiError> {
        match freshness {
            Freshness::Any => self.store.local().await.ok_or_else(no_leader),
            Freshness::Linearizable => self.store.linearizable().await.ok_or_else(no_leader),
            Freshness::AtLeast(revision) => self.store.at_least(Revision(revision)).await.ok_or_else(|| {
                ApiError::FutureRevision { asked: revision, current: self.store.view().revision().0 }
            }),
        }
    }

    pub async fn get(&self, target: Target<'_>, freshness: Freshness) -> Result<Object, ApiError> {
        let view = self.view(freshness).await?;
        let entry = view.get(target.key().as_bytes()).ok_or_else(|| target.not_found())?;
        shown(entry)
    }

    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        body: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let (mut object, warnings) = decoded(kind, body, options.field_validation)?;
        check_identity(kind, namespace, None, &object)?;
        let generated = object.text("/metadata/generateName").to_string();
        for _ in 0..TRIES {
            if object.name().is_empty() && !generated.is_empty() {
                object
                    .set(&["metadata", "name"], json!(api::names::generate(&generated, clock::random_u64())));
            }
            let view = self.view_with_namespace(kind, namespace).await?;
            let mut new = object.clone();
            admission::prepare_create(kind, namespace, &mut new, clock::wall(), &clock::uuid());
            defaults::apply(kind.type_name, &mut new.0);
            let extra = admission::allocate(kind, None, &mut new, &view, clock::random_u64)?;
            validate::create(kind, &new)?;
            if options.dry_run {
                return Ok(Written { object: new.with_resource_version(view.revision().0), warnings });
            }
            let key = keys::object(kind, namespace, new.name());
            let mut plan = extra.expect_absent(&key).put(&key, new.to_vec());
            if kind.namespaced {
                // As it was seen: one that is being terminated meanwhile takes nothing more.
                let key = keys::object(admission::namespaces(), "", namespace);
                let seen = view.get(key.as_bytes()).map_or(0, |entry| entry.mod_revision().0);
                plan = plan.expect_revision(&key, seen);
            }
            match self.store.transact(plan.build(), None).await {
                Ok(revision) => {
                    return Ok(Written { object: new.with_resource_version(revision.0), warnings });
                }
                Err(TransactError::CompareFailed { key: failed, .. })
                    if failed.0.as_ref() == key.as_bytes() =>
                {
                    if generated.is_empty() {
                        return Err(ApiError::AlreadyExists {
                            resource: kind.resource(),
                            name: new.name().into(),
                        });
                    }
                    object.metadata_mut().remove("name");
                }
                // The namespace is gone, or an address was taken meanwhile: look again, with a newer view.
                Err(TransactError::CompareFailed { .. }) => {
                    self.view(Freshness::Linearizable).await?;
                }
                Err(error) => return Err(write_error(error)),
            }
        }
        Err(ApiError::Unavailable("other writes were faster eight times in a row; try again".into()))
    }

    /// A view in which the namespace can be created in; the local one may lag behind another machine's.
    async fn view_with_namespace(&self, kind: &Kind, namespace: &str) -> Result<View, ApiError> {
        let local = self.store.view();
        if !kind.namespaced || admission::check_namespace(&local, namespace, kind).is_ok() {
            return Ok(local);
        }
        let newest = self.view(Freshness::Linearizable).await?;
        admission::check_namespace(&newest, namespace, kind).map(|()| newest)
    }

    /// PUT: replaces the object, or its status. A `resourceVersion` in the body must be the current one.
    pub async fn update(
        &self,
        target: Target<'_>,
        body: Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let (object, warnings) = decoded(target.kind, body, options.field_validation)?;
        check_identity(target.kind, target.namespace, Some(target.name), &object)?;
        let written = self.change(target, options, |_| Ok(object.clone())).await?;
        Ok(Written { object: written, warnings })
    }

    pub async fn patch(
        &self,
        target: Target<'_>,
        format: PatchFormat,
        patch: &[u8],
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let mut warnings = Vec::new();
        let object = self
            .change(target, options, |current| {
                let mut document = current.0.clone();
                patch::apply(target.kind, target.name, format, patch, &mut document)?;
                let (object, found) = decoded(target.kind, document, options.field_validation)?;
                warnings = found;
                check_identity(target.kind, target.namespace, Some(target.name), &object)?;
                Ok(object)
            })
            .await?;
        Ok(Written { object, warnings })
    }

    /// Reads, lets `make` say what the object becomes, admits, checks, writes; again when another write was faster, unless the
    /// new object insists on a revision.
    pub async fn change(
        &self,
        target: Target<'_>,
        options: WriteOptions,
        mut make: impl FnMut(&Object) -> Result<Object, ApiError>,
    ) -> Result<Object, ApiError> {
        for attempt in 0..TRIES {
            let view =
                if attempt == 0 { self.store.view() } else { self.view(Freshness::Linearizable).await? };
            let Some(entry) = view.get(target.key().as_bytes()) else {
                if attempt == 0 {
                    continue;
                }
                return Err(target.not_found());
            };
            let old = shown(entry)?;
            // Nor must "no": what a patch tests, or what a rule forbids, may be true of the newest state.
            let asked = match make(&old) {
                Err(_) if attempt == 0 => continue,
                made => made?,
            };
            if let Some(wanted) = asked.resource_version()
                && old.resource_version() != Some(wanted)
            {
                if attempt == 0 {
                    continue;
                }
                return Err(target.conflict());
            }
            let mut new = asked;
            admission::prepare_update(target.kind, options.part, &old, &mut new);
            defaults::apply(target.kind.type_name, &mut new.0);
            let admitted = admission::allocate(target.kind, Some(&old), &mut new, &view, clock::random_u64)
                .and_then(|extra| validate::update(target.kind, &old, &new).map(|()| extra));
            let extra = match admitted {
                Err(_) if attempt == 0 => continue,
                admitted => admitted?,
            };
            let new = new.without_resource_version();
            let same = new == old.clone().without_resource_version();
            // "Nothing to do" must not be said from a view that may lag behind an acknowledged write.
            if same && attempt == 0 && !options.dry_run {
                continue;
            }
            if same || options.dry_run {
                return Ok(new.with_resource_version(entry.mod_revision().0));
            }
            let finished = new.is_deleting()
                && new.finalizers().is_empty()
                && delete::ends_with_finalizers(target.kind, &new);
            let plan = extra.expect_revision(&target.key(), entry.mod_revision().0);
            let plan = if finished {
                delete::release(target, &new, plan)
            } else {
                plan.put(&target.key(), new.to_vec())
            };
            match self.store.transact(plan.build(), None).await {
                Ok(revision) => return Ok(new.with_resource_version(revision.0)),
                Err(TransactError::CompareFailed { .. }) => {}
                Err(error) => return Err(write_error(error)),
            }
        }
        Err(target.conflict_because("other writes were faster eight times in a row; try again"))
    }
}

/// The object of an entry with its revision.
pub fn shown(entry: &Entry) -> Result<Object, ApiError> {
    let object = Object::from_slice(entry.value())
        .map_err(|error| ApiError::Internal(format!("a stored object cannot be read: {error}")))?;
    Ok(object.with_resource_version(entry.mod_revision().0))
}

/// Strict decoding with what to do about unknown fields.
fn decoded(kind: &Kind, body: Value, validation: FieldValidation) -> Result<(Object, Vec<String>), ApiError> {
    let mut body = body;
    if !body.is_object() {
        return Err(ApiError::BadRequest("the body must be a JSON object".into()));
    }
    let (version, name) = (body["apiVersion"].as_str().unwrap_or(""), body["kind"].as_str().unwrap_or(""));
    if (!version.is_empty() && version != kind.api_version()) || (!name.is_empty() && name != kind.kind) {
        return Err(ApiError::BadRequest(format!(
            "{name} in version \"{version}\" cannot be handled as a {}: this path takes {} {}",
            kind.kind,
            kind.api_version(),
            kind.kind
        )));
    }
    body["apiVersion"] = json!(kind.api_version());
    body["kind"] = json!(kind.kind);
    let found = decode::decode(kind.type_name, &mut body);
    let subject =
        || format!("{} in version \"{}\" cannot be handled as a {}", kind.kind, kind.version, kind.kind);
    if !found.mistyped.is_empty() {
        return Err(ApiError::BadRequest(format!("{}: {}", subject(), found.mistyped.join(", "))));
    }
    let unknown = found.unknown_messages();
    match validation {
        FieldValidation::Strict if !unknown.is_empty() => {
            Err(ApiError::BadRequest(format!("{}: strict decoding error: {}", subject(), unknown.join(", "))))
        }
        FieldValidation::Warn => Ok((Object(body), unknown)),
        _ => Ok((Object(body), Vec::new())),
    }
}

fn check_identity(kind: &Kind, namespace: &str, name: Option<&str>, object: &Object) -> Result<(), ApiError> {
    let said = object.namespace();
    if kind.namespaced && !said.is_empty() && said != namespace {
        return Err(ApiError::BadRequest(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({said} and {namespace})"
        )));
    }
    match name {
        Some(name) if !object.name().is_empty() && object.name() != name => Err(ApiError::BadRequest(
            format!("the name of the object ({}) does not match the name on the URL ({name})", object.name()),
        )),
        _ => Ok(()),
    }
}

pub fn no_leader() -> ApiError {
    ApiError::Unavailable(
        "no leader answered within 3 s: this machine may be cut off from the majority; see 'skein cluster status'".into(),
    )
}

/// What a failed transaction means to a client.
pub fn write_error(error: TransactError) -> ApiError {
    match error {
        TransactError::NoLeader | TransactError::StaleEpoch(_) => ApiError::Unavailable(error.to_string()),
        TransactError::Unknown => ApiError::OutcomeUnknown(error.to_string()),
        TransactError::Refused(why) => ApiError::Unavailable(why),
        TransactError::CompareFailed { .. } => {
            ApiError::Unavailable("another write was faster; try again".into())
        }
    }
}

/// An empty plan, for kinds that allocate nothing.
pub fn no_extra() -> Plan {
    Plan::new()
}
