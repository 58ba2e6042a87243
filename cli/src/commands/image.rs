//! `skein image`: the cluster's images.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Subcommand;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::Method;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::{CommandError, Output, words};
use crate::client::{Client, ClientError, build, escape, start};
use crate::output::{self, Format};

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Load images from an OCI archive; they are known to all machines afterwards.
    Load {
        /// The archive, for example from 'skopeo copy ... oci-archive:FILE:NAME'.
        file: PathBuf,
        /// Name of the image, where the archive has none or another is wanted.
        #[arg(long)]
        name: Option<String>,
    },
    /// List images.
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Remove images by name.
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

impl Image {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        match self {
            Image::Load { file, name } => load(client, file, name).await,
            Image::Ls { output } => {
                let path = words::kind("images")?.path(None);
                let text = match output.format {
                    Some(Format::Json) => output::json(&client.get(&path).await?),
                    Some(Format::Yaml) => output::yaml(&client.get(&path).await?),
                    Some(Format::Name) => names(&client.get(&path).await?),
                    format => output::table(&client.table(&path).await?, format == Some(Format::Wide), false),
                };
                output::print(&text);
                Ok(())
            }
            Image::Rm { names } => {
                for name in names {
                    client
                        .ask(
                            Method::DELETE,
                            &format!("/skein/v1/images?name={}", escape(&name)),
                            "application/json",
                            Vec::new(),
                        )
                        .await?;
                    println!("image/{name} removed");
                }
                Ok(())
            }
        }
    }
}

fn names(list: &Value) -> String {
    let images = list["items"].as_array().into_iter().flatten();
    images.map(|image| format!("image/{}\n", image["metadata"]["name"].as_str().unwrap_or(""))).collect()
}

async fn load(client: &Client, path: PathBuf, name: Option<String>) -> Result<(), CommandError> {
    let failed = |cause| CommandError::File { path: path.clone(), cause };
    let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
    // The archive is read once: whether the agent is still starting is asked before.
    client.get("/skein/v1/cluster").await?;
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(8);
    start(async move {
        let mut buffer = vec![0u8; 256 << 10];
        while let Ok(count) = file.read(&mut buffer).await {
            if count == 0 || sender.send_data(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                return;
            }
        }
    });
    let query = name.map(|name| format!("?name={}", escape(&name))).unwrap_or_default();
    let request = build(Method::POST, &format!("/skein/v1/images{query}")).body(body.boxed());
    let response = client.send(request.map_err(|error| ClientError::Broken(error.to_string()))?).await?;
    let answer = read(response.into_body()).await?;
    for image in answer["items"].as_array().into_iter().flatten() {
        let holders: Vec<&str> =
            image["status"]["holders"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        println!(
            "loaded {} ({}) on {}",
            image["spec"]["reference"].as_str().unwrap_or(""),
            image["spec"]["digest"].as_str().unwrap_or(""),
            holders.join(", ")
        );
    }
    Ok(())
}

async fn read(body: Incoming) -> Result<Value, ClientError> {
    let bytes = body.collect().await.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| ClientError::Nonsense(error.to_string()))
}
