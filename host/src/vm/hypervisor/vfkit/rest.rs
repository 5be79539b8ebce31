//! vfkit's API: HTTP over a unix socket, as its usage page has it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::text::printable;

/// How long a request may take. vfkit answers from memory; a pause of a busy VM takes a part of a second.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest reply taken, in bytes. A machine with hundreds of devices is described in less.
const MAX_REPLY: usize = 1 << 20;

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum State {
    /// Running.
    #[serde(rename = "VirtualMachineStateRunning")]
    Running,
    /// Over, or not begun.
    #[serde(rename = "VirtualMachineStateStopped")]
    Stopped,
    /// Halted, to go on later.
    #[serde(rename = "VirtualMachineStatePaused")]
    Paused,
    /// Broken.
    #[serde(rename = "VirtualMachineStateError")]
    Error,
    /// On its way to another state.
    #[serde(
        rename = "VirtualMachineStateStarting",
        alias = "VirtualMachineStatePausing",
        alias = "VirtualMachineStateResuming",
        alias = "VirtualMachineStateStopping",
        alias = "VirtualMachineStateSaving",
        alias = "VirtualMachineStateRestoring"
    )]
    Changing,
}

/// What a machine can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Change {
    /// Halt.
    Pause,
    /// Go on.
    Resume,
    /// Press the power button: the guest decides.
    Stop,
    /// Pull the plug.
    HardStop,
}

#[derive(Deserialize)]
struct StateReply {
    state: State,
}

#[derive(Serialize)]
struct StateRequest {
    state: Change,
}

#[derive(Deserialize)]
struct ErrorReply {
    error: String,
}

/// A vfkit's API. Every request has a connection of its own: vfkit may end at any time.
#[derive(Clone, Debug)]
pub struct Rest {
    socket: PathBuf,
}

impl Rest {
    /// The API at a socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// What the machine is doing.
    ///
    /// # Errors
    /// If vfkit does not answer, or says what its usage page does not.
    pub async fn state(&self) -> Result<State> {
        let reply = self.request(Method::GET, "/vm/state", Bytes::new()).await?;
        let reply: StateReply = serde_json::from_slice(&reply).context("vfkit reports a state that is unknown")?;
        Ok(reply.state)
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// If vfkit does not answer, or cannot do that now; with its own words.
    pub async fn change(&self, state: Change) -> Result<()> {
        let body = serde_json::to_vec(&StateRequest { state })?;
        self.request(Method::POST, "/vm/state", body.into()).await.map(drop)
    }

    /// vfkit's description of the machine.
    ///
    /// # Errors
    /// If vfkit does not answer with one.
    pub async fn inspect(&self) -> Result<serde_json::Value> {
        let reply = self.request(Method::GET, "/vm/inspect", Bytes::new()).await?;
        serde_json::from_slice(&reply).context("vfkit describes the machine in no JSON")
    }

    /// A request's whole reply.
    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let what = format!("{method} {path}");
        match tokio::time::timeout(DEADLINE, self.exchange(method, path, body)).await {
            Ok(reply) => reply.with_context(|| format!("vfkit's API at {}: {what}", self.socket.display())),
            Err(_) => bail!("vfkit's API at {}: no reply to {what} within {DEADLINE:?}", self.socket.display()),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let stream = UnixStream::connect(&self.socket).await.context("cannot connect")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the reply is whole, as the sender goes, or when this future is dropped at its deadline.
        let request = Request::builder()
            .method(method)
            .uri(path)
            // HTTP/1.1 wants one.
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
            let body = body.map_err(|error| anyhow!("the reply broke off or is too long: {error}"))?.to_bytes();
            if !status.is_success() {
                let said = serde_json::from_slice(&body).map(|reply: ErrorReply| reply.error);
                bail!("{status}: {}", said.map_or_else(|_| "it gives no reason".to_owned(), |text| printable(&text)));
            }
            Ok(body)
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            reply = &mut exchange => reply,
            // Over before the reply was taken: it has all of it by now, or never will.
            ended = &mut connection => {
                ended.context("the connection broke")?;
                exchange.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// Answers the first request with these bytes; returns that request.
    async fn served(reply: Vec<u8>, ask: impl AsyncFnOnce(Rest)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let mut len = 0;
            // Until the body's closing brace, or the end of a head without body.
            while !request[..len].ends_with(b"}") && !request[..len].ends_with(b"\r\n\r\n") {
                len += stream.read(&mut request[len..]).await.unwrap();
            }
            // In pieces: a reply is whole when it is, not when the first bytes are there. A long one in a thousand of them,
            // which takes no time on a busy machine either.
            for piece in reply.chunks(7.max(reply.len() / 1000)) {
                if stream.write_all(piece).await.is_err() {
                    break;
                }
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
            request.truncate(len);
            String::from_utf8(request).unwrap()
        });
        ask(Rest::new(&socket)).await;
        server.await.unwrap()
    }

    fn reply(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn states_are_read_and_changes_asked_for() {
        let body = r#"{"canHardStop":true,"canPause":true,"state":"VirtualMachineStateRunning"}"#;
        let request = served(reply("200 OK", body), async |rest| {
            assert_eq!(rest.state().await.unwrap(), State::Running);
        })
        .await;
        assert!(request.starts_with("GET /vm/state HTTP/1.1\r\n"), "{request}");
        let request =
            served(reply("202 Accepted", ""), async |rest| rest.change(Change::HardStop).await.unwrap()).await;
        assert!(request.starts_with("POST /vm/state HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with(r#"{"state":"HardStop"}"#), "{request}");
    }

    #[tokio::test]
    async fn chunked_replies_are_read_whole() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{\"cpus\":\r\n2\r\n2}\r\n0\r\n\r\n";
        served(chunked.into(), async |rest| assert_eq!(rest.inspect().await.unwrap()["cpus"], 2)).await;
    }

    #[tokio::test]
    async fn what_goes_wrong_is_an_error_with_the_reason() {
        let error = |result: Result<()>| format!("{:#}", result.unwrap_err());
        let refused = r#"{"error":"vm is\u001b[31m stopped"}"#;
        served(reply("500 Internal Server Error", refused), async |rest| {
            let error = error(rest.change(Change::Pause).await);
            assert!(error.contains("500") && error.contains("stopped") && !error.contains('\u{1b}'), "{error}");
        })
        .await;
        served(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec(), async |rest| {
            let error = error(rest.state().await.map(drop));
            assert!(error.contains("broke off"), "{error}");
        })
        .await;
        let endless = reply("200 OK", &"x".repeat(MAX_REPLY + 1));
        served(endless, async |rest| assert!(error(rest.inspect().await.map(drop)).contains("too long"))).await;
        served(reply("200 OK", r#"{"state":"new"}"#), async |rest| {
            assert!(error(rest.state().await.map(drop)).contains("unknown"));
        })
        .await;
        let nobody = Rest::new(Path::new("/nowhere/s"));
        assert!(error(nobody.state().await.map(drop)).contains("/nowhere/s: GET /vm/state: cannot connect"));
    }
}
