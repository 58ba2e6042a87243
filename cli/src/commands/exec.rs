//! `skein exec`: a further process in a container, without a terminal.

use std::process::ExitCode;

use agent::mesh::wire::ExecFrame;
use agent::server::pods::{read_frame, write_frame};
use clap::Args;
use hyper::Method;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{CommandError, Scope};
use crate::client::{Client, ClientError, build, escape, full, start};

#[derive(Debug, Args)]
pub struct Exec {
    /// The pod.
    pod: String,
    #[command(flatten)]
    scope: Scope,
    /// Which container, where the pod has several.
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// The command and its arguments, after --.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    pub async fn run(self, client: &Client) -> Result<ExitCode, CommandError> {
        let pod = self.pod.strip_prefix("pod/").unwrap_or(&self.pod);
        let mut query = format!("stdin={}", self.stdin);
        for word in &self.command {
            query.push_str(&format!("&command={}", escape(word)));
        }
        if let Some(container) = &self.container {
            query.push_str(&format!("&container={}", escape(container)));
        }
        let path = format!("/skein/v1/exec/{}/{}?{query}", escape(&self.scope.namespace), escape(pod));
        let make = || {
            let request = build(Method::POST, &path).header("connection", "upgrade");
            request.header("upgrade", "skein-exec").body(full(Vec::new()))
        };
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let response = client.send_patiently(make).await?;
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| broken(&error))?;
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        if self.stdin {
            start(async move {
                let mut input = tokio::io::stdin();
                let mut buffer = vec![0u8; 16 << 10];
                loop {
                    let frame = match input.read(&mut buffer).await {
                        Ok(count) if count > 0 => ExecFrame::Stdin(buffer[..count].to_vec()),
                        _ => ExecFrame::StdinEnd,
                    };
                    let ended = frame == ExecFrame::StdinEnd;
                    if write_frame(&mut writer, &frame).await.is_err() || ended {
                        // The connection stays open for the output.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        while let Some(frame) = read_frame(&mut reader).await {
            match frame {
                ExecFrame::Stdout(bytes) => out.write_all(&bytes).await?,
                ExecFrame::Stderr(bytes) => err.write_all(&bytes).await?,
                ExecFrame::Exit(code) => {
                    out.flush().await?;
                    return Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)));
                }
                ExecFrame::Failed(why) => return Err(CommandError::Usage(why)),
                ExecFrame::Stdin(_) | ExecFrame::StdinEnd => {}
            }
            out.flush().await?;
        }
        Err(ClientError::Broken("the command's end was not told".into()).into())
    }
}
