//! `skein init`, `join`, `token`, `cluster`, `node`: the machines.

use std::io::Read;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::{CommandError, state};
use crate::client::Client;
use crate::output;

#[derive(Debug, Args)]
pub struct Init {
    /// Name of this node [default: the host's name].
    #[arg(long)]
    name: Option<String>,
}

impl Init {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        print_founded(&post(client, "/skein/v1/init", &json!({"name": self.name})).await?);
        Ok(())
    }
}

fn print_founded(answer: &Value) {
    let text = |field: &str| answer[field].as_str().unwrap_or("").to_string();
    println!("Cluster {} created; this machine is its first member, \"{}\".", &text("cluster"), text("name"));
    print_join(&text("address"), &text("token"));
    print_recovery_key(answer);
}

fn print_recovery_key(answer: &Value) {
    println!(
        "Recovery key. It is shown now and kept nowhere; whoever has it and a backup has the cluster's secrets. Keep it apart\n\
         from the machines:\n\n  {}\n",
        answer["recoveryKey"].as_str().unwrap_or("")
    );
}

fn print_join(address: &str, token: &str) {
    println!(
        "On each further machine, with its agent running (the token is good for one hour):\n\n  skein join {address} --token {token}\n"
    );
}

async fn post(client: &Client, path: &str, body: &Value) -> Result<Value, CommandError> {
    Ok(client.ask(Method::POST, path, "application/json", body.to_string().into_bytes()).await?.value)
}

#[derive(Debug, Args)]
pub struct Join {
    /// Address of any member: IP or IP:PORT.
    address: String,
    /// The token that 'skein init' or 'skein token create' printed; '-' reads it from standard input.
    #[arg(long)]
    token: String,
    /// Name of this node [default: the host's name].
    #[arg(long)]
    name: Option<String>,
}

impl Join {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let mut token = self.token;
        if token == "-" {
            token.clear();
            std::io::stdin().read_to_string(&mut token)?;
        }
        let body = json!({"address": self.address, "token": token.trim(), "name": self.name});
        let answer = post(client, "/skein/v1/join", &body).await?;
        println!(
            "Joined cluster {} as \"{}\".",
            answer["cluster"].as_str().unwrap_or(""),
            answer["name"].as_str().unwrap_or("")
        );
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Print a new join token.
    Create {
        /// Machines that join with it never keep the replicated state's votes.
        #[arg(long)]
        no_voter: bool,
    },
}

impl Token {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let Token::Create { no_voter } = self;
        let answer = post(client, &format!("/skein/v1/tokens?noVoter={no_voter}"), &Value::Null).await?;
        print_join(answer["address"].as_str().unwrap_or(""), answer["token"].as_str().unwrap_or(""));
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Who leads, who votes, who is alive, how far the state is.
    Status {
        #[command(flatten)]
        output: super::Output,
    },
    /// Go on without voters that are destroyed, when the majority is lost for good. Says what it would do unless --yes is given.
    Recover {
        /// A voter that is destroyed or switched off for good; once for each.
        #[arg(long)]
        lost: Vec<String>,
        /// Really do it.
        #[arg(long)]
        yes: bool,
    },
    /// Make a new recovery key and print it, this once. The one before opens nothing any more, except older backups.
    RecoveryKey,
    /// Open the keyring with the recovery key, when no voter that is left can ('cluster status' says so). Run it on the leader.
    Unlock {
        /// A file with the recovery key; '-' reads it from standard input.
        #[arg(long, value_name = "FILE")]
        recovery_key: std::path::PathBuf,
    },
    /// Write the whole state to a file, while the cluster goes on.
    Backup {
        /// The file; what stands there is replaced once the backup is whole.
        file: std::path::PathBuf,
    },
    /// How often each voter makes a backup on its own disk (below /var/lib/skein/backups), and how many it keeps. Shows it, or
    /// changes what is given.
    Backups {
        /// 30m, 6h, 1d, or "off".
        #[arg(long)]
        every: Option<String>,
        /// How many each voter keeps, 1 to 1000.
        #[arg(long)]
        keep: Option<u64>,
    },
    /// Make a new cluster out of a backup, with this machine as its first member. It must belong to none.
    Restore {
        file: std::path::PathBuf,
        /// Name of this node [default: the host's name].
        #[arg(long)]
        name: Option<String>,
        /// A file with the recovery key of the backup's cluster ('-': standard input): without it the Secrets in the backup stay sealed.
        #[arg(long, value_name = "FILE")]
        recovery_key: Option<std::path::PathBuf>,
    },
    /// How many machines keep the state and vote: 1, 3, 5 or 7, or "auto" (1, 3 or 5 by how many there are).
    Voters {
        /// The count.
        count: String,
    },
}

impl Cluster {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        match self {
            Cluster::Status { output } => status(client, &output).await,
            Cluster::Voters { count } => {
                let body = json!({"count": count}).to_string().into_bytes();
                client.ask(Method::PUT, "/skein/v1/voters", "application/json", body).await?;
                println!("Voters: {count}. 'skein cluster status' shows who votes.");
                Ok(())
            }
            Cluster::Recover { lost, yes } => state::recover(client, lost, yes).await,
            Cluster::Backup { file } => state::backup(client, &file).await,
            Cluster::Backups { every, keep } => {
                let body = json!({"every": every, "keep": keep}).to_string().into_bytes();
                let path = "/skein/v1/backups";
                let schedule = match (every, keep) {
                    (None, None) => client.get(path).await?,
                    _ => client.ask(Method::PUT, path, "application/json", body).await?.value,
                };
                println!("{}", state::schedule(&schedule));
                Ok(())
            }
            Cluster::RecoveryKey => {
                print_recovery_key(&post(client, "/skein/v1/recovery-key", &Value::Null).await?);
                Ok(())
            }
            Cluster::Unlock { recovery_key } => {
                let body = json!({"recoveryKey": state::read_key(&recovery_key)?});
                post(client, "/skein/v1/unlock", &body).await?;
                println!("The keyring is open: machines can join, certificates are renewed.");
                Ok(())
            }
            Cluster::Restore { file, name, recovery_key } => {
                print_founded(&state::restore(client, &file, name, recovery_key.as_deref()).await?);
                Ok(())
            }
        }
    }
}

async fn status(client: &Client, output: &super::Output) -> Result<(), CommandError> {
    let status = client.get("/skein/v1/cluster").await?;
    if let Some(format) = output.format {
        output::print(&if format == output::Format::Yaml {
            output::yaml(&status)
        } else {
            output::json(&status)
        });
        return Ok(());
    }
    let text = |field: &str| status[field].as_str().unwrap_or("none").to_string();
    let voters: Vec<&str> =
        status["voters"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    println!("Cluster:   {}", text("cluster"));
    println!("Leader:    {}", text("leader"));
    println!("Voters:    {}", voters.join(", "));
    println!("Revision:  {}", status["revision"]);
    let version = &status["version"];
    println!(
        "Version:   {} (this binary supports {} to {})",
        version["cluster"], version["oldest"], version["newest"]
    );
    let waits: Vec<&str> =
        version["waitsFor"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !waits.is_empty() {
        println!(
            "Note:      the cluster is raised to version {} once these are upgraded: {}",
            version["newest"],
            waits.join(", ")
        );
    }
    if let Some(advice) = status["advice"].as_str() {
        println!("Note:      {advice}");
    }
    if let Some(note) = status["keyring"]["note"].as_str() {
        println!("Note:      {note}");
    }
    for recovery in status["recoveries"].as_array().into_iter().flatten() {
        println!("Recovered: {}", state::audit(recovery));
    }
    if status["brake"] == true {
        println!(
            "Note:      too many machines died at once: pods are not replaced until machines return or 'skein node confirm-dead'"
        );
    }
    println!();
    output::print(&members(&status));
    Ok(())
}

fn members(status: &Value) -> String {
    let headers = ["NAME", "STATE", "ROLE", "ADDRESS", "PODS"].map(String::from);
    let rows: Vec<Vec<String>> = status["members"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|member| {
            let text = |field: &str| member[field].as_str().unwrap_or("").to_string();
            let full = if member["diskFull"] == true { ", disk full" } else { "" };
            let state = format!("{}{full}", text("state"));
            vec![text("name"), state, text("role"), text("address"), text("podCIDR")]
        })
        .collect();
    output::layout(&headers, &rows)
}

#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the members with their state and role.
    Ls,
    /// Take a machine that will not come back off the member list; its key is refused from then on.
    Rm {
        /// The member's name.
        name: String,
        /// Also a machine that is alive.
        #[arg(long)]
        force: bool,
    },
    /// Empty a machine before work on it: nothing new is placed there, its pods are replaced elsewhere, its vote moves if
    /// another machine can take it.
    Drain {
        /// The member's name.
        name: String,
        /// Also pods that nothing replaces: they are gone.
        #[arg(long)]
        force: bool,
    },
    /// Let a drained machine take part again.
    Undrain {
        /// The member's name.
        name: String,
    },
    /// Say that the machines that are written down as dead are dead: replacing of pods goes on at once.
    ConfirmDead,
    /// Remove every trace of skein from this machine, except its backups; its agent must be stopped.
    Reset {
        /// Where the agent kept everything.
        #[arg(long, default_value = "/var/lib/skein")]
        data: std::path::PathBuf,
        /// Where it kept what a boot forgets.
        #[arg(long, default_value = "/run/skein")]
        run: std::path::PathBuf,
        /// Parent of all containers' cgroups.
        #[arg(long, default_value = "/skein")]
        cgroup_parent: String,
        /// Really do it.
        #[arg(long)]
        yes: bool,
    },
}

impl Node {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        match self {
            Node::Ls => output::print(&members(&client.get("/skein/v1/cluster").await?)),
            Node::Rm { name, force } => {
                let path = format!("/skein/v1/nodes/{name}?force={force}");
                client.ask(Method::DELETE, &path, "application/json", Vec::new()).await?;
                println!("\"{name}\" is no longer a member.");
            }
            Node::Drain { name, force } => drain(client, &name, force).await?,
            Node::Undrain { name } => {
                mark(client, &name, false).await?;
                println!("\"{name}\" takes part again.");
            }
            Node::ConfirmDead => {
                let answer = post(client, "/skein/v1/nodes/confirm-dead", &Value::Null).await?;
                let was_on = answer["brakeWasOn"] == true;
                println!(
                    "{}",
                    if was_on { "Replacing goes on." } else { "Nothing was held back: the brake is not on." }
                );
            }
            Node::Reset { yes: false, .. } => {
                return Err(CommandError::Usage("this removes all containers, images, volumes and the membership from this machine; add --yes".into()));
            }
            Node::Reset { data, run, cgroup_parent, .. } => {
                ::agent::reset::reset(&::agent::Config {
                    data,
                    run,
                    cgroup_parent,
                    ..::agent::Config::default()
                })
                .await
                .map_err(|error| CommandError::Usage(error.to_string()))?;
                println!("This machine is a stranger again.");
            }
        }
        Ok(())
    }
}

/// Marks a node as being drained, or no longer.
async fn mark(client: &Client, name: &str, drained: bool) -> Result<(), CommandError> {
    let patch = json!({
        "metadata": {"annotations": {"skein.dev/drain": if drained { json!("true") } else { Value::Null }}},
        "spec": {"unschedulable": if drained { json!(true) } else { Value::Null }},
    });
    let path = format!("/api/v1/nodes/{name}");
    client.ask(Method::PATCH, &path, "application/merge-patch+json", patch.to_string().into_bytes()).await?;
    Ok(())
}

async fn pods_of(client: &Client, name: &str) -> Result<Vec<Value>, CommandError> {
    let list = client.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}")).await?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

async fn drain(client: &Client, name: &str, force: bool) -> Result<(), CommandError> {
    let pods = pods_of(client, name).await?;
    let text = |pod: &Value, field: &str| pod["metadata"][field].as_str().unwrap_or("").to_string();
    let ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let owned =
        |pod: &Value| pod["metadata"]["ownerReferences"].as_array().is_some_and(|list| !list.is_empty());
    let alone: Vec<String> = pods
        .iter()
        .filter(|pod| !owned(pod) && !ended(pod))
        .map(|pod| format!("{}/{}", text(pod, "namespace"), text(pod, "name")))
        .collect();
    if !alone.is_empty() && !force {
        return Err(CommandError::Usage(format!(
            "nothing would replace these pods: {}; delete them, or add --force",
            alone.join(", ")
        )));
    }
    mark(client, name, true).await?;
    // What was bound to it until then is in the list that is read after the mark.
    let mut moved = 0;
    for pod in pods_of(client, name).await?.iter().filter(|pod| !ended(pod)) {
        let path = format!("/api/v1/namespaces/{}/pods/{}", text(pod, "namespace"), text(pod, "name"));
        match client.ask(Method::DELETE, &path, "application/json", Vec::new()).await {
            Ok(_) => moved += 1,
            // Somebody else was faster: it is gone.
            Err(error) if error.code() == Some(404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    println!(
        "\"{name}\" is drained: {moved} pods leave it. 'skein node undrain {name}' lets it take part again."
    );
    Ok(())
}
