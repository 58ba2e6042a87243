//! `skein init`, `join`, `token`, `cluster`, `node`: the machines.

use std::io::Read;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::CommandError;
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
        let answer = post(client, "/skein/v1/init", &json!({"name": self.name})).await?;
        let text = |field: &str| answer[field].as_str().unwrap_or("").to_string();
        println!(
            "Cluster {} created; this machine is its first member, \"{}\".",
            &text("cluster"),
            text("name")
        );
        print_join(&text("address"), &text("token"));
        Ok(())
    }
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
}

impl Cluster {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let Cluster::Status { output } = self;
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
        if voters.len() < 3 {
            println!("Note:      one disk keeps the state: not redundant until a third machine joins");
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
}

fn members(status: &Value) -> String {
    let headers = ["NAME", "STATE", "ROLE", "ADDRESS", "PODS"].map(String::from);
    let rows: Vec<Vec<String>> = status["members"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|member| {
            ["name", "state", "role", "address", "podCIDR"]
                .iter()
                .map(|field| member[*field].as_str().unwrap_or("").to_string())
                .collect()
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
    /// Say that the machines that are written down as dead are dead: replacing of pods goes on at once.
    ConfirmDead,
    /// Remove every trace of skein from this machine; its agent must be stopped.
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
