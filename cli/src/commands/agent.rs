//! `skein agent`: runs the agent of this machine in the foreground.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::CommandError;

/// The crate that has two lines for every DNS query.
const TALKATIVE: &str = "hickory_server";

#[derive(Debug, Args)]
pub struct Agent {
    /// Where the agent keeps everything; on a real file system.
    #[arg(long, default_value = "/var/lib/skein")]
    data: PathBuf,
    /// Where it keeps what a boot forgets; a tmpfs.
    #[arg(long, default_value = "/run/skein")]
    run: PathBuf,
    /// This machine's address towards the others [default: found by itself].
    #[arg(long)]
    address: Option<IpAddr>,
    /// UDP port of the mesh.
    #[arg(long, default_value_t = ::agent::config::MESH_PORT)]
    mesh_port: u16,
    /// TCP port of the API.
    #[arg(long, default_value_t = ::agent::config::API_PORT)]
    api_port: u16,
    /// Parent of all containers' cgroups, in every hierarchy.
    #[arg(long, default_value = "/skein")]
    cgroup_parent: String,
    /// Name of the node [default: the host's name].
    #[arg(long)]
    name: Option<String>,
    /// DNS servers for names outside the cluster [default: those of /etc/resolv.conf].
    #[arg(long)]
    upstream_dns: Vec<IpAddr>,
    /// How long, in seconds, certificates of members last that this machine signs while it leads.
    #[arg(long, hide = true, default_value_t = ::agent::timing::CERTIFICATE_LIFETIME.as_secs())]
    certificate_lifetime_s: u64,
    /// How often, in seconds, the replicas' states are compared while this machine leads.
    #[arg(long, hide = true, default_value_t = ::agent::timing::COMPARE_STATES.as_secs())]
    compare_states_s: u64,
    /// What is logged: error, warn, info, debug, or a filter such as info,agent=debug (hickory_server=info: every DNS query).
    #[arg(long, env = "SKEIN_LOG", default_value = "info")]
    log: String,
}

impl Agent {
    pub fn run(self) -> Result<ExitCode, CommandError> {
        let filter = tracing_subscriber::EnvFilter::try_new(filter(&self.log))
            .map_err(|error| CommandError::Usage(format!("--log {}: {error}", self.log)))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
        let config = ::agent::Config {
            data: self.data,
            run: self.run,
            address: self.address,
            mesh_port: self.mesh_port,
            api_port: self.api_port,
            cgroup_parent: self.cgroup_parent,
            name: self.name,
            upstream_dns: self.upstream_dns,
            certificate_lifetime: Duration::from_secs(self.certificate_lifetime_s),
            compare_states: Duration::from_secs(self.compare_states_s),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(::agent::run(config))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The filter that is wanted, without what has a line for every DNS query, unless that is named or even warnings are not wanted.
fn filter(wanted: &str) -> String {
    let is_stricter = wanted.split(',').any(|part| ["error", "off"].contains(&part.trim()));
    match is_stricter || wanted.contains(TALKATIVE) {
        true => wanted.to_owned(),
        false => format!("{TALKATIVE}=warn,{wanted}"),
    }
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn dns_queries_are_logged_only_if_asked_for_and_no_level_is_loosened() {
        assert_eq!(filter("info"), "hickory_server=warn,info");
        assert_eq!(filter("error"), "error");
        assert_eq!(filter("off"), "off");
        assert_eq!(filter("info,hickory_server=info"), "info,hickory_server=info");
    }
}
