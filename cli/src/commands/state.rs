//! `skein cluster recover`, `backup`, `restore`: the state itself.
//!
//! Decides how these read; the agent does the work.

use std::io::{Read, Write};
use std::path::Path;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};

use super::CommandError;
use crate::client::{self, Client, full};
use crate::output;

/// Shows what recovering would do, or does it.
pub async fn recover(client: &Client, lost: Vec<String>, yes: bool) -> Result<(), CommandError> {
    let body = json!({"lost": lost, "really": yes}).to_string().into_bytes();
    let verdict = client.ask(Method::POST, "/skein/v1/recover", "application/json", body).await?.value;
    let best = verdict["best"]["name"].as_str().unwrap_or("").to_string();
    let headers = ["SURVIVOR", "TERM", "INDEX", "CONFIRMED", "TAKEN"].map(String::from);
    let survivors = verdict["survivors"].as_array().cloned().unwrap_or_default();
    let row = |survivor: &Value| {
        let taken = if survivor["name"] == verdict["best"]["name"] { "this log" } else { "" };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
        vec![
            text(&survivor["name"]),
            text(&survivor["last"][0]),
            text(&survivor["last"][1]),
            text(&survivor["commit"]),
            taken.to_string(),
        ]
    };
    output::print(&output::layout(&headers, &survivors.iter().map(row).collect::<Vec<_>>()));
    println!();
    println!("Lost for good:   {}", if lost.is_empty() { "nobody".into() } else { lost.join(", ") });
    println!(
        "Kept:            all of {best}'s log, {} entries of it not known to be confirmed",
        verdict["unconfirmed"]
    );
    println!("May be missing:  writes that only the lost had; nobody can know whether there are any");
    println!("Watches:         begin anew (410 Gone); the revision jumps ahead");
    if verdict["done"] == true {
        println!(
            "\n{best} begins the new cluster epoch now; the others follow by themselves. Watch 'skein cluster status'."
        );
    } else {
        let flags: String = lost.iter().map(|name| format!(" --lost {name}")).collect();
        println!("\nNothing was done. If that is right: skein cluster recover{flags} --yes");
    }
    Ok(())
}

/// One line of the audit.
pub fn audit(recovery: &Value) -> String {
    let text = |field: &str| recovery[field].as_str().unwrap_or("?").to_string();
    if recovery["from"] == "backup" {
        return format!("{} from a backup of cluster {}", text("at"), text("cluster"));
    }
    let lost = recovery["lost"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let lost: Vec<&str> = lost.collect();
    let lost = if lost.is_empty() { "nobody".to_string() } else { lost.join(", ") };
    format!("{} from the log of {}; lost: {lost}", text("at"), text("from"))
}

/// The schedule of backups in words.
pub fn schedule(schedule: &Value) -> String {
    let (seconds, keep) = (schedule["every_s"].as_u64().unwrap_or(0), schedule["keep"].as_u64().unwrap_or(0));
    let every = match seconds {
        0 => return "Backups: off.".into(),
        s if s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s % 3_600 == 0 => format!("{}h", s / 3_600),
        s => format!("{}m", s / 60),
    };
    format!("Backups: every {every}; each voter keeps {keep} below /var/lib/skein/backups.")
}

/// Downloads a backup beside `file`, syncs it, and gives it its name.
pub async fn backup(client: &Client, file: &Path) -> Result<(), CommandError> {
    // Beside it, under a name that is nobody else's.
    let mut aside = file.as_os_str().to_owned();
    aside.push(format!(".{}.part", std::process::id()));
    let aside = std::path::PathBuf::from(aside);
    let written = download(client, &aside).await;
    let bytes = match written {
        Ok(bytes) => bytes,
        Err(error) => {
            let _ = std::fs::remove_file(&aside);
            return Err(error);
        }
    };
    std::fs::rename(&aside, file)?;
    println!("{} written, {bytes} bytes. 'skein cluster restore' makes a cluster of it.", file.display());
    Ok(())
}

async fn download(client: &Client, aside: &Path) -> Result<u64, CommandError> {
    let mut body = client.stream("/skein/v1/backup", "application/octet-stream").await?;
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.create_new(true).write(true).open(aside)?;
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| client::ClientError::Broken(error.to_string()))?;
        if let Some(piece) = frame.data_ref() {
            out.write_all(piece)?;
            bytes += piece.len() as u64;
        }
    }
    out.sync_all()?;
    Ok(bytes)
}

/// Reads a recovery key from a file, or from standard input as `-`.
pub fn read_key(path: &Path) -> Result<String, CommandError> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path)
            .map_err(|error| CommandError::Usage(format!("{}: {error}", path.display())))?;
    }
    Ok(text.trim().to_string())
}

/// Uploads a backup to an agent that belongs to no cluster.
pub async fn restore(
    client: &Client,
    file: &Path,
    name: Option<String>,
    recovery_key: Option<&Path>,
) -> Result<Value, CommandError> {
    let bytes =
        std::fs::read(file).map_err(|error| CommandError::Usage(format!("{}: {error}", file.display())))?;
    let query = name.map_or_else(String::new, |name| format!("?name={}", client::escape(&name)));
    let bytes = Bytes::from(bytes);
    let key = recovery_key.map(read_key).transpose()?;
    let make = || {
        let mut request = client::build(Method::POST, &format!("/skein/v1/restore{query}"));
        if let Some(key) = &key {
            request = request.header(agent::run::RECOVERY_KEY_HEADER, key);
        }
        request.body(full(bytes.clone()))
    };
    let body = client.send_patiently(make).await?.into_body().collect().await;
    let body = body.map_err(|error| client::ClientError::Broken(error.to_string()))?.to_bytes();
    let answer: Value =
        serde_json::from_slice(&body).map_err(|error| client::ClientError::Nonsense(error.to_string()))?;
    println!("{} objects of cluster {} restored.", answer["objects"], answer["from"].as_str().unwrap_or(""));
    Ok(answer)
}
