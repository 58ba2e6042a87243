//! Probing a container once: over HTTP or TCP from the node, or by a command inside.
//!
//! Decides what a success is, as Kubernetes has it. It must not decide what follows ([`super::probes`]).

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use runtime::ids::{ContainerName, PodUid};
use runtime::spec::ExecSpec;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use crate::clock;
use crate::cluster::Cluster;

/// How much of a command's output goes into a message.
const OUTPUT_MAX: usize = 1 << 10;

/// Everything one probe needs.
pub struct Target {
    pub uid: PodUid,
    /// The container's document.
    pub container: Value,
    pub probe: Value,
    /// The pod's address.
    pub address: String,
}

/// Probes within the time that the probe allows; the error is for people.
pub async fn once(cluster: &Arc<Cluster>, target: &Target) -> Result<(), String> {
    let seconds = target.probe["timeoutSeconds"].as_u64().unwrap_or(1).max(1);
    let probing = async {
        let probe = &target.probe;
        match () {
            () if probe.get("exec").is_some() => exec(cluster, target).await,
            () if probe.get("httpGet").is_some() => http(target).await,
            () => connect(target, &probe["tcpSocket"]).await.map(drop),
        }
    };
    let timed = tokio::time::timeout(Duration::from_secs(seconds), probing).await;
    timed.unwrap_or_else(|_| Err(format!("no answer within {seconds} s")))
}

async fn connect(target: &Target, at: &Value) -> Result<TcpStream, String> {
    let host = at["host"].as_str().filter(|host| !host.is_empty()).unwrap_or(&target.address);
    let port = port(&target.container, &at["port"]).ok_or_else(|| format!("no port {}", at["port"]))?;
    TcpStream::connect((host, port)).await.map_err(|error| format!("{host}:{port}: {error}"))
}

/// A number, or the name of one of the container's ports.
fn port(container: &Value, port: &Value) -> Option<u16> {
    let text = match port {
        Value::String(text) => text.as_str(),
        number => return number.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    let named = container["ports"].as_array().into_iter().flatten().find(|port| port["name"] == text);
    let number =
        named.and_then(|port| port["containerPort"].as_u64()).and_then(|number| u16::try_from(number).ok());
    number.or_else(|| text.parse().ok())
}

async fn http(target: &Target) -> Result<(), String> {
    let get = &target.probe["httpGet"];
    let stream = connect(target, get).await?;
    let broken = |error: hyper::Error| format!("HTTP: {error}");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let mut request = Request::get(get["path"].as_str().unwrap_or("/")).header("user-agent", "skein-probe");
    let (mut host, headers) = (target.address.as_str(), get["httpHeaders"].as_array());
    for header in headers.into_iter().flatten() {
        let (name, value) = (header["name"].as_str().unwrap_or(""), header["value"].as_str().unwrap_or(""));
        if name.eq_ignore_ascii_case("host") {
            host = value;
        } else {
            request = request.header(name, value);
        }
    }
    let request = request.header("host", host).body(Empty::<bytes::Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let asked = sender.send_request(request);
    tokio::pin!(connection, asked);
    let answer = tokio::select! {
        answer = &mut asked => answer,
        // A server that closes after its answer has answered all the same.
        ended = &mut connection => match ended {
            Ok(()) => asked.await,
            Err(error) => Err(error),
        },
    };
    let answer = answer.map_err(broken)?;
    match answer.status().as_u16() {
        200..400 => Ok(()),
        status => Err(format!("HTTP status {status}")),
    }
}

async fn exec(cluster: &Arc<Cluster>, target: &Target) -> Result<(), String> {
    let words = target.probe["exec"]["command"].as_array().into_iter().flatten();
    let args = words.filter_map(|word| word.as_str().map(String::from)).collect();
    let name =
        ContainerName::new(target.container["name"].as_str().unwrap_or("")).map_err(|e| e.to_string())?;
    let session = cluster.runtime.exec(&target.uid, &name, ExecSpec { args, ..ExecSpec::default() }).await;
    let mut session = session.map_err(|error| error.to_string())?;
    let (out, err) = (Reader::of(session.stdout), Reader::of(session.stderr));
    let code = session.end.wait().await.map_err(|error| error.to_string())?;
    if code == 0 {
        return Ok(());
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_string();
    // What a background process says later is not waited for.
    let said = async { (out.kept().await, err.kept().await) };
    let said = tokio::time::timeout(Duration::from_millis(200), said).await;
    let said = said.map(|(out, err)| format!("{} {}", text(out), text(err)));
    Err(format!("the command ended with code {code}: {}", said.unwrap_or_default().trim()))
}

/// Reads one output of a command. Dropped, it closes its end: a probe that is over holds nothing, whatever still writes.
struct Reader(tokio::task::JoinHandle<Vec<u8>>);

impl Reader {
    fn of(pipe: impl AsyncRead + Unpin + Send + 'static) -> Reader {
        Reader(clock::spawn(beginning(pipe)))
    }

    async fn kept(mut self) -> Vec<u8> {
        (&mut self.0).await.unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads all, so that the command is never held up, and keeps the beginning.
async fn beginning(mut pipe: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; OUTPUT_MAX]);
    while let Ok(count) = pipe.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let room = OUTPUT_MAX - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_are_numbers_or_names() {
        let container = json!({"ports": [{"name": "web", "containerPort": 8080}]});
        assert_eq!(port(&container, &json!(80)), Some(80));
        assert_eq!(port(&container, &json!("web")), Some(8080));
        assert_eq!(port(&container, &json!("81")), Some(81));
        assert_eq!(port(&container, &json!("other")), None);
        assert_eq!(port(&container, &json!(70_000)), None);
    }
}
