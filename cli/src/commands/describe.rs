//! `skein describe`: one object in detail, with its events.
//!
//! Decides what belongs to an object and has to be asked for. The layout of each kind is in the modules below; a kind without one
//! is shown as it is.

mod machines;
mod page;
mod pods;
#[cfg(test)]
mod tests;

use clap::Args;
use serde_json::{Map, Value};

use super::{CommandError, Scope, words};
use crate::client::{Client, escape};
use crate::output;
use page::Page;

#[derive(Debug, Args)]
pub struct Describe {
    /// KIND NAME or KIND/NAME.
    #[arg(required = true)]
    words: Vec<String>,
    #[command(flatten)]
    scope: Scope,
}

impl Describe {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let mut apart = false;
        for (kind, name) in words::resolve(&self.words)? {
            let names = match name {
                Some(name) => vec![name],
                None => {
                    let list = client.get(&kind.path(Some(&self.scope.namespace))).await?;
                    list["items"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|item| item["metadata"]["name"].as_str().map(String::from))
                        .collect()
                }
            };
            for name in names {
                let object = client.get(&words::path(kind, &self.scope.namespace, &name)).await?;
                // Objects stand apart by an empty line.
                if std::mem::replace(&mut apart, true) {
                    println!();
                }
                output::print(&self.page(client, kind, &object).await?);
                self.events(client, kind, &object).await?;
            }
        }
        Ok(())
    }

    /// The description of one object with what belongs to it.
    async fn page(&self, client: &Client, kind: &api::Kind, object: &Value) -> Result<String, CommandError> {
        let name = object["metadata"]["name"].as_str().unwrap_or("");
        let page = match kind.kind {
            "Pod" => pods::pod(object),
            "Job" => pods::job(object),
            "Deployment" => {
                let uid = &object["metadata"]["uid"];
                let mut sets = self.list(client, "replicasets", "").await?;
                sets.retain(|set| {
                    page::items(set, "/metadata/ownerReferences").iter().any(|owner| owner["uid"] == *uid)
                });
                pods::deployment(object, &sets)
            }
            "Node" => {
                let query = format!("?fieldSelector={}", escape(&format!("spec.nodeName={name}")));
                let path = format!("{}{query}", words::kind("pods")?.path(None));
                let mut bound = items(client.get(&path).await?);
                let ended =
                    |pod: &Value| pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed";
                bound.retain(|pod| !ended(pod));
                machines::node(object, &bound)
            }
            "Service" => {
                let query =
                    format!("?labelSelector={}", escape(&format!("kubernetes.io/service-name={name}")));
                machines::service(object, &self.list(client, "endpointslices", &query).await?)
            }
            _ => return Ok(text(object)),
        };
        Ok(page.text())
    }

    async fn list(&self, client: &Client, kind: &str, query: &str) -> Result<Vec<Value>, CommandError> {
        let path = format!("{}{query}", words::kind(kind)?.path(Some(&self.scope.namespace)));
        Ok(items(client.get(&path).await?))
    }

    async fn events(&self, client: &Client, kind: &api::Kind, object: &Value) -> Result<(), CommandError> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let selector = format!(
            "involvedObject.kind={},involvedObject.name={}",
            kind.kind,
            object["metadata"]["name"].as_str().unwrap_or("")
        );
        let events = words::kind("events")?;
        let path = format!(
            "{}?fieldSelector={}&includeObject=Object",
            events.path(Some(namespace)),
            escape(&selector)
        );
        output::print(&happened(&client.table(&path).await?, &object["metadata"]["uid"]));
        Ok(())
    }
}

fn items(list: Value) -> Vec<Value> {
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Events of this object and not of an earlier one of its name, the oldest first, in kubectl's columns.
fn happened(table: &Value, uid: &Value) -> String {
    let mut rows: Vec<&Value> = table["rows"].as_array().into_iter().flatten().collect();
    rows.retain(|row| row["object"]["involvedObject"]["uid"] == *uid);
    // Times are whole seconds; within one, the order of the writes counts.
    let revision =
        |row: &Value| page::at(row, "/object/metadata/resourceVersion").parse::<u64>().unwrap_or(0);
    rows.sort_by_key(|row| (page::at(row, "/object/lastTimestamp"), revision(row)));
    let line = |row: &&Value| {
        let age = page::plain(&row["cells"][0]);
        let age = match row["object"]["count"].as_i64() {
            Some(count) if count > 1 => format!("{age} (x{count})"),
            _ => age,
        };
        let text = |pointer: &str| page::at(row, &format!("/object{pointer}"));
        let message = text("/message").trim().replace('\n', " ");
        vec![text("/type"), text("/reason"), age, text("/source/component"), message]
    };
    let mut page = Page::default();
    let rows: Vec<Vec<String>> = rows.iter().map(line).collect();
    page.table(0, "Events", &["Type", "Reason", "Age", "From", "Message"], &rows);
    page.text()
}

/// Metadata first, then everything else as it is, without what people do not read.
fn text(object: &Value) -> String {
    let metadata = &object["metadata"];
    let mut text = format!("Name:         {}\n", metadata["name"].as_str().unwrap_or(""));
    if let Some(namespace) = metadata["namespace"].as_str() {
        text.push_str(&format!("Namespace:    {namespace}\n"));
    }
    for (title, field) in [("Labels:      ", "labels"), ("Annotations: ", "annotations")] {
        let pairs = metadata[field]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| !key.starts_with("kubectl.kubernetes.io/last-applied"));
        let lines: Vec<String> =
            pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
        let shown = if lines.is_empty() { "<none>".to_string() } else { lines.join("\n              ") };
        text.push_str(&format!("{title} {shown}\n"));
    }
    text.push_str(&format!("Created:      {}\n", metadata["creationTimestamp"].as_str().unwrap_or("")));
    for owner in metadata["ownerReferences"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "Controlled By: {}/{}\n",
            owner["kind"].as_str().unwrap_or(""),
            owner["name"].as_str().unwrap_or("")
        ));
    }
    let rest: Map<String, Value> = object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "apiVersion" | "kind"))
        .map(|(key, value)| (capitalised(key), value.clone()))
        .collect();
    text.push_str(&output::yaml(&Value::Object(rest)));
    text
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
        .unwrap_or_default()
}
