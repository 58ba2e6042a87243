//! Watches: the changes of a selection as a stream of events (API-SPEC section 8).
//!
//! Decides which event a change is for this watcher, and how much is made at once. A watch pulls from the local state's history at its
//! client's pace: one chunk is made when the one before was taken, and no state is held meanwhile, so a slow client costs no memory. When
//! the history has moved on it gets a bookmark of what it has seen, is told so, and the watch ends. It must not skip a change.

use std::sync::Arc;

use api::errors::ApiError;
use api::{Object, tables};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use raft_store::{Change, Compacted, Revision, View};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::http::{self, Accept, Reply};
use super::include;
use super::path::Query;
use crate::clock::{self, spawn};
use crate::cluster::Cluster;
use crate::objects::list::Selection;
use crate::objects::{Freshness, shown};
use crate::timing;

/// Bytes of events after which a chunk is sent.
const CHUNK: usize = 64 << 10;
/// Changes or objects after which one is sent, or others get their turn.
const LOOKED_AT: usize = 4_096;
/// Chunks that wait for a slow client.
const CHUNKS: usize = 2;

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
    let (sender, body) = Channel::<Bytes>::new(CHUNKS);
    let out = Out { sender, end: deadline(length) };
    spawn(run(cluster.store.views(), watch, view.revision(), start, initial, out));
    Ok(http::stream("application/json", body.boxed()))
}

/// Where events go: a client that may be slow, until the watch's time is over.
struct Out {
    sender: Sender<Bytes>,
    end: Instant,
}

impl Out {
    /// Waits until the client takes it; of nothing nobody hears. Fails when the client has gone or the time is over.
    async fn send(&mut self, chunk: Vec<u8>) -> Result<(), Gone> {
        if chunk.is_empty() {
            tokio::task::yield_now().await;
            return Ok(());
        }
        match timeout_at(self.end, self.sender.send_data(chunk.into())).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone::Client),
        }
    }
}

async fn run(
    mut views: watch::Receiver<View>,
    mut watch: Watch,
    now: Revision,
    start: Option<Revision>,
    initial: bool,
    mut out: Out,
) {
    let mut seen = start.unwrap_or(now);
    let ended = match start {
        Some(_) => Ok(()),
        None => watch.send_current(&views, now, initial, &mut out).await,
    };
    let ended = match ended {
        Ok(()) => watch.follow(&mut views, &mut seen, &mut out).await,
        gone => gone,
    };
    if let Err(Gone::History(floor)) = ended {
        let mut last = if watch.bookmarks { watch.bookmark(seen, false) } else { Vec::new() };
        last.extend(line("ERROR", ApiError::Expired { asked: seen.0, floor: floor.0 }.to_status()));
        let _ = out.send(last).await;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the driver of a stream; tokio's timers want its own clock"
)]
fn deadline(after: std::time::Duration) -> Instant {
    Instant::now() + after
}

fn line(kind: &str, object: Value) -> Vec<u8> {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    text.into_bytes()
}

/// Why a watch ends before its time.
enum Gone {
    /// The client has gone, or took nothing until the watch's time was over.
    Client,
    /// The history begins after what the client has seen.
    History(Revision),
}

impl From<Compacted> for Gone {
    fn from(compacted: Compacted) -> Gone {
        Gone::History(compacted.floor)
    }
}

impl Watch {
    /// What there is at a revision, page by page.
    async fn send_current(
        &mut self,
        views: &watch::Receiver<View>,
        at: Revision,
        initial: bool,
        out: &mut Out,
    ) -> Result<(), Gone> {
        let mut from: Option<Vec<u8>> = None;
        loop {
            let view = views.borrow().clone();
            let (mut chunk, next) = self.page(&view, at, from.as_deref())?;
            drop(view);
            if next.is_none() && initial {
                chunk.extend(self.bookmark(at, true));
            }
            out.send(chunk).await?;
            match next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Changes, as they come, for as long as the watch lasts.
    async fn follow(
        &mut self,
        views: &mut watch::Receiver<View>,
        seen: &mut Revision,
        out: &mut Out,
    ) -> Result<(), Gone> {
        // Bookmarks come at their own pace, also where changes never stop.
        let mut bookmark = deadline(timing::BOOKMARK);
        loop {
            let view = views.borrow_and_update().clone();
            let (chunk, upto) = self.pull(&view, *seen)?;
            let is_all = upto >= view.revision();
            // A view that is held while the client is waited for keeps everything alive that it shows.
            drop(view);
            out.send(chunk).await?;
            *seen = upto;
            // Looked at first: where there always is a change, waiting for one never times out.
            let due = bookmark.min(out.end);
            let waited = match () {
                () if deadline(std::time::Duration::ZERO) >= due => None,
                () if !is_all => continue,
                () => timeout_at(due, views.changed()).await.ok(),
            };
            match waited {
                Some(Ok(())) => {}
                Some(Err(_)) => return Ok(()),
                None => {
                    if self.bookmarks {
                        out.send(self.bookmark(*seen, false)).await?;
                    }
                    if bookmark >= out.end {
                        return Ok(());
                    }
                    bookmark = deadline(timing::BOOKMARK);
                }
            }
        }
    }

    /// A chunk of what the selection held at a revision, and the key at which the next begins.
    fn page(
        &mut self,
        view: &View,
        at: Revision,
        from: Option<&[u8]>,
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), Compacted> {
        let prefix = self.selection.prefix();
        let mut chunk = Vec::new();
        for (looked_at, entry) in view.prefix_at(prefix.as_bytes(), from, at)?.enumerate() {
            if chunk.len() >= CHUNK || looked_at >= LOOKED_AT {
                return Ok((chunk, Some(entry.key().to_vec())));
            }
            if let Ok(object) = shown(entry)
                && self.selection.matches(&object)
            {
                chunk.extend(self.event("ADDED", object));
            }
        }
        Ok((chunk, None))
    }

    /// A chunk of the changes after a revision, and up to which revision it goes: the changes of one are never divided.
    fn pull(&mut self, view: &View, after: Revision) -> Result<(Vec<u8>, Revision), Compacted> {
        let prefix = self.selection.prefix();
        let (mut chunk, mut upto) = (Vec::new(), after);
        for (looked_at, change) in view.changes(after)?.enumerate() {
            if change.revision > upto && (chunk.len() >= CHUNK || looked_at >= LOOKED_AT) {
                return Ok((chunk, upto));
            }
            upto = change.revision;
            if change.key().starts_with(prefix.as_bytes())
                && let Some((kind, object)) = self.judge(change)
            {
                chunk.extend(self.event(kind, object));
            }
        }
        Ok((chunk, after.max(view.revision())))
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

    fn event(&mut self, kind: &str, object: Object) -> Vec<u8> {
        if !self.table {
            return line(kind, object.0);
        }
        let row = tables::row(self.selection.kind, &object, clock::wall(), self.include);
        let metadata = json!({"resourceVersion": object.resource_version()});
        let definitions = std::mem::take(&mut self.with_definitions);
        line(kind, tables::table(self.selection.kind, vec![row], metadata, definitions))
    }

    fn bookmark(&self, revision: Revision, initial_end: bool) -> Vec<u8> {
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
