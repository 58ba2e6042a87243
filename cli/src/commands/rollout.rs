//! `skein scale` and `skein rollout status`.

use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::{CommandError, Scope, words};
use crate::client::{Client, Lines, escape};

#[derive(Debug, Args)]
pub struct Scale {
    /// KIND/NAME or KIND NAME.
    #[arg(required = true)]
    words: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// How many.
    #[arg(long)]
    replicas: u32,
}

impl Scale {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        for (kind, name) in words::resolve(&self.words)? {
            let name = name.ok_or_else(|| CommandError::Usage("name what to scale: KIND/NAME".into()))?;
            let path = format!("{}/scale", words::path(kind, &self.scope.namespace, &name));
            let body = json!({"spec": {"replicas": self.replicas}}).to_string();
            client.ask(Method::PATCH, &path, "application/merge-patch+json", body.into_bytes()).await?;
            println!("{} scaled", words::title(kind, &name));
        }
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// Wait until a deployment has rolled out.
    Status {
        /// deployment/NAME.
        #[arg(required = true)]
        words: Vec<String>,
        #[command(flatten)]
        scope: Scope,
        /// Give up after so many seconds; 0 waits for ever.
        #[arg(long, default_value_t = 0)]
        timeout: u64,
    },
}

impl Rollout {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let Rollout::Status { words, scope, timeout } = self;
        let resolved = words::resolve(&words)?;
        let Some((kind, Some(name))) = resolved.into_iter().next() else {
            return Err(CommandError::Usage("name the deployment: deployment/NAME".into()));
        };
        if kind.kind != "Deployment" {
            return Err(CommandError::Usage("only deployments roll out in this release".into()));
        }
        let path = format!(
            "{}?watch=true&fieldSelector=metadata.name%3D{}",
            kind.path(Some(&scope.namespace)),
            escape(&name)
        );
        client.get(&words::path(kind, &scope.namespace, &name)).await?;
        let follow = async {
            let mut lines = Lines::new(client.stream(&path, "application/json").await?);
            let mut last = String::new();
            while let Some(event) = lines.next().await {
                if event["type"] == "DELETED" {
                    return Err(CommandError::Usage(format!("deployment \"{name}\" was deleted")));
                }
                match progress(&event["object"])? {
                    Progress::Done => {
                        println!("deployment \"{name}\" successfully rolled out");
                        return Ok(());
                    }
                    Progress::Waiting(text) if text != last => {
                        println!("{text}");
                        last = text;
                    }
                    Progress::Waiting(_) => {}
                }
            }
            Err(CommandError::Usage("the watch ended; try again".into()))
        };
        match timeout {
            0 => follow.await,
            seconds => tokio::time::timeout(Duration::from_secs(seconds), follow).await.map_err(|_| {
                CommandError::Usage(format!(
                    "not rolled out within {seconds} s; 'skein describe deployment {name}' says why"
                ))
            })?,
        }
    }
}

enum Progress {
    Done,
    Waiting(String),
}

fn progress(deployment: &Value) -> Result<Progress, CommandError> {
    let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let failed = deployment["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["reason"] == "ProgressDeadlineExceeded");
    if failed {
        return Err(CommandError::Usage("the deployment exceeded its progress deadline".into()));
    }
    let (wanted, updated, all, available) = (
        number("/spec/replicas"),
        number("/status/updatedReplicas"),
        number("/status/replicas"),
        number("/status/availableReplicas"),
    );
    Ok(match () {
        () if number("/status/observedGeneration") < number("/metadata/generation") => {
            Progress::Waiting("Waiting for the change to be observed...".into())
        }
        () if updated < wanted => Progress::Waiting(format!(
            "Waiting for rollout to finish: {updated} out of {wanted} new replicas have been updated..."
        )),
        () if all > updated => Progress::Waiting(format!(
            "Waiting for rollout to finish: {} old replicas are pending termination...",
            all - updated
        )),
        () if available < updated => Progress::Waiting(format!(
            "Waiting for rollout to finish: {available} of {updated} updated replicas are available..."
        )),
        () => Progress::Done,
    })
}
