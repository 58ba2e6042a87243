//! The commands: one closed list, one file for each group.
//!
//! Decides what can be typed. The work is in the modules below and in the agent.

mod agent;
mod apply;
mod cluster;
mod describe;
mod exec;
mod get;
mod image;
mod logs;
mod rollout;
mod state;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::{Client, ClientError};
use crate::output::Format;

/// skein: one container cluster out of Linux machines.
#[derive(Debug, Parser)]
#[command(name = "skein", version, about, disable_help_subcommand = true)]
pub struct Skein {
    /// The agent's socket.
    #[arg(long, global = true, env = "SKEIN_SOCKET", default_value = "/run/skein/agent.sock")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// Where to look for objects.
#[derive(Debug, Clone, Args)]
pub struct Scope {
    /// Namespace of the objects.
    #[arg(short = 'n', long, default_value = "default")]
    namespace: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run this machine's agent.
    Agent(agent::Agent),
    /// Create a cluster with this machine as its first member.
    Init(cluster::Init),
    /// Make this machine a member of a cluster.
    Join(cluster::Join),
    /// Join tokens.
    #[command(subcommand)]
    Token(cluster::Token),
    /// The cluster as a whole.
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// The machines.
    #[command(subcommand)]
    Node(cluster::Node),
    /// Print a kubeconfig for the administrator.
    Kubeconfig,
    /// Create or change objects from files.
    Apply(apply::Apply),
    /// Delete objects.
    Delete(apply::Delete),
    /// Show objects.
    Get(get::Get),
    /// Show one object in detail, with its events.
    Describe(describe::Describe),
    /// What happened lately.
    Events(get::Events),
    /// Print a container's output.
    Logs(logs::Logs),
    /// Run a command in a container.
    Exec(exec::Exec),
    /// Change the number of replicas.
    Scale(rollout::Scale),
    /// Follow a deployment's rollout.
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Images of the cluster.
    #[command(subcommand)]
    Image(image::Image),
    /// Print the version.
    Version,
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Manifest(#[from] api::manifest::ManifestError),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Agent(#[from] ::agent::RunError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Runs a command; the exit code is that of what it ran, where it ran something.
pub fn run(skein: Skein) -> Result<ExitCode, CommandError> {
    if let Command::Agent(agent) = skein.command {
        return agent.run();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask(Client { socket: skein.socket }, skein.command))
}

async fn ask(client: Client, command: Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::Agent(_) => {}
        Command::Init(init) => init.run(&client).await?,
        Command::Join(join) => join.run(&client).await?,
        Command::Token(token) => token.run(&client).await?,
        Command::Cluster(cluster) => cluster.run(&client).await?,
        Command::Node(node) => node.run(&client).await?,
        Command::Kubeconfig => {
            crate::output::print(&crate::output::yaml(&client.get("/skein/v1/kubeconfig").await?))
        }
        Command::Apply(apply) => apply.run(&client).await?,
        Command::Delete(delete) => delete.run(&client).await?,
        Command::Get(get) => get.run(&client).await?,
        Command::Describe(describe) => describe.run(&client).await?,
        Command::Events(events) => events.run(&client).await?,
        Command::Logs(logs) => logs.run(&client).await?,
        Command::Exec(exec) => return exec.run(&client).await,
        Command::Scale(scale) => scale.run(&client).await?,
        Command::Rollout(rollout) => rollout.run(&client).await?,
        Command::Image(image) => image.run(&client).await?,
        Command::Version => {
            let (oldest, newest) = ::agent::cluster_versions();
            println!(
                "skein {} (Kubernetes API {}, cluster versions {oldest} to {newest})",
                env!("CARGO_PKG_VERSION"),
                api::KUBERNETES_VERSION
            )
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How a format is chosen.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Output format.
    #[arg(short = 'o', long = "output", value_enum)]
    format: Option<Format>,
}
