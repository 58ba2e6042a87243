//! `skein get` and `skein events`.

use clap::Args;
use serde_json::{Value, json};

use super::{CommandError, Output, Scope, words};
use crate::client::{Client, ClientError, Lines, escape};
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

/// A kind with the names that are asked for; none means all.
type Wanted = (&'static api::Kind, Vec<String>);

impl Get {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let wanted = grouped(words::resolve(&self.words)?);
        if self.watch {
            return match wanted.as_slice() {
                [(kind, names)] if names.len() < 2 => self.follow(client, kind, names.first()).await,
                _ => Err(CommandError::Usage("-w follows one kind, and all of it or one object".into())),
            };
        }
        let mut failures = Vec::new();
        match self.output.format {
            Some(format @ (Format::Json | Format::Yaml | Format::Name)) => {
                self.documents(client, &wanted, format, &mut failures).await?
            }
            None | Some(Format::Wide) => self.tables(client, &wanted, &mut failures).await?,
        }
        // What is there was shown; the first that is not is the command's failure.
        let last = failures.pop();
        failures.iter().for_each(|failure| output::error(failure));
        last.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// The paths to ask for one kind.
    fn paths(&self, (kind, names): &Wanted) -> Vec<String> {
        let namespace = (!self.all_namespaces).then_some(self.scope.namespace.as_str());
        if names.is_empty() {
            return vec![format!("{}{}", kind.path(namespace), self.query(""))];
        }
        names.iter().map(|name| words::path(kind, &self.scope.namespace, name)).collect()
    }

    /// One table for each kind; names say their kind where there are several.
    async fn tables(
        &self,
        client: &Client,
        wanted: &[Wanted],
        failures: &mut Vec<ClientError>,
    ) -> Result<(), CommandError> {
        let wide = self.output.format == Some(Format::Wide);
        let mut found = false;
        for one in wanted {
            let mut table = Value::Null;
            for path in self.paths(one) {
                match client.table(&path).await {
                    Ok(more) => append(&mut table, more),
                    Err(failure @ ClientError::Api { code: 404, .. }) => failures.push(failure),
                    Err(failure) => return Err(failure.into()),
                }
            }
            if table["rows"].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            if wanted.len() > 1 {
                name_kinds(&mut table, one.0);
            }
            if std::mem::replace(&mut found, true) {
                println!();
            }
            output::print(&output::table(&table, wide, self.all_namespaces && one.0.namespaced));
        }
        if !found && failures.is_empty() {
            let scoped = !self.all_namespaces && wanted.iter().all(|(kind, _)| kind.namespaced);
            let place =
                if scoped { format!(" in {} namespace", self.scope.namespace) } else { String::new() };
            eprintln!("No resources found{place}.");
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

    /// One object as it is, or everything as one `List`.
    async fn documents(
        &self,
        client: &Client,
        wanted: &[Wanted],
        format: Format,
        failures: &mut Vec<ClientError>,
    ) -> Result<(), CommandError> {
        let single = matches!(wanted, [(_, names)] if names.len() == 1);
        let mut items = Vec::new();
        for one in wanted {
            for path in self.paths(one) {
                match client.get(&path).await {
                    Ok(mut value) if value["items"].is_array() => {
                        let list = value
                            .get_mut("items")
                            .and_then(Value::as_array_mut)
                            .map(std::mem::take)
                            .unwrap_or_default();
                        items.extend(list.into_iter().map(|item| whole(item, one.0)));
                    }
                    Ok(value) => items.push(value),
                    Err(failure @ ClientError::Api { code: 404, .. }) => failures.push(failure),
                    Err(failure) => return Err(failure.into()),
                }
            }
        }
        if format == Format::Name {
            items.iter().for_each(|item| output::print(&document(item, format)));
            return Ok(());
        }
        match items.as_slice() {
            [only] if single => output::print(&document(only, format)),
            [] if single => {}
            _ => {
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items});
                output::print(&document(&list, format));
            }
        }
        Ok(())
    }

    /// Shows what there is, then every change of it.
    async fn follow(
        &self,
        client: &Client,
        kind: &api::Kind,
        name: Option<&String>,
    ) -> Result<(), CommandError> {
        let namespace = (!self.all_namespaces).then_some(self.scope.namespace.as_str());
        let only = name.map(|name| format!("fieldSelector=metadata.name%3D{}", escape(name)));
        let only = only.unwrap_or_default();
        let wide = self.output.format == Some(Format::Wide);
        let documents = self.output.format.filter(|format| *format != Format::Wide);
        let named = self.all_namespaces && kind.namespaced;
        let table = client.table(&format!("{}{}", kind.path(namespace), self.query(&only))).await?;
        if let Some(name) = name
            && table["rows"].as_array().is_none_or(Vec::is_empty)
        {
            // For its error.
            client.get(&words::path(kind, &self.scope.namespace, name)).await?;
        }
        let since = table["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let accept = match documents {
            Some(format) => {
                let list = client.get(&format!("{}{}", kind.path(namespace), self.query(&only))).await?;
                let items = list["items"].as_array().cloned().unwrap_or_default();
                items.into_iter().for_each(|item| output::print(&document(&whole(item, kind), format)));
                "application/json"
            }
            None => {
                output::print(&output::table(&table, wide, named));
                "application/json;as=Table;v=v1;g=meta.k8s.io"
            }
        };
        let only = if only.is_empty() { only } else { format!("{only}&") };
        let query = self.query(&format!("{only}watch=true&resourceVersion={since}"));
        let mut lines = Lines::new(client.stream(&format!("{}{query}", kind.path(namespace)), accept).await?);
        let mut definitions = table["columnDefinitions"].clone();
        while let Some(event) = lines.next().await {
            let mut object = event["object"].clone();
            if event["type"] == "ERROR" {
                let why = object["message"].as_str().unwrap_or("the watch ended");
                return Err(CommandError::Usage(why.into()));
            }
            if let Some(format) = documents {
                output::print(&document(&object, format));
                continue;
            }
            if object["columnDefinitions"].as_array().is_some_and(|list| !list.is_empty()) {
                definitions = object["columnDefinitions"].clone();
            }
            if let Some(fields) = object.as_object_mut() {
                fields.insert("columnDefinitions".into(), definitions.clone());
            }
            output::table(&object, wide, named).lines().skip(1).for_each(|line| println!("{line}"));
        }
        Ok(())
    }
}

/// Names of one kind together, in the order in which they were typed.
fn grouped(resolved: Vec<(&'static api::Kind, Option<String>)>) -> Vec<Wanted> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for (kind, name) in resolved {
        match wanted.iter_mut().find(|(other, _)| other.kind == kind.kind) {
            Some((_, names)) => names.extend(name),
            None => wanted.push((kind, name.into_iter().collect())),
        }
    }
    wanted
}

/// Puts the rows of a table behind those of another one of the same kind.
fn append(table: &mut Value, mut more: Value) {
    let rows = more.get_mut("rows").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    match table.get_mut("rows").and_then(Value::as_array_mut) {
        Some(all) => all.extend(rows),
        None => *table = with_rows(more, rows),
    }
}

/// `pod/NAME` in place of `NAME`.
fn name_kinds(table: &mut Value, kind: &api::Kind) {
    for row in table.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(name) = row["cells"][0].as_str() {
            row["cells"][0] = json!(words::title(kind, name));
        }
    }
}

/// Items of a list come without what the list says once.
fn whole(mut item: Value, kind: &api::Kind) -> Value {
    if let Some(fields) = item.as_object_mut() {
        fields.insert("apiVersion".into(), json!(kind.api_version()));
        fields.insert("kind".into(), json!(kind.kind));
    }
    item
}

/// One document of a stream of them.
fn document(object: &Value, format: Format) -> String {
    match format {
        Format::Name => {
            let name = object["metadata"]["name"].as_str().unwrap_or("");
            let word = object["kind"].as_str().unwrap_or("");
            words::kind(word).map_or_else(|_| name.into(), |kind| words::title(kind, name)) + "\n"
        }
        Format::Yaml => output::yaml(object),
        Format::Json | Format::Wide => output::json(object),
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
    if let Some(rows) = table.get_mut("rows").and_then(Value::as_array_mut) {
        rows.sort_by_key(|row| row["object"]["lastTimestamp"].as_str().unwrap_or("").to_string());
    } else {
        *table = with_rows(table.take(), Vec::new());
    }
}

/// A table with these rows; what is no object becomes one.
fn with_rows(table: Value, rows: Vec<Value>) -> Value {
    let mut fields = match table {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    fields.insert("rows".into(), Value::Array(rows));
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_kind_share_a_table_and_several_kinds_name_themselves() {
        let words: Vec<String> = ["pod/a", "svc/x", "pod/b"].map(String::from).into();
        let wanted = grouped(words::resolve(&words).unwrap());
        assert_eq!(wanted[0].1, ["a", "b"]);
        let mut table =
            json!({"columnDefinitions": [{"name": "Name", "priority": 0}], "rows": [{"cells": ["a"]}]});
        append(&mut table, json!({"rows": [{"cells": ["b"]}]}));
        name_kinds(&mut table, wanted[0].0);
        assert_eq!(output::table(&table, false, false), "NAME\npod/a\npod/b\n");
        let deployment = words::kind("deploy").unwrap();
        let item = whole(json!({"metadata": {"name": "web"}}), deployment);
        assert_eq!(document(&item, Format::Name), "deployment.apps/web\n");
        assert_eq!(item["apiVersion"], "apps/v1");
    }
}
