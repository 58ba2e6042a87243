//! Logs and exec: answered by the agent of the pod's node, whichever agent was asked.
//!
//! Decides where the pod is and carries bytes. It must not interpret them.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::errors::ApiError;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use quinn::{RecvStream, SendStream};
use runtime::ids::{ContainerName, PodUid};
use runtime::spec::ExecSpec;
use runtime::{ExecSession, LogOptions, LogReceiver};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::http::{self, Reply};
use super::path::{Query, Resource};
use crate::clock::spawn;
use crate::cluster::Cluster;
use crate::mesh::Class;
use crate::mesh::wire::{self, ExecFrame, LogWish, Response};
use crate::objects::{Freshness, Target};
use crate::worker::pods;

/// Where a container is.
struct Place {
    uid: String,
    container: String,
    node: String,
}

async fn place(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    container: Option<&str>,
) -> Result<Place, ApiError> {
    let target = Target { kind: pods(), namespace, name };
    let pod = cluster.objects.get(target, Freshness::Linearizable).await?;
    let node = pod.text("/spec/nodeName").to_string();
    if node.is_empty() {
        return Err(ApiError::BadRequest(format!("pod {name} does not have a host assigned")));
    }
    Ok(Place { uid: pod.uid().into(), container: choose(&pod, container)?, node })
}

fn choose(pod: &Object, wanted: Option<&str>) -> Result<String, ApiError> {
    let names: Vec<&str> = ["/spec/containers", "/spec/initContainers"]
        .iter()
        .flat_map(|list| pod.list(list))
        .filter_map(|c| c["name"].as_str())
        .collect();
    let main: Vec<&str> = pod.list("/spec/containers").iter().filter_map(|c| c["name"].as_str()).collect();
    match (wanted, main.as_slice()) {
        (Some(wanted), _) if names.contains(&wanted) => Ok(wanted.into()),
        (Some(wanted), _) => {
            Err(ApiError::BadRequest(format!("container {wanted} is not valid for pod {}", pod.name())))
        }
        (None, [only]) => Ok((*only).into()),
        (None, _) => Err(ApiError::BadRequest(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.name(),
            main.join(" ")
        ))),
    }
}

/// `GET .../pods/NAME/log`.
pub async fn log(cluster: &Arc<Cluster>, resource: &Resource, request: &Request<Incoming>) -> Reply {
    let query = Query::parse(request.uri().query());
    let (namespace, name) =
        (resource.namespace.as_deref().unwrap_or(""), resource.name.as_deref().unwrap_or(""));
    let place = place(cluster, namespace, name, query.get("container")).await?;
    let since = query.number("sinceSeconds")?.map(|seconds| {
        let back = crate::clock::wall().as_second() - i64::try_from(seconds).unwrap_or(i64::MAX / 2);
        jiff::Timestamp::from_second(back).map(|time| time.to_string()).unwrap_or_default()
    });
    let wish = LogWish {
        follow: query.is_true("follow"),
        previous: query.is_true("previous"),
        timestamps: query.is_true("timestamps"),
        tail: query.number("tailLines")?,
        since: since.or_else(|| query.get("sinceTime").map(String::from)),
        limit_bytes: query.number("limitBytes")?,
    };
    let (mut sender, body) = Channel::<Bytes>::new(16);
    if place.node == cluster.name() {
        let mut lines =
            open_log(cluster, &place.uid, &place.container, &wish).map_err(ApiError::BadRequest)?;
        spawn(async move {
            while let Some(bytes) = next_lines(&mut lines, wish.timestamps).await {
                if sender.send_data(bytes.into()).await.is_err() {
                    return;
                }
            }
        });
    } else {
        let member = node_of(cluster, &place)?;
        let wanted = wire::Request::Logs { uid: place.uid, container: place.container, options: wish };
        let opened = cluster.mesh.open(member, Class::Bulk, &wanted).await;
        let (_send, mut receive) = opened.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        check(&mut receive).await?;
        spawn(async move {
            while let Ok(Some(chunk)) = receive.read_chunk(64 << 10, true).await {
                if sender.send_data(chunk.bytes).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(http::stream("text/plain; charset=utf-8", body.boxed()))
}

fn node_of(cluster: &Cluster, place: &Place) -> Result<raft_store::NodeId, ApiError> {
    let member = cluster.roster.by_name(&place.node);
    member.map(|member| member.node_id()).ok_or_else(|| {
        ApiError::Unavailable(format!("node {} is no member of the cluster any more", place.node))
    })
}

async fn check(receive: &mut RecvStream) -> Result<(), ApiError> {
    match wire::read_frame::<Response>(receive).await {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Refused(why)) => Err(ApiError::BadRequest(why)),
        Ok(_) => Err(ApiError::Internal("the pod's node gave an answer that makes no sense".into())),
        Err(error) => Err(ApiError::Unavailable(format!("the pod's node does not answer: {error}"))),
    }
}

fn open_log(cluster: &Cluster, uid: &str, container: &str, wish: &LogWish) -> Result<LogReceiver, String> {
    let uid = PodUid::new(uid).map_err(|error| error.to_string())?;
    let container_id = ContainerName::new(container).map_err(|error| error.to_string())?;
    let since = wish.since.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let options = LogOptions {
        follow: wish.follow,
        tail: wish.tail.and_then(|tail| usize::try_from(tail).ok()),
        since: since
            .and_then(|time| i64::try_from(time.as_nanosecond()).ok())
            .map(runtime::clock::Timestamp::from_nanos),
        previous: wish.previous,
        timestamps: wish.timestamps,
        limit_bytes: wish.limit_bytes,
    };
    cluster.runtime.logs(&uid, &container_id, options).map_err(|error| {
        format!("container \"{container}\" in the pod is waiting to start or has no log: {error}")
    })
}

async fn next_lines(lines: &mut LogReceiver, timestamps: bool) -> Option<Vec<u8>> {
    let mut bytes = lines.recv().await?.render(timestamps);
    while bytes.len() < 32 << 10 {
        match lines.try_recv() {
            Ok(line) => bytes.extend_from_slice(&line.render(timestamps)),
            Err(_) => break,
        }
    }
    Some(bytes)
}

/// The other side: a log that another agent asks for.
pub async fn serve_log(cluster: &Cluster, uid: &str, container: &str, wish: LogWish, mut send: SendStream) {
    match open_log(cluster, uid, container, &wish) {
        Err(why) => {
            let _ = wire::write_frame(&mut send, &Response::Refused(why)).await;
        }
        Ok(mut lines) => {
            if wire::write_frame(&mut send, &Response::Done).await.is_err() {
                return;
            }
            loop {
                tokio::select! {
                    bytes = next_lines(&mut lines, wish.timestamps) => match bytes {
                        Some(bytes) => if send.write_all(&bytes).await.is_err() { return },
                        None => break,
                    },
                    _ = send.stopped() => return,
                }
            }
        }
    }
    let _ = send.finish();
    let _ = send.stopped().await;
}

/// `POST /skein/v1/exec/NS/POD` with `Upgrade: skein-exec`: frames of 32-bit length and [`ExecFrame`] both ways.
pub async fn exec(cluster: &Arc<Cluster>, namespace: &str, name: &str, request: Request<Incoming>) -> Reply {
    let query = Query::parse(request.uri().query());
    let args: Vec<String> = query.all("command").map(String::from).collect();
    if args.is_empty() {
        return Err(ApiError::BadRequest("exec needs a command".into()));
    }
    let place = place(cluster, namespace, name, query.get("container")).await?;
    let stdin = query.is_true("stdin");
    let (to_client, from_process) = mpsc::channel::<ExecFrame>(16);
    let (to_process, from_client) = mpsc::channel::<ExecFrame>(16);
    if place.node == cluster.name() {
        let session =
            start(cluster, &place.uid, &place.container, args, stdin).await.map_err(ApiError::BadRequest)?;
        spawn(run(session, from_client, to_client));
    } else {
        let member = node_of(cluster, &place)?;
        let wanted = wire::Request::Exec { uid: place.uid, container: place.container, args, stdin };
        let (send, mut receive) = cluster
            .mesh
            .open(member, Class::Bulk, &wanted)
            .await
            .map_err(|error| ApiError::Unavailable(error.to_string()))?;
        check(&mut receive).await?;
        spawn(relay(send, receive, from_client, to_client));
    }
    let upgrade = hyper::upgrade::on(request);
    spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            carry(TokioIo::new(upgraded), from_process, to_process).await;
        }
    });
    let mut answer = http::plain(101, "");
    answer.headers_mut().insert("upgrade", hyper::header::HeaderValue::from_static("skein-exec"));
    answer.headers_mut().insert("connection", hyper::header::HeaderValue::from_static("upgrade"));
    Ok(answer)
}

async fn start(
    cluster: &Cluster,
    uid: &str,
    container: &str,
    args: Vec<String>,
    stdin: bool,
) -> Result<ExecSession, String> {
    let uid = PodUid::new(uid).map_err(|error| error.to_string())?;
    let container = ContainerName::new(container).map_err(|error| error.to_string())?;
    let spec = ExecSpec { args, stdin, ..ExecSpec::default() };
    cluster.runtime.exec(&uid, &container, spec).await.map_err(|error| error.to_string())
}

/// Between a process and two channels of frames, until the process has ended and its output is out.
async fn run(session: ExecSession, mut input: mpsc::Receiver<ExecFrame>, output: mpsc::Sender<ExecFrame>) {
    let ExecSession { mut stdin, stdout, stderr, mut end } = session;
    let feeding = spawn(async move {
        while let Some(frame) = input.recv().await {
            let written = match (frame, &mut stdin) {
                (ExecFrame::Stdin(bytes), Some(pipe)) => pipe.write_all(&bytes).await.is_ok(),
                (ExecFrame::StdinEnd, _) => false,
                _ => true,
            };
            if !written {
                stdin = None;
            }
        }
        // The client has gone: so does the process, unless it has ended.
        drop(stdin);
    });
    let pipes = [
        spawn(pump(stdout, output.clone(), ExecFrame::Stdout)),
        spawn(pump(stderr, output.clone(), ExecFrame::Stderr)),
    ];
    let ended = tokio::select! {
        ended = end.wait() => ended,
        () = output.closed() => return feeding.abort(),
    };
    for pipe in pipes {
        // A process left in the background may hold the pipe for ever; what it says later is not waited for.
        let _ = tokio::time::timeout(Duration::from_millis(500), pipe).await;
    }
    feeding.abort();
    let last = ended.map_or_else(|error| ExecFrame::Failed(error.to_string()), ExecFrame::Exit);
    let _ = output.send(last).await;
}

async fn pump<R: AsyncRead + Unpin>(
    mut pipe: R,
    output: mpsc::Sender<ExecFrame>,
    frame: fn(Vec<u8>) -> ExecFrame,
) {
    let mut buffer = vec![0u8; 16 << 10];
    while let Ok(count) = pipe.read(&mut buffer).await {
        if count == 0 || output.send(frame(buffer[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Between a stream of the mesh and two channels of frames.
async fn relay(
    mut send: SendStream,
    mut receive: RecvStream,
    mut input: mpsc::Receiver<ExecFrame>,
    output: mpsc::Sender<ExecFrame>,
) {
    let feeding = spawn(async move {
        while let Some(frame) = input.recv().await {
            if wire::write_frame(&mut send, &frame).await.is_err() {
                return;
            }
        }
    });
    while let Ok(frame) = wire::read_frame::<ExecFrame>(&mut receive).await {
        if output.send(frame).await.is_err() {
            break;
        }
    }
    feeding.abort();
}

/// The other side: an exec that another agent asks for.
pub async fn serve_exec(
    cluster: &Cluster,
    uid: &str,
    container: &str,
    args: Vec<String>,
    stdin: bool,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let session = match start(cluster, uid, container, args, stdin).await {
        Ok(session) => session,
        Err(why) => {
            let _ = wire::write_frame(&mut send, &Response::Refused(why)).await;
            let _ = send.finish();
            return;
        }
    };
    if wire::write_frame(&mut send, &Response::Done).await.is_err() {
        return;
    }
    let (to_client, mut from_process) = mpsc::channel::<ExecFrame>(16);
    let (to_process, from_client) = mpsc::channel::<ExecFrame>(16);
    spawn(run(session, from_client, to_client));
    let feeding = spawn(async move {
        while let Ok(frame) = wire::read_frame::<ExecFrame>(&mut receive).await {
            if to_process.send(frame).await.is_err() {
                return;
            }
        }
    });
    while let Some(frame) = from_process.recv().await {
        if wire::write_frame(&mut send, &frame).await.is_err() {
            break;
        }
    }
    feeding.abort();
    let _ = send.finish();
    let _ = send.stopped().await;
}

/// Between a client's connection and two channels of frames.
async fn carry<S: AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    mut output: mpsc::Receiver<ExecFrame>,
    input: mpsc::Sender<ExecFrame>,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let feeding = spawn(async move {
        while let Some(frame) = read_frame(&mut reader).await {
            if input.send(frame).await.is_err() {
                return;
            }
        }
    });
    while let Some(frame) = output.recv().await {
        if write_frame(&mut writer, &frame).await.is_err() {
            break;
        }
    }
    let _ = writer.shutdown().await;
    feeding.abort();
}

/// Reads one frame of a client's connection; `None` at its end.
pub async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Option<ExecFrame> {
    let length = reader.read_u32().await.ok()? as usize;
    if length > 1 << 20 {
        return None;
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await.ok()?;
    wire::decode(&bytes).ok()
}

/// Writes one frame.
pub async fn write_frame<W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut W,
    frame: &ExecFrame,
) -> std::io::Result<()> {
    let bytes = wire::encode(frame);
    writer.write_u32(u32::try_from(bytes.len()).unwrap_or(0)).await?;
    writer.write_all(&bytes).await?;
    writer.flush().await
}
