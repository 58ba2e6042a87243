//! Images: from a name to blobs on this machine, and blobs to a second one.
//!
//! Decides which image a name means and where blobs come from; a load is acknowledged when two live machines have it (all, when
//! there are fewer). It must not trust bytes: the store of `runtime` verifies every blob against its digest.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use api::kinds::Kind;
use api::{Object, duration, keys};
use raft_store::{NodeId, View};
use runtime::ids::Digest;
use runtime::image::{ImageStore, Loaded};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::cluster::Cluster;
use crate::mesh::wire::{self, Request, Response};
use crate::mesh::{Class, MeshError};
use crate::objects::shown;
use crate::store::{Plan, TransactError};

/// How many live machines keep each image.
pub const COPIES: usize = 2;

/// An image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(
        "image {reference} is not in this cluster: load it with 'skein image load FILE', 'skein image ls' shows what is there"
    )]
    Unknown { reference: String },
    #[error(
        "blob {digest} of the image is on no machine that answers (holders: {holders}); load the image again"
    )]
    NoHolder { digest: String, holders: String },
    #[error("the image's record is damaged: {0}; remove it with 'skein image rm' and load it again")]
    Damaged(String),
    #[error("{0}")]
    Archive(String),
    #[error("fetching a blob from {from} failed: {why}")]
    Fetch { from: String, why: String },
    #[error("{0}")]
    Write(#[from] TransactError),
    #[error(
        "{reference} is on this machine only: no other live machine took a copy, so it is not acknowledged; look at 'skein cluster status' and load it again"
    )]
    OneCopy { reference: String },
    #[error("the archive names no image: give a name, 'skein image load --name NAME FILE'")]
    NoName,
}

/// The row of images.
pub fn images() -> &'static Kind {
    Kind::by_name("Image").expect("Image is a row of the table of kinds")
}

/// The full form of a reference: `nginx` is `docker.io/library/nginx:latest`.
pub fn full_reference(reference: &str) -> String {
    let (name, digest) =
        reference.split_once('@').map_or((reference, None), |(name, digest)| (name, Some(digest)));
    let (host, rest) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
            (host.to_string(), rest.to_string())
        }
        Some(_) => ("docker.io".into(), name.to_string()),
        None => ("docker.io".into(), format!("library/{name}")),
    };
    let last = rest.rsplit('/').next().unwrap_or("");
    match digest {
        Some(digest) => format!("{host}/{rest}@{digest}"),
        None if last.contains(':') => format!("{host}/{rest}"),
        None => format!("{host}/{rest}:latest"),
    }
}

/// The name of the Image object of a reference: readable, with a hash that keeps different references apart.
pub fn object_name(reference: &str) -> String {
    let full = full_reference(reference);
    let short =
        full.strip_prefix("docker.io/library/").or_else(|| full.strip_prefix("docker.io/")).unwrap_or(&full);
    let plain: String = short
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(60)
        .collect();
    format!("{plain}-{}", crate::pki::hex(&Sha256::digest(full.as_bytes())[..4]))
}

/// The record of an image.
pub fn find(view: &View, reference: &str) -> Option<Object> {
    shown(view.get(keys::object(images(), "", &object_name(reference)).as_bytes())?).ok()
}

fn blobs_of(image: &Object) -> Result<Vec<(Digest, u64)>, ImageError> {
    let blobs = image.list("/spec/blobs").iter();
    blobs
        .map(|blob| {
            let digest = parse_digest(blob["digest"].as_str().unwrap_or(""))?;
            Ok((digest, blob["size"].as_u64().unwrap_or(0)))
        })
        .collect()
}

/// A digest from its text form.
pub fn parse_digest(text: &str) -> Result<Digest, ImageError> {
    serde_json::from_value(json!(text)).map_err(|error| ImageError::Damaged(error.to_string()))
}

/// This machine's images.
pub struct Images {
    pub store: Arc<ImageStore>,
    /// One fetch at a time; who waits finds the blobs there.
    fetching: tokio::sync::Mutex<()>,
}

impl Images {
    pub fn new(store: Arc<ImageStore>) -> Images {
        Images { store, fetching: tokio::sync::Mutex::new(()) }
    }

    /// The manifest digest of a reference, with all blobs on this machine.
    pub async fn ensure(&self, cluster: &Cluster, reference: &str) -> Result<Digest, ImageError> {
        let view = cluster.store.view();
        let image =
            find(&view, reference).ok_or_else(|| ImageError::Unknown { reference: reference.into() })?;
        let manifest = parse_digest(image.text("/spec/digest"))?;
        let blobs = blobs_of(&image)?;
        if blobs.iter().all(|(digest, _)| self.store.has(digest)) {
            return Ok(manifest);
        }
        let _one = self.fetching.lock().await;
        let holders = holders(&image);
        for (digest, size) in &blobs {
            if !self.store.has(digest) {
                self.fetch_from_any(cluster, &holders, digest, *size).await?;
            }
        }
        Ok(manifest)
    }

    async fn fetch_from_any(
        &self,
        cluster: &Cluster,
        holders: &[String],
        digest: &Digest,
        size: u64,
    ) -> Result<(), ImageError> {
        let suspects = cluster.suspects();
        // Holders first, then everyone: a machine that pulled the image to run it has its blobs as well.
        let named = holders.iter().filter_map(|name| cluster.roster.by_name(name));
        let mut candidates: Vec<_> =
            named.chain(cluster.roster.all()).filter(|member| member.node_id() != cluster.me()).collect();
        candidates.sort_by_key(|member| suspects.contains(&member.node_id()));
        let mut tried = BTreeSet::new();
        for member in candidates {
            if tried.insert(member.id) && self.fetch(cluster, member.node_id(), digest, size).await.is_ok() {
                return Ok(());
            }
        }
        Err(ImageError::NoHolder { digest: digest.to_string(), holders: holders.join(", ") })
    }

    /// Fetches one blob from one member, verifies and syncs it.
    pub async fn fetch(
        &self,
        cluster: &Cluster,
        from: NodeId,
        digest: &Digest,
        size: u64,
    ) -> Result<(), ImageError> {
        let name = cluster.roster.get(from).map_or_else(|| from.to_string(), |member| member.name);
        let failed = |why: String| ImageError::Fetch { from: name.clone(), why };
        let request = Request::FetchBlob(digest.to_string());
        let (_send, mut receive) = cluster
            .mesh
            .open(from, Class::Bulk, &request)
            .await
            .map_err(|error: MeshError| failed(error.to_string()))?;
        match wire::read_frame::<Response>(&mut receive).await {
            Ok(Response::Blob { size: has }) if has == size => {}
            Ok(Response::Refused(why)) => return Err(failed(why)),
            Ok(_) => return Err(failed("it holds another size".into())),
            Err(error) => return Err(failed(error.to_string())),
        }
        let (sender, mut chunks) = tokio::sync::mpsc::channel::<bytes::Bytes>(16);
        let (store, digest) = (self.store.clone(), *digest);
        let writer = clock::blocking(move || {
            let mut ingest = store.ingest(&digest, size).map_err(|error| error.to_string())?;
            while let Some(chunk) = chunks.blocking_recv() {
                ingest.write(&chunk).map_err(|error| error.to_string())?;
            }
            ingest.finish().map_err(|error| error.to_string())
        });
        while let Ok(Some(chunk)) = receive.read_chunk(256 << 10, true).await {
            if sender.send(chunk.bytes).await.is_err() {
                break;
            }
        }
        drop(sender);
        writer.await.map_err(|error| failed(error.to_string()))?.map_err(failed)
    }

    /// Loads an archive that lies in a file, gives its images to a second machine, then records them.
    pub async fn load(
        &self,
        cluster: &Arc<Cluster>,
        file: PathBuf,
        name: Option<String>,
    ) -> Result<Vec<Object>, ImageError> {
        let store = self.store.clone();
        let loading = clock::blocking(move || store.load_archive_file(&file, name.as_deref()));
        let loaded = loading.await.map_err(|error| ImageError::Archive(error.to_string()))?;
        let loaded = loaded.map_err(|error| ImageError::Archive(error.to_string()))?;
        let mut recorded = Vec::new();
        for image in loaded {
            let reference = full_reference(image.name.as_deref().ok_or(ImageError::NoName)?);
            let holders = spread(cluster, &image.blobs, &[cluster.name().to_string()]).await;
            let live = cluster.roster.all().len().saturating_sub(cluster.suspects().len());
            if holders.len() < COPIES.min(live) {
                return Err(ImageError::OneCopy { reference });
            }
            recorded.push(record(cluster, &reference, &image, holders).await?);
        }
        Ok(recorded)
    }
}

fn holders(image: &Object) -> Vec<String> {
    image.list("/status/holders").iter().filter_map(|holder| holder.as_str().map(String::from)).collect()
}

/// Asks machines, in the order of a rendezvous hash, to keep the blobs until there are enough copies. Answers who holds them.
async fn spread(cluster: &Cluster, blobs: &[(Digest, u64)], have: &[String]) -> Vec<String> {
    let suspects = cluster.suspects();
    let key = blobs.first().map(|(digest, _)| digest.hex()).unwrap_or_default();
    let mut candidates: Vec<_> = cluster
        .roster
        .all()
        .into_iter()
        .filter(|member| !have.contains(&member.name) && !suspects.contains(&member.node_id()))
        .collect();
    candidates.sort_by_key(|member| Sha256::digest(format!("{}{key}", member.name)).to_vec());
    let mut holders = have.to_vec();
    for member in candidates {
        if holders.len() >= COPIES {
            break;
        }
        if keep(cluster, member.node_id(), blobs).await.is_ok() {
            holders.push(member.name);
        }
    }
    holders
}

async fn keep(cluster: &Cluster, member: NodeId, blobs: &[(Digest, u64)]) -> Result<(), MeshError> {
    for (digest, size) in blobs {
        let request = Request::KeepBlob { digest: digest.to_string(), size: *size, from: cluster.me().0 };
        match cluster.mesh.request_bulk(member, request).await? {
            Response::Done => {}
            other => return Err(MeshError::Broken { name: member.to_string(), why: format!("{other:?}") }),
        }
    }
    Ok(())
}

async fn record(
    cluster: &Cluster,
    reference: &str,
    image: &Loaded,
    holders: Vec<String>,
) -> Result<Object, ImageError> {
    let name = object_name(reference);
    let key = keys::object(images(), "", &name);
    let size: u64 = image.blobs.iter().map(|(_, size)| size).sum();
    let blobs: Vec<Value> = image
        .blobs
        .iter()
        .map(|(digest, size)| json!({"digest": digest.to_string(), "size": size}))
        .collect();
    let object = Object(json!({
        "apiVersion": images().api_version(), "kind": "Image",
        "metadata": {"name": name, "uid": clock::uuid(), "creationTimestamp": duration::rfc3339(clock::wall())},
        "spec": {"reference": reference, "digest": image.manifest.to_string(), "size": size, "blobs": blobs},
        "status": {"holders": holders},
    }));
    // The last load of a name wins, as with a tag.
    cluster.store.transact(Plan::new().put(&key, object.to_vec()).build(), None).await?;
    Ok(object)
}

/// Keeps two live copies of every image: called by the leader when machines die or come. False if a copy is still missing that
/// could be made.
pub async fn repair(cluster: &Arc<Cluster>) -> bool {
    let mut whole = true;
    let view = cluster.store.view();
    let suspects = cluster.suspects();
    for entry in view.prefix(keys::prefix(images(), None).as_bytes(), None) {
        let Ok(image) = shown(entry) else { continue };
        let all = holders(&image);
        let live: Vec<String> = all
            .iter()
            .filter(|name| {
                cluster.roster.by_name(name).is_some_and(|member| !suspects.contains(&member.node_id()))
            })
            .cloned()
            .collect();
        let members =
            cluster.roster.all().into_iter().filter(|member| !suspects.contains(&member.node_id())).count();
        let wanted = COPIES.min(members);
        if live.len() >= wanted || live.is_empty() {
            continue;
        }
        let Ok(blobs) = blobs_of(&image) else { continue };
        // This machine fetches what it lacks first: the others are sent copies from here.
        if cluster.images.ensure(cluster, image.text("/spec/reference")).await.is_err() {
            whole = false;
            continue;
        }
        let mut have = live.clone();
        if !have.iter().any(|name| name == cluster.name()) {
            have.push(cluster.name().to_string());
        }
        let now = spread(cluster, &blobs, &have).await;
        whole &= now.len() >= wanted;
        let mut new = image.clone().without_resource_version();
        let kept: Vec<String> = all
            .into_iter()
            .filter(|name| !now.contains(name) && cluster.roster.by_name(name).is_some())
            .collect();
        new.set(&["status", "holders"], json!(now.into_iter().chain(kept).collect::<Vec<_>>()));
        let key = String::from_utf8_lossy(entry.key()).into_owned();
        let plan = Plan::new().expect_revision(&key, entry.mod_revision().0).put(&key, new.to_vec());
        whole &= cluster.store.transact(plan.build(), None).await.is_ok();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_one_full_form() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.22", "docker.io/library/nginx:1.22"),
            ("team/app", "docker.io/team/app:latest"),
            ("localhost:5000/app:2", "localhost:5000/app:2"),
            ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
        ] {
            assert_eq!(full_reference(short), full);
        }
        assert_eq!(object_name("nginx"), object_name("docker.io/library/nginx:latest"));
        assert_ne!(object_name("a/b"), object_name("a-b"));
    }
}
