//! Lists: a collection of one revision, filtered, in pages.
//!
//! Decides which objects belong to it and where the next page begins.

use api::errors::ApiError;
use api::kinds::Kind;
use api::selector::{FieldSelector, LabelSelector};
use api::{Object, keys};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use raft_store::{Revision, View};
use serde_json::{Value, json};

use super::shown;

/// Which objects of a kind are meant.
#[derive(Debug, Clone)]
pub struct Selection {
    pub kind: &'static Kind,
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Selection {
    pub fn matches(&self, object: &Object) -> bool {
        self.labels.matches(object.labels()) && self.fields.matches(object)
    }

    pub fn prefix(&self) -> String {
        keys::prefix(self.kind, self.namespace.as_deref())
    }
}

/// One page.
#[derive(Debug)]
pub struct Page {
    pub items: Vec<Object>,
    /// The revision that the list shows.
    pub revision: u64,
    pub next: Option<String>,
    /// How many are left; only known without selectors.
    pub remaining: Option<usize>,
}

/// Reads a page; `limit` 0 is no limit.
pub fn page(view: &View, selection: &Selection, limit: usize, token: Option<&str>) -> Result<Page, ApiError> {
    let (revision, start) = match token.filter(|token| !token.is_empty()) {
        None => (view.revision().0, None),
        Some(token) => read_token(view, token)?,
    };
    let prefix = selection.prefix();
    let from = start.as_deref().map(str::as_bytes);
    let mut page = Page { items: Vec::new(), revision, next: None, remaining: None };
    let mut left = 0usize;
    let entries = view.prefix_at(prefix.as_bytes(), from, Revision(revision));
    let entries = entries.map_err(|gone| ApiError::Expired { asked: revision, floor: gone.floor.0 })?;
    for entry in entries {
        if limit > 0 && page.items.len() >= limit {
            if page.next.is_none() {
                page.next = Some(write_token(revision, &String::from_utf8_lossy(entry.key())));
            }
            left += 1;
            continue;
        }
        let object = shown(entry)?;
        if selection.matches(&object) {
            page.items.push(object);
        }
    }
    if page.next.is_some() && selection.labels.is_empty() && selection.fields.is_empty() {
        page.remaining = Some(left);
    }
    Ok(page)
}

/// The revision that a token's pages show.
pub fn revision_of(token: &str) -> Option<Revision> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    value["rv"].as_u64().map(Revision)
}

fn write_token(revision: u64, start: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
}

fn read_token(view: &View, token: &str) -> Result<(u64, Option<String>), ApiError> {
    let bad = || {
        ApiError::BadRequest("continue key is not valid: use the token of the last page, unchanged".into())
    };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let (Some(revision), Some(start)) = (value["rv"].as_u64(), value["start"].as_str()) else {
        return Err(bad());
    };
    if revision < view.floor().0 {
        return Err(ApiError::Expired { asked: revision, floor: view.floor().0 });
    }
    Ok((revision, Some(start.to_string())))
}

/// The list document of a page, items without `kind` and `apiVersion` as Kubernetes sends them.
pub fn document(kind: &Kind, page: Page) -> Value {
    let metadata = metadata(&page);
    let items: Vec<Value> = page
        .items
        .into_iter()
        .map(|object| {
            let mut value = object.0;
            if let Some(map) = value.as_object_mut() {
                map.remove("kind");
                map.remove("apiVersion");
            }
            value
        })
        .collect();
    json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata, "items": items})
}

/// The list's own metadata.
pub fn metadata(page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(next) = &page.next {
        metadata["continue"] = json!(next);
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    metadata
}
