//! The demo's images: Debian's nginx and redis, unmodified, as OCI archives in the project's cache.
//!
//! Decides what is in them and when they are made anew: the key is the list below. Network only through the machine's
//! own Debian mirror.

mod archive;
mod layer;
mod mirror;
mod root;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock;
use archive::Image;
use layer::{Entry, Layer};

pub use mirror::MirrorError;

const SUITE: &str = "bookworm";
const PACKAGES: &str = "nginx-light,redis-server";
/// To be raised when the way of building changes.
const RECIPE: u32 = 1;

pub const WEB: &str = "docker.io/library/demo-web:1";
pub const REDIS: &str = "docker.io/library/demo-redis:1";

/// Answers with the pod's name, which is its host name.
const NGINX_CONF: &str = "\
worker_processes 1;
daemon off;
error_log stderr warn;
events { worker_connections 512; }
http {
    access_log off;
    default_type text/plain;
    server {
        listen 80 default_server reuseport;
        location / { return 200 \"$hostname\\n\"; }
    }
}
";

/// The images could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error("debootstrap cannot be started: {0}; install the package debootstrap")]
    NoDebootstrap(io::Error),
    #[error("debootstrap from {mirror} failed; it said last:\n{tail}")]
    Debootstrap { mirror: String, tail: String },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{name} is not among the demo's images")]
    Unknown { name: String },
}

/// Where the archives are.
#[derive(Debug, Clone)]
pub struct Images {
    pub directory: PathBuf,
    pub web: PathBuf,
    pub redis: PathBuf,
    /// How long building took; none when they were there.
    pub built: Option<Duration>,
}

/// The project's cache, not under version control; `SKEIN_CACHE` puts it elsewhere.
pub fn cache() -> PathBuf {
    let set = std::env::var_os("SKEIN_CACHE").map(PathBuf::from);
    set.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache"))
}

/// The archives, made now if the cache does not have them. Several processes may ask at once.
pub fn ensure(cache: &Path) -> Result<Images, ImageError> {
    let directory = cache.join("images").join(key());
    fs::create_dir_all(&directory).map_err(|e| at(&directory, e))?;
    let directory = directory.canonicalize().map_err(|e| at(&directory, e))?;
    let lock = directory.join("lock");
    let file = File::create(&lock).map_err(|e| at(&lock, e))?;
    let _held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| at(&lock, e.into()))?;
    let [web, redis] = ["web.tar", "redis.tar"].map(|name| directory.join(name));
    let begun = clock::now();
    let missing = !web.exists() || !redis.exists();
    if missing {
        build(&directory, &web, &redis)?;
    }
    Ok(Images { directory, web, redis, built: missing.then(|| begun.elapsed()) })
}

fn key() -> String {
    let words = format!("{RECIPE} {SUITE} {PACKAGES} {NGINX_CONF}");
    layer::hex(&Sha256::digest(words)).chars().take(12).collect()
}

fn build(directory: &Path, web: &Path, redis: &Path) -> Result<(), ImageError> {
    let mirror = mirror::of_this_machine(SUITE)?;
    let base_file = directory.join("base.layer");
    let base = root::with_debian(&directory.join("root"), SUITE, PACKAGES, &mirror, |root| {
        let entries = layer::entries(root).map_err(|e| at(root, e))?;
        Layer::write(&base_file, &entries).map_err(|e| at(&base_file, e))
    })?;
    for (archive, image) in [(web, web_image()), (redis, redis_image())] {
        let file = archive.with_extension("layer");
        let own = Layer::write(&file, &image.files).map_err(|e| at(&file, e))?;
        archive::write(archive, &image, &[&base, &own]).map_err(|e| at(archive, e))?;
        fs::remove_file(&file).map_err(|e| at(&file, e))?;
    }
    fs::remove_file(&base_file).map_err(|e| at(&base_file, e))
}

fn web_image() -> Image {
    Image {
        name: WEB,
        files: vec![Entry::file("etc/nginx/nginx.conf", NGINX_CONF)],
        config: config(&["nginx"], "80/tcp", "SIGQUIT"),
    }
}

fn redis_image() -> Image {
    let command = [
        "redis-server",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--dir",
        "/data",
        "--appendonly",
        "yes",
    ];
    Image {
        name: REDIS,
        files: vec![Entry::directory("data")],
        config: config(&command, "6379/tcp", "SIGTERM"),
    }
}

fn config(command: &[&str], port: &str, stop: &str) -> Value {
    json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": command,
        "WorkingDir": "/",
        "ExposedPorts": { port: {} },
        "StopSignal": stop,
    })
}

fn at(path: &Path, source: io::Error) -> ImageError {
    ImageError::File { path: path.to_owned(), source }
}
