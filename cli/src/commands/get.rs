//! `skein get` and `skein events`.

use clap::Args;
use serde_json::{Value, json};

use super::{CommandError, Output, Scope, words};
use crate::client::{Client, Lines, escape};
use crate::output::{self, Format};

#[derive(Debug, Args)]
pub struct Get {
    /// KIND, KIND NAME, KIND/NAME; several kinds with commas; 'all'.
    words: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Only objects with these fields.
    #[arg(long)]
    field_selector: Option<String>,
    /// Go on showing changes.
    #[arg(short = 'w', long)]
    watch: bool,
    #[command(flatten)]
    output: Output,
}

impl Get {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let wanted = words::resolve(&self.words)?;
        let several = wanted.len() > 1;
        let mut found = false;
        for (kind, name) in &wanted {
            let namespace = (!self.all_namespaces).then_some(self.scope.namespace.as_str());
            let path = match name {
                Some(name) => words::path(kind, &self.scope.namespace, name),
                None => format!("{}{}", kind.path(namespace), self.query("")),
            };
            match self.output.format {
                Some(Format::Json | Format::Yaml | Format::Name) => {
                    self.documents(client, &path, kind.kind).await?
                }
                None | Some(Format::Wide) => {
                    let wide = self.output.format == Some(Format::Wide);
                    let table = client.table(&path).await?;
                    if table["rows"].as_array().is_some_and(|rows| !rows.is_empty()) {
                        if found {
                            println!();
                        }
                        found = true;
                        output::print(&output::table(&table, wide, self.all_namespaces && kind.namespaced));
                    } else if !several && !self.watch {
                        eprintln!(
                            "No resources found{}.",
                            namespace
                                .filter(|_| kind.namespaced)
                                .map(|n| format!(" in {n} namespace"))
                                .unwrap_or_default()
                        );
                    }
                    if self.watch {
                        let since = table["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_string();
                        return self.follow(client, kind, name.as_deref(), &since).await;
                    }
                }
            }
        }
        Ok(())
    }

    fn query(&self, extra: &str) -> String {
        let mut parts = Vec::new();
        if let Some(selector) = &self.selector {
            parts.push(format!("labelSelector={}", escape(selector)));
        }
        if let Some(selector) = &self.field_selector {
            parts.push(format!("fieldSelector={}", escape(selector)));
        }
        if !extra.is_empty() {
            parts.push(extra.into());
        }
        if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
    }

    async fn documents(&self, client: &Client, path: &str, kind: &str) -> Result<(), CommandError> {
        let value = client.get(path).await?;
        match self.output.format {
            Some(Format::Name) => {
                let items = value["items"].as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                let kind = words::kind(kind)?;
                items.iter().for_each(|item| {
                    println!("{}", words::title(kind, item["metadata"]["name"].as_str().unwrap_or("")))
                });
            }
            Some(Format::Yaml) => output::print(&output::yaml(&value)),
            _ => output::print(&output::json(&value)),
        }
        Ok(())
    }

    async fn follow(
        &self,
        client: &Client,
        kind: &api::Kind,
        name: Option<&str>,
        since: &str,
    ) -> Result<(), CommandError> {
        let namespace = (!self.all_namespaces).then_some(self.scope.namespace.as_str());
        let mut extra = format!("watch=true&resourceVersion={since}");
        if let Some(name) = name {
            extra.push_str(&format!("&fieldSelector=metadata.name%3D{}", escape(name)));
        }
        let path = format!("{}{}", kind.path(namespace), self.query(&extra));
        let body = client.stream(&path, "application/json;as=Table;v=v1;g=meta.k8s.io").await?;
        let mut lines = Lines::new(body);
        let mut definitions = Value::Null;
        while let Some(event) = lines.next().await {
            let mut table = event["object"].clone();
            if event["type"] == "ERROR" {
                return Err(CommandError::Usage(
                    table["message"].as_str().unwrap_or("the watch ended").into(),
                ));
            }
            if table["columnDefinitions"].as_array().is_some_and(|list| !list.is_empty()) {
                definitions = table["columnDefinitions"].clone();
            }
            table["columnDefinitions"] = definitions.clone();
            let text = output::table(
                &table,
                self.output.format == Some(Format::Wide),
                self.all_namespaces && kind.namespaced,
            );
            text.lines().skip(1).for_each(|line| println!("{line}"));
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Events {
    #[command(flatten)]
    scope: Scope,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only of this object: KIND/NAME.
    #[arg(long = "for")]
    of: Option<String>,
}

impl Events {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let kind = words::kind("events")?;
        let namespace = (!self.all_namespaces).then_some(self.scope.namespace.as_str());
        let mut path = kind.path(namespace);
        if let Some(of) = &self.of {
            let resolved = words::resolve(std::slice::from_ref(of))?;
            for (kind, name) in resolved {
                let selector = format!(
                    "involvedObject.kind={},involvedObject.name={}",
                    kind.kind,
                    name.unwrap_or_default()
                );
                path = format!("{path}?fieldSelector={}", escape(&selector));
            }
        }
        let mut table = client
            .table(&format!("{path}{}includeObject=Object", if path.contains('?') { "&" } else { "?" }))
            .await?;
        sort_by_time(&mut table);
        output::print(&output::table(&table, false, self.all_namespaces));
        Ok(())
    }
}

fn sort_by_time(table: &mut Value) {
    if let Some(rows) = table["rows"].as_array_mut() {
        rows.sort_by_key(|row| row["object"]["lastTimestamp"].as_str().unwrap_or("").to_string());
    } else {
        table["rows"] = json!([]);
    }
}
