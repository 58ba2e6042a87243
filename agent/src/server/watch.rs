//! Watches: the changes of a selection as a stream of events (API-SPEC section 8).
//!
//! Decides which event a change is for this watcher. A watch pulls from the local state's history at its own pace, so a slow one
//! costs no memory; when the history has moved on it is told so and ends.

use std::sync::Arc;

use api::errors::ApiError;
use api::{Object, tables};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use raft_store::{Change, Revision, View};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::http::{self, Accept, Reply};
use super::include;
use super::path::Query;
use crate::clock::{self, spawn};
use crate::cluster::Cluster;
use crate::objects::list::Selection;
use crate::objects::{Freshness, shown};
use crate::timing;

struct Watch {
    selection: Selection,
    table: bool,
    include: tables::Include,
    with_definitions: bool,
    bookmarks: bool,
}

/// Opens a watch.
pub async fn answer(cluster: &Arc<Cluster>, selection: Selection, accept: Accept, query: &Query) -> Reply {
    let from = query.number("resourceVersion")?;
    let initial = query.is_true("sendInitialEvents");
    let view = match from {
        None => cluster.objects.view(Freshness::Linearizable).await?,
        Some(0) => cluster.objects.view(Freshness::Any).await?,
        Some(revision) if initial => cluster.objects.view(Freshness::AtLeast(revision)).await?,
        // A watch of the future waits for it.
        Some(_) => cluster.store.view(),
    };
    let seconds = query.number("timeoutSeconds")?;
    let length =
        seconds.map_or(timing::WATCH_TIMEOUT, |seconds| std::time::Duration::from_secs(seconds.min(86_400)));
    let watch = Watch {
        selection,
        table: accept.table,
        include: include(query.get("includeObject")),
        with_definitions: true,
        bookmarks: query.is_true("allowWatchBookmarks"),
    };
    let start = if initial || matches!(from, None | Some(0)) { None } else { from.map(Revision) };
    let (sender, body) = Channel::<Bytes>::new(64);
    spawn(run(cluster.clone(), watch, view, start, initial, length, sender));
    Ok(http::stream("application/json", body.boxed()))
}

async fn run(
    cluster: Arc<Cluster>,
    mut watch: Watch,
    view: View,
    start: Option<Revision>,
    initial: bool,
    length: std::time::Duration,
    mut out: Sender<Bytes>,
) {
    let end = deadline(length);
    // Bookmarks come at their own pace, also where changes never stop.
    let mut bookmark = deadline(timing::BOOKMARK);
    let mut views = cluster.store.views();
    let mut seen = start.unwrap_or_else(|| view.revision());
    if start.is_none() && watch.send_current(&view, initial, &mut out).await.is_err() {
        return;
    }
    loop {
        let view = views.borrow_and_update().clone();
        if let Err(gone) = watch.send_changes(&view, seen, &mut out).await {
            if let Some(floor) = gone {
                let status = ApiError::Expired { asked: seen.0, floor: floor.0 }.to_status();
                let _ = out.send_data(line("ERROR", status)).await;
            }
            return;
        }
        seen = seen.max(view.revision());
        match timeout_at(bookmark.min(end), views.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                if watch.bookmarks && out.send_data(watch.bookmark(seen, false)).await.is_err() {
                    return;
                }
                if bookmark >= end {
                    return;
                }
                bookmark = deadline(timing::BOOKMARK);
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the driver of a stream; tokio's timers want its own clock"
)]
fn deadline(after: std::time::Duration) -> Instant {
    Instant::now() + after
}

fn line(kind: &str, object: Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    text.into()
}

/// The client has gone (`None`), or the history has (`Some(floor)`).
type Gone = Option<Revision>;

impl Watch {
    async fn send_current(
        &mut self,
        view: &View,
        initial: bool,
        out: &mut Sender<Bytes>,
    ) -> Result<(), Gone> {
        let prefix = self.selection.prefix();
        let mut lines = Vec::new();
        for (_, entry) in view.prefix(prefix.as_bytes(), None) {
            if let Ok(object) = shown(entry)
                && self.selection.matches(&object)
            {
                lines.push(self.event("ADDED", object));
            }
        }
        if initial {
            lines.push(self.bookmark(view.revision(), true));
        }
        for line in lines {
            out.send_data(line).await.map_err(|_| None)?;
        }
        Ok(())
    }

    async fn send_changes(
        &mut self,
        view: &View,
        after: Revision,
        out: &mut Sender<Bytes>,
    ) -> Result<(), Gone> {
        let prefix = self.selection.prefix();
        let mut lines = Vec::new();
        for change in view.changes(after).map_err(|compacted| Some(compacted.floor))? {
            if change.key.0.starts_with(prefix.as_bytes())
                && let Some((kind, object)) = self.judge(change)
            {
                lines.push(self.event(kind, object));
            }
        }
        for line in lines {
            out.send_data(line).await.map_err(|_| None)?;
        }
        Ok(())
    }

    /// What a change is to this watcher: entering the selection is ADDED, leaving it DELETED.
    fn judge(&self, change: &Change) -> Option<(&'static str, Object)> {
        let before = change
            .before
            .as_ref()
            .and_then(|entry| shown(entry).ok())
            .filter(|object| self.selection.matches(object));
        let after = change
            .after
            .as_ref()
            .and_then(|entry| shown(entry).ok())
            .filter(|object| self.selection.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(object)) => Some(("ADDED", object)),
            (Some(_), Some(object)) => Some(("MODIFIED", object)),
            (Some(object), None) => Some(("DELETED", object.with_resource_version(change.revision.0))),
        }
    }

    fn event(&mut self, kind: &str, object: Object) -> Bytes {
        if !self.table {
            return line(kind, object.0);
        }
        let row = tables::row(self.selection.kind, &object, clock::wall(), self.include);
        let metadata = json!({"resourceVersion": object.resource_version()});
        let definitions = std::mem::take(&mut self.with_definitions);
        line(kind, tables::table(self.selection.kind, vec![row], metadata, definitions))
    }

    fn bookmark(&self, revision: Revision, initial_end: bool) -> Bytes {
        let kind = self.selection.kind;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.table {
            return line("BOOKMARK", tables::table(kind, Vec::new(), metadata, false));
        }
        line("BOOKMARK", json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata}))
    }
}
