//! `skein apply` and `skein delete`.

use std::path::PathBuf;
use std::time::Duration;

use api::kinds::Kind;
use api::patch::three_way;
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::{CommandError, Scope, words};
use crate::client::{Client, ClientError};
use crate::output;

/// Where the last applied form is kept; kubectl's own annotation, so that both can be used on one object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[derive(Debug, Args)]
pub struct Apply {
    /// Files or directories with manifests; '-' reads standard input.
    #[arg(short = 'f', long = "filename", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    scope: Scope,
}

/// All documents of the files given.
fn documents(files: &[PathBuf]) -> Result<Vec<Value>, CommandError> {
    let mut found = Vec::new();
    for path in files {
        for text in texts(path)? {
            found.extend(api::manifest::parse(&text)?);
        }
    }
    if found.is_empty() { Err(CommandError::Usage("the files hold no objects".into())) } else { Ok(found) }
}

fn texts(path: &PathBuf) -> Result<Vec<String>, CommandError> {
    let failed = |cause| CommandError::File { path: path.clone(), cause };
    if path.as_os_str() == "-" {
        return Ok(vec![std::io::read_to_string(std::io::stdin())?]);
    }
    if !path.is_dir() {
        return Ok(vec![std::fs::read_to_string(path).map_err(failed)?]);
    }
    let mut inside: Vec<PathBuf> =
        std::fs::read_dir(path).map_err(failed)?.flatten().map(|entry| entry.path()).collect();
    inside.retain(|path| {
        path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
    });
    inside.sort();
    inside
        .iter()
        .map(|path| {
            std::fs::read_to_string(path).map_err(|cause| CommandError::File { path: path.clone(), cause })
        })
        .collect()
}

/// Kind, namespace and name of a document.
fn identify<'a>(
    document: &'a Value,
    scope: &'a Scope,
) -> Result<(&'static Kind, &'a str, &'a str), CommandError> {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (version, word) = (text("/apiVersion"), text("/kind"));
    let kind = Kind::of(version, word).ok_or_else(|| {
        CommandError::Usage(format!("no matches for kind \"{word}\" in version \"{version}\""))
    })?;
    let namespace = match text("/metadata/namespace") {
        "" => scope.namespace.as_str(),
        namespace => namespace,
    };
    // The server says so of everything else; these are written to below.
    for field in ["metadata", "metadata/annotations"] {
        let found = document.pointer(&format!("/{field}"));
        if found.is_some_and(|value| !value.is_object() && !value.is_null()) {
            let field = field.replace('/', ".");
            return Err(CommandError::Usage(format!(
                "{field} is not a map: write it as \"key: value\" lines"
            )));
        }
    }
    Ok((kind, namespace, text("/metadata/name")))
}

/// From what was applied last to what is applied now, which is written down with it.
fn patch(kind: &Kind, last: &Value, plain: &Value) -> Value {
    // Annotations that are all left out go one by one: the map itself stays, with ours in it.
    let mut wanted = plain.clone();
    if wanted["metadata"]["annotations"].is_null() {
        wanted["metadata"]["annotations"] = json!({});
    }
    let mut patch = three_way::create(kind.type_name, last, &wanted);
    patch["metadata"]["annotations"][LAST_APPLIED] = json!(format!("{plain}\n"));
    patch
}

impl Apply {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let mut failed = None;
        for document in documents(&self.files)? {
            if let Err(error) = self.apply(client, &document).await {
                // The others are applied all the same, as kubectl does.
                output::error(&error);
                failed = Some(error);
            }
        }
        match failed {
            None => Ok(()),
            Some(_) => Err(CommandError::Usage("not everything was applied".into())),
        }
    }

    async fn apply(&self, client: &Client, document: &Value) -> Result<(), CommandError> {
        let (kind, namespace, name) = identify(document, &self.scope)?;
        let mut new = document.clone();
        if kind.namespaced {
            new["metadata"]["namespace"] = json!(namespace);
        }
        let plain = new.clone();
        new["metadata"]["annotations"][LAST_APPLIED] = json!(format!("{plain}\n"));
        let path = words::path(kind, namespace, name);
        let live = match client.get(&path).await {
            Ok(live) => live,
            Err(ClientError::Api { code: 404, .. }) => {
                let create = format!("{}?fieldManager=skein-apply", kind.path(Some(namespace)));
                let answer = client
                    .ask(Method::POST, &create, "application/json", new.to_string().into_bytes())
                    .await?;
                answer.warnings.iter().for_each(|text| output::warn(text));
                println!("{} created", words::title(kind, name));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let last = live
            .pointer(&format!("/metadata/annotations/{}", LAST_APPLIED.replace('/', "~1")))
            .and_then(Value::as_str);
        let last: Value = last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| json!({}));
        let patch = patch(kind, &last, &plain);
        let path = format!("{path}?fieldManager=skein-apply");
        let answer = client
            .ask(
                Method::PATCH,
                &path,
                "application/strategic-merge-patch+json",
                patch.to_string().into_bytes(),
            )
            .await?;
        answer.warnings.iter().for_each(|text| output::warn(text));
        let same = answer.value["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
        println!("{} {}", words::title(kind, name), if same { "unchanged" } else { "configured" });
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Delete {
    /// KIND NAME..., KIND/NAME..., or nothing with -f.
    words: Vec<String>,
    /// Files with the objects to delete.
    #[arg(short = 'f', long = "filename")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    scope: Scope,
    /// All objects of the kind in the namespace.
    #[arg(long)]
    all: bool,
    /// Delete pods at once, without waiting for their containers to stop.
    #[arg(long)]
    force: bool,
    /// Seconds that containers get to stop.
    #[arg(long)]
    grace_period: Option<u64>,
    /// Come back before the objects are gone.
    #[arg(long)]
    no_wait: bool,
    /// Do not mind objects that are not there.
    #[arg(long)]
    ignore_not_found: bool,
}

impl Delete {
    pub async fn run(self, client: &Client) -> Result<(), CommandError> {
        let mut targets: Vec<(&'static Kind, String, String)> = Vec::new();
        if !self.files.is_empty() {
            for document in documents(&self.files)? {
                let (kind, namespace, name) = identify(&document, &self.scope)?;
                targets.push((kind, namespace.into(), name.into()));
            }
        }
        if !self.words.is_empty() {
            for (kind, name) in words::resolve(&self.words)? {
                match name {
                    Some(name) => targets.push((kind, self.scope.namespace.clone(), name)),
                    None if self.all => targets.extend(self.everything(client, kind).await?),
                    None => {
                        return Err(CommandError::Usage(format!(
                            "name the {} to delete, or use --all",
                            kind.plural
                        )));
                    }
                }
            }
        }
        if targets.is_empty() && !self.all {
            return Err(CommandError::Usage("name what to delete: KIND NAME, KIND/NAME or -f FILE".into()));
        }
        let mut gone = Vec::new();
        for (kind, namespace, name) in &targets {
            let path = words::path(kind, namespace, name);
            gone.push((uid(client, &path).await, path));
            self.delete(client, kind, namespace, name).await?;
        }
        if !self.no_wait {
            // One of the same name may be made anew at once: it is another.
            for (old, path) in gone.iter().filter(|(old, _)| old.is_some()) {
                while uid(client, path).await == *old {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        Ok(())
    }

    async fn everything(
        &self,
        client: &Client,
        kind: &'static Kind,
    ) -> Result<Vec<(&'static Kind, String, String)>, CommandError> {
        let list = client.get(&kind.path(Some(&self.scope.namespace))).await?;
        let items = list["items"].as_array().into_iter().flatten();
        Ok(items
            .map(|item| {
                (
                    kind,
                    self.scope.namespace.clone(),
                    item["metadata"]["name"].as_str().unwrap_or("").to_string(),
                )
            })
            .collect())
    }

    async fn delete(
        &self,
        client: &Client,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<(), CommandError> {
        let mut options = json!({});
        if let Some(seconds) = self.grace_period.or(self.force.then_some(0)) {
            options["gracePeriodSeconds"] = json!(seconds);
        }
        match client
            .ask(
                Method::DELETE,
                &words::path(kind, namespace, name),
                "application/json",
                options.to_string().into_bytes(),
            )
            .await
        {
            Ok(_) => println!("{} deleted", words::title(kind, name)),
            Err(ClientError::Api { code: 404, .. }) if self.ignore_not_found => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// The uid of an object, if it is there.
async fn uid(client: &Client, path: &str) -> Option<String> {
    client.get(path).await.ok()?["metadata"]["uid"].as_str().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_whose_metadata_is_no_map_is_refused_by_name() {
        let scope = Scope { namespace: "default".into() };
        let said = |metadata: Value| {
            let document = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
            identify(&document, &scope).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(said(json!("text")).starts_with("metadata is not a map"));
        assert!(said(json!(["list"])).starts_with("metadata is not a map"));
        assert!(said(json!({"annotations": "text"})).starts_with("metadata.annotations is not a map"));
        assert_eq!(said(json!({"name": "a", "annotations": null})), "");
    }

    #[test]
    fn annotations_that_are_left_out_go_and_ours_stays() {
        let map = |metadata: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
        let last = map(json!({"name": "a", "annotations": {"gone": "1"}}));
        for now in [json!({"name": "a"}), json!({"name": "a", "annotations": null})] {
            let kind = Kind::by_name("ConfigMap").unwrap();
            let annotations = patch(kind, &last, &map(now))["metadata"]["annotations"].clone();
            assert_eq!(annotations.get("gone"), Some(&Value::Null));
            assert!(annotations[LAST_APPLIED].is_string());
        }
    }
}
