//! `skein describe`: one object in detail, with its events.

use clap::Args;
use serde_json::{Map, Value};

use super::{CommandError, Scope, words};
use crate::client::{Client, escape};
use crate::output;

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
                output::print(&text(&object));
                self.events(client, kind, &object).await?;
            }
        }
        Ok(())
    }

    async fn events(&self, client: &Client, kind: &api::Kind, object: &Value) -> Result<(), CommandError> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let selector = format!(
            "involvedObject.kind={},involvedObject.name={}",
            kind.kind,
            object["metadata"]["name"].as_str().unwrap_or("")
        );
        let events = words::kind("events")?;
        let path = format!("{}?fieldSelector={}", events.path(Some(namespace)), escape(&selector));
        let table = client.table(&path).await?;
        let empty = table["rows"].as_array().is_none_or(Vec::is_empty);
        if empty {
            println!("Events:  <none>");
        } else {
            println!("Events:");
            output::table(&table, false, false).lines().for_each(|line| println!("  {line}"));
        }
        println!();
        Ok(())
    }
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
