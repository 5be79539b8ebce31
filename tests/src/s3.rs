//! An S3 server of a test's own, and a proxy before it that counts, delays and breaks.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::inputs;
use crate::programs::start_on_port;
use tempfile::TempDir;

/// The one key that the server lets in.
const KEY: &str = "lazyroot-test";

/// Its secret.
const SECRET: &str = "no-secret-at-all";

/// The bucket that is there.
pub const BUCKET: &str = "images";

/// s3s-fs on a port and a folder of its own, ended when dropped.
pub struct S3 {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Default for S3 {
    fn default() -> Self {
        let dir = TempDir::with_prefix("lr").expect("a folder for temporary files");
        fs::create_dir(dir.path().join(BUCKET)).expect("the folder is ours");
        let program = inputs::S3.path();
        let (child, port) = start_on_port("the S3 server", |port| {
            let mut command = Command::new(&program);
            command
                .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--access-key", KEY, "--secret-key", SECRET])
                .arg(dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        });
        Self { child, dir, port }
    }
}

impl S3 {
    /// The bucket's folder.
    pub fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join(BUCKET)
    }

    /// What a program needs in its environment to come here.
    pub fn variables(&self) -> Vec<(String, String)> {
        variables(self.port)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn variables(port: u16) -> Vec<(String, String)> {
    let endpoint = format!("http://127.0.0.1:{port}");
    [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_ALLOW_HTTP", "true"),
        ("NO_PROXY", "127.0.0.1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// What the proxy does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Passes it on.
    None,
    /// Answers 503 SlowDown, as S3 throttles.
    SlowDown,
    /// Answers 500.
    Internal,
    /// Breaks the answer's body off in the middle.
    Truncated,
    /// Flips a bit in the middle of the answer's body.
    Damaged,
    /// Hangs up without an answer.
    HangUp,
    /// Says nothing for this long, then hangs up.
    Silent(Duration),
}

/// Chooses a fault for a request, by its number from 0, its method and its path.
pub type Choose = dyn Fn(u64, &str, &str) -> Fault + Send + Sync;

/// What passed through a proxy.
#[derive(Default)]
pub struct Counts {
    /// Requests, those answered with a fault too.
    pub requests: AtomicU64,
    /// Bytes of answers' bodies.
    pub bytes: AtomicU64,
    /// Faults.
    pub faults: AtomicU64,
}

/// An HTTP proxy on a port of its own. Its threads end with their connections.
pub struct Proxy {
    port: u16,
    counts: Arc<Counts>,
}

impl Proxy {
    /// Before `s3`, with `delay` for each request.
    pub fn new(s3: &S3, delay: Duration, choose: Box<Choose>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (server, counts, choose) = (s3.port, Arc::<Counts>::default(), Arc::new(choose));
        let of = counts.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (counts, choose) = (of.clone(), choose.clone());
                // A client that hangs up is no fault.
                thread::spawn(move || {
                    let _ = relay(client, server, delay, &counts, &**choose);
                });
            }
        });
        Self { port, counts }
    }

    /// What a program needs in its environment to come here.
    pub fn variables(&self) -> Vec<(String, String)> {
        variables(self.port)
    }

    /// What passed so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// One connection.
fn relay(client: TcpStream, server: u16, delay: Duration, counts: &Counts, choose: &Choose) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (mut from_client, mut to_client) = (BufReader::new(client.try_clone()?), client);
    let (mut from_server, mut to_server) = (BufReader::new(server.try_clone()?), server);
    loop {
        let Some((head, length)) = read_head(&mut from_client)? else { return Ok(()) };
        let body = read_body(&mut from_client, length)?;
        let line = String::from_utf8_lossy(&head);
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fault = choose(counts.requests.fetch_add(1, Ordering::Relaxed), method, path);
        thread::sleep(delay);
        if fault != Fault::None {
            counts.faults.fetch_add(1, Ordering::Relaxed);
        }
        match fault {
            Fault::SlowDown => to_client.write_all(&document(503, "SlowDown", method))?,
            Fault::Internal => to_client.write_all(&document(500, "InternalError", method))?,
            Fault::HangUp => return to_client.shutdown(Shutdown::Both),
            Fault::Silent(time) => {
                thread::sleep(time);
                return to_client.shutdown(Shutdown::Both);
            }
            Fault::None | Fault::Truncated | Fault::Damaged => {
                to_server.write_all(&[head.as_slice(), &body].concat())?;
                let Some((head, length)) = read_head(&mut from_server)? else { return Ok(()) };
                let length = if method == "HEAD" { Length::Bytes(0) } else { length };
                let mut body = read_body(&mut from_server, length)?;
                counts.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
                if fault == Fault::Damaged
                    && let middle = body.len() / 2
                    && let Some(byte) = body.get_mut(middle)
                {
                    *byte ^= 1;
                }
                let cut = if fault == Fault::Truncated { body.len() / 2 } else { body.len() };
                to_client.write_all(&[head.as_slice(), &body[..cut]].concat())?;
                if fault == Fault::Truncated {
                    return to_client.shutdown(Shutdown::Both);
                }
            }
        }
    }
}

/// How long a body is.
#[derive(Clone, Copy)]
enum Length {
    Bytes(usize),
    /// It comes in chunks, each with its length.
    Chunks,
}

/// A request's or answer's head, and the length of the body that follows; `None` at the stream's end.
fn read_head(stream: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, Length)>> {
    let (mut head, mut length) = (Vec::new(), Length::Bytes(0));
    loop {
        let start = head.len();
        if stream.read_until(b'\n', &mut head)? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&head[start..]).to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = Length::Bytes(value.trim().parse().map_err(io::Error::other)?);
        }
        if line.starts_with("transfer-encoding:") {
            length = Length::Chunks;
        }
        if line.trim_end().is_empty() {
            return Ok(Some((head, length)));
        }
    }
}

/// A body as it is on the wire.
fn read_body(stream: &mut impl BufRead, length: Length) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if let Length::Bytes(len) = length {
        body.resize(len, 0);
        stream.read_exact(&mut body)?;
        return Ok(body);
    }
    loop {
        let start = body.len();
        stream.read_until(b'\n', &mut body)?;
        let line = String::from_utf8_lossy(&body[start..]).into_owned();
        let len = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let start = body.len();
        // A line break follows each chunk, the last and empty one too.
        body.resize(start + len + 2, 0);
        stream.read_exact(&mut body[start..])?;
        if len == 0 {
            return Ok(body);
        }
    }
}

fn document(status: u16, code: &str, method: &str) -> Vec<u8> {
    let body = match method {
        "HEAD" => String::new(),
        _ => format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the test</Message></Error>"),
    };
    format!("HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}
