//! `skein logs`.

use std::io::Write;

use clap::Args;
use http_body_util::BodyExt;
use serde_json::Value;

use super::{CommandError, Scope, words};
use crate::client::{Client, escape};

#[derive(Debug, Args)]
pub struct Logs {
    /// The pod, or KIND/NAME of what makes pods.
    pod: String,
    #[command(flatten)]
    scope: Scope,
    /// Which container, where the pod has several.
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// Go on as output comes.
    #[arg(short = 'f', long)]
    follow: bool,
    /// The container's run before this one.
    #[arg(short = 'p', long)]
    previous: bool,
    /// Only the last lines.
    #[arg(long)]
    tail: Option<u64>,
    /// A time before each line.
    #[arg(long)]
    timestamps: bool,
}

impl Logs {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let pod = self.pod_name(client).await?;
        let mut query =
            format!("follow={}&previous={}&timestamps={}", self.follow, self.previous, self.timestamps);
        if let Some(container) = &self.container {
            query.push_str(&format!("&container={}", escape(container)));
        }
        if let Some(tail) = self.tail {
            query.push_str(&format!("&tailLines={tail}"));
        }
        let path = format!("{}/log?{query}", words::path(words::kind("pods")?, &self.scope.namespace, &pod));
        let mut body = client.stream(&path, "*/*").await?;
        let mut out = std::io::stdout();
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(bytes) = frame.data_ref()
                && out.write_all(bytes).and_then(|()| out.flush()).is_err()
            {
                break;
            }
        }
        Ok(())
    }

    /// `deployment/web` and `job/fill` mean one of their pods.
    async fn pod_name(&self, client: &Client) -> Result<String, CommandError> {
        let Some((word, name)) = self.pod.split_once('/') else { return Ok(self.pod.clone()) };
        let kind = words::kind(word)?;
        if kind.kind == "Pod" {
            return Ok(name.into());
        }
        let object = client.get(&words::path(kind, &self.scope.namespace, name)).await?;
        let labels = object["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
        let selector: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
        let path = format!(
            "{}?labelSelector={}",
            words::kind("pods")?.path(Some(&self.scope.namespace)),
            escape(&selector.join(","))
        );
        let pods = client.get(&path).await?;
        let pods = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let name = told_most(pods).and_then(|pod| pod["metadata"]["name"].as_str());
        let name = name.ok_or_else(|| CommandError::Usage(format!("{} has no pods", self.pod)))?;
        if pods.len() > 1 {
            eprintln!("Found {} pods, using pod/{name}", pods.len());
        }
        Ok(name.into())
    }
}

/// The pod whose output is most likely meant: one that runs before one that has ended before one that has not begun; of these
/// the newest, so that a job's last try is shown.
fn told_most(pods: &[Value]) -> Option<&Value> {
    let rank = |pod: &Value| match pod["status"]["phase"].as_str() {
        Some("Running") => 2,
        Some("Succeeded" | "Failed") => 1,
        _ => 0,
    };
    // Times are UTC and of one form: their texts are in their order.
    let made = |pod: &Value| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    pods.iter().max_by_key(|pod| (rank(pod), made(pod)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_several_pods_the_running_then_the_newest_is_shown() {
        let pod = |name: &str, phase: &str, minute: u32| {
            let made = format!("2026-01-01T00:{minute:02}:00Z");
            json!({"metadata": {"name": name, "creationTimestamp": made}, "status": {"phase": phase}})
        };
        let mut pods = vec![
            pod("first", "Failed", 1),
            pod("last", "Failed", 3),
            pod("second", "Failed", 2),
            pod("waiting", "Pending", 9),
        ];
        let shown = |pods: &[Value]| told_most(pods).unwrap()["metadata"]["name"].clone();
        assert_eq!(shown(&pods), "last");
        assert_eq!(shown(&pods[3..]), "waiting");
        pods.insert(1, pod("runs", "Running", 0));
        assert_eq!(shown(&pods), "runs");
        assert_eq!(told_most(&[]), None);
    }
}
