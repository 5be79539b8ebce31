//! Another lazyroot, over any byte stream.
//!
//! One task owns the stream: it sends requests as they come and hands replies to whoever waits for them. What it reads
//! never changes, so when the stream breaks it opens another and sends every request again that is still waited for. A
//! far end that was never reached, or has been gone for longer than a request may take, is an error at once: nobody
//! waits twice for something that is not there.
//!
//! # Compression
//!
//! Replies are packed with zstd where the link is slower than zstd, and not where it is memory. Which it is, is measured
//! as replies come in: the time from a frame's header to its last byte is the link's alone, however long the far end
//! took to find the bytes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc as blocking};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use lazyroot_proto::frame::{self, ErrorCode, HEADER, Header, Hello, HostMessage, MAX_READ, Role};
use lazyroot_proto::peer::{self, Packing, PeerRange, PeerReply, PeerRequest};
use lazyroot_proto::{ObjectId, Unverified, verity};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::dial::{Dial, Stream};
use super::link_speed::Meter;
use super::{Compression, RemoteImage, Upstream, runtime};
use crate::store::objects::source::{Object, ObjectError};

/// How long a connection may take until the far end's first frame: podman starts its ssh in a second or two, and a
/// machine that sleeps needs some to wake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// How long a read may take, reconnects included: less than a guest waits (30 s), so that another upstream can still
/// be asked.
const READ_DEADLINE: Duration = Duration::from_secs(20);

/// How long an image may take to be found: the far end may have to import it.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(3600);

/// Silence with requests under way after which the far end is asked whether it is alive; as much silence again, and the
/// connection is replaced.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How often deadlines and silence are looked at.
const TICK: Duration = Duration::from_secs(1);

/// First pause between attempts to connect again; it doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);

/// Longest pause between attempts to connect again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Connections that one request may see break before it fails: it may be what breaks them.
const MAX_ATTEMPTS: u32 = 5;

/// The largest manifest that is fetched, in bytes: that of ten million files.
const MAX_MANIFEST: u64 = 4 << 30;

/// Requests for one range under way together, of [`MAX_READ`] bytes each.
const WINDOW: usize = 8;

/// Frames shorter than this say little about the link: they may have come in one piece.
const WORTH_MEASURING: u32 = 16 << 10;

/// An upstream that is a lazyroot.
pub(super) struct Peer {
    name: String,
    calls: mpsc::UnboundedSender<Call>,
}

/// A request and who waits for its reply.
struct Call {
    request: PeerRequest,
    deadline: Instant,
    attempts: u32,
    reply: blocking::SyncSender<Outcome>,
}

/// A reply frame's kind and payload, or why there is none.
type Outcome = Result<(u8, Vec<u8>), String>;

/// A failed request.
enum Failure {
    /// The far end does not have it.
    Refused(String),
    /// Anything else.
    Other(String),
}

impl Peer {
    /// The lazyroot that `dial` leads to. It is called when something is first asked for.
    pub(super) fn new(name: String, dial: Dial, compression: Compression) -> Self {
        let (sender, calls) = mpsc::unbounded_channel();
        let packed = compression == Compression::Always;
        let actor = Actor {
            dial,
            calls,
            link: Arc::new(Link {
                waiting: Mutex::default(),
                heard: Mutex::new(Instant::now()),
                measured: compression == Compression::Auto,
                packed: AtomicBool::new(packed),
                changed: Notify::new(),
            }),
            next_tag: 1,
            last_up: None,
            name: name.clone(),
        };
        runtime::spawn(actor.run());
        Self { name, calls: sender }
    }

    /// Sends a request; the reply can be waited for.
    fn send(&self, request: PeerRequest, deadline: Duration) -> blocking::Receiver<Outcome> {
        let (reply, outcome) = blocking::sync_channel(1);
        let call = Call { request, deadline: Instant::now() + deadline, attempts: 0, reply };
        // If the task is gone, so is the call, and the receiver says so.
        let _ = self.calls.send(call);
        outcome
    }

    /// Sends a request and waits for its reply.
    fn ask(&self, request: PeerRequest, deadline: Duration) -> Result<(u8, Vec<u8>), Failure> {
        open(self.send(request, deadline))
    }

    /// Fetches `len` bytes from `offset` on, in pieces of at most [`MAX_READ`] bytes, several of them under way together.
    fn fetch(&self, offset: u64, len: usize, request: impl Fn(u64, u32) -> PeerRequest) -> Result<Unverified, Failure> {
        let (mut offset, mut data) = (offset, vec![0; len]);
        for window in data.chunks_mut(WINDOW * MAX_READ as usize) {
            let pieces: Vec<_> = window
                .chunks_mut(MAX_READ as usize)
                .map(|piece| {
                    let outcome = self.send(request(offset, piece.len() as u32), READ_DEADLINE);
                    offset += piece.len() as u64;
                    (piece, outcome)
                })
                .collect();
            for (piece, outcome) in pieces {
                let (kind, payload) = open(outcome)?;
                unpack(kind, &payload, piece)?;
            }
        }
        Ok(data.into())
    }

    fn object_error(&self, id: &ObjectId, failure: Failure) -> ObjectError {
        match failure {
            Failure::Refused(_) => ObjectError::NotFound(*id),
            Failure::Other(why) => ObjectError::Unavailable { id: *id, why: format!("{}: {why}", self.name) },
        }
    }
}

/// Waits for a reply; an ERROR frame is a failure.
fn open(outcome: blocking::Receiver<Outcome>) -> Result<(u8, Vec<u8>), Failure> {
    let gone = || Failure::Other("the connection's task ended".into());
    let (kind, payload) = outcome.recv().map_err(|_| gone())?.map_err(Failure::Other)?;
    if kind == frame::kind::ERROR {
        return match HostMessage::decode(kind, &payload) {
            Ok(HostMessage::Error { code: ErrorCode::Refused, message }) => Err(Failure::Refused(message)),
            Ok(HostMessage::Error { message, .. }) => Err(Failure::Other(message)),
            _ => Err(Failure::Other("a malformed answer".into())),
        };
    }
    Ok((kind, payload))
}

/// The data of a reply, which must be as long as `piece`.
fn unpack(kind: u8, payload: &[u8], piece: &mut [u8]) -> Result<(), Failure> {
    let unpacked;
    let data = match PeerReply::decode(kind, payload) {
        Ok(PeerReply::Plain(HostMessage::Data(data))) => data,
        Ok(PeerReply::Packed { len, data }) => {
            unpacked = zstd::bulk::decompress(data, len as usize)
                .map_err(|error| Failure::Other(format!("a packed answer that does not unpack: {error}")))?;
            &unpacked
        }
        _ => return Err(Failure::Other("an answer that fits no question".into())),
    };
    if data.len() != piece.len() {
        return Err(Failure::Other(format!("{} bytes where {} were asked for", data.len(), piece.len())));
    }
    piece.copy_from_slice(data);
    Ok(())
}

impl Upstream for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn imports(&self) -> bool {
        true
    }

    fn check(&self) -> Result<()> {
        // The versions were compared when the connection was made.
        match self.ask(PeerRequest::Ping, READ_DEADLINE) {
            Ok((frame::kind::PONG, _)) => Ok(()),
            Ok(_) => bail!("an answer that fits no question"),
            Err(Failure::Refused(why) | Failure::Other(why)) => bail!("{why}"),
        }
    }

    fn find(&self, reference: &str) -> Result<Option<RemoteImage>> {
        if reference.len() > peer::MAX_REFERENCE {
            bail!("a reference of {} bytes is too long", reference.len());
        }
        let (kind, payload) = match self.ask(PeerRequest::Resolve(reference.to_owned()), RESOLVE_DEADLINE) {
            Ok(reply) => reply,
            Err(Failure::Refused(why)) => {
                tracing::info!("{}: {why}", self.name);
                return Ok(None);
            }
            Err(Failure::Other(why)) => bail!("{why}"),
        };
        match PeerReply::decode(kind, &payload)? {
            PeerReply::Image { id, manifest_size, name, config } => Ok(Some(RemoteImage {
                id,
                manifest_size,
                name: Some(name).filter(|name| !name.is_empty()),
                config: Some(config.to_vec()).filter(|config| !config.is_empty()),
            })),
            _ => bail!("an answer that fits no question"),
        }
    }

    fn manifest(&self, image: &RemoteImage) -> Result<Unverified> {
        if image.manifest_size > MAX_MANIFEST {
            bail!("a manifest of {} bytes is too large", image.manifest_size);
        }
        let id = image.id;
        let request = |offset, len| PeerRequest::Manifest { id, offset, len };
        self.fetch(0, image.manifest_size as usize, request).map_err(|failure| match failure {
            Failure::Refused(why) | Failure::Other(why) => anyhow!("{why}"),
        })
    }

    fn read(&self, object: &Object, offset: u64, len: usize) -> Result<Unverified, ObjectError> {
        let Object { id, size } = *object;
        let request = |offset, len| PeerRequest::Object(PeerRange { id, size, offset, len });
        self.fetch(offset, len, request).map_err(|failure| self.object_error(&id, failure))
    }

    fn leaves(&self, object: &Object) -> Result<Unverified, ObjectError> {
        let Object { id, size } = *object;
        let len = verity::leaves_len(id.algorithm(), size) as usize;
        let request = |offset, len| PeerRequest::Leaves(PeerRange { id, size, offset, len });
        self.fetch(0, len, request).map_err(|failure| self.object_error(&id, failure))
    }
}

/// The task that owns the stream.
struct Actor {
    name: String,
    dial: Dial,
    calls: mpsc::UnboundedReceiver<Call>,
    link: Arc<Link>,
    next_tag: u64,
    /// When the far end was last known to be there.
    last_up: Option<Instant>,
}

/// What the two directions of a connection share.
struct Link {
    waiting: Mutex<BTreeMap<u64, Call>>,
    heard: Mutex<Instant>,
    /// Whether compression follows what is measured.
    measured: bool,
    packed: AtomicBool,
    /// Told when `packed` changes.
    changed: Notify,
}

impl Link {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Call>> {
        self.waiting.lock().expect("no panic under the lock")
    }

    fn heard(&self) -> MutexGuard<'_, Instant> {
        self.heard.lock().expect("no panic under the lock")
    }

    /// Fails the calls that `is_over` picks.
    fn fail(&self, why: &str, is_over: impl Fn(&Call) -> bool) {
        for (_, call) in self.waiting().extract_if(.., |_, call| is_over(call)) {
            // Whoever asked may have given up.
            let _ = call.reply.send(Err(why.to_owned()));
        }
    }
}

impl Actor {
    async fn run(mut self) {
        let mut pause = PAUSE;
        loop {
            if self.link.waiting().is_empty() {
                match self.calls.recv().await {
                    Some(call) => self.enqueue(call),
                    None => return,
                };
            }
            while let Ok(call) = self.calls.try_recv() {
                self.enqueue(call);
            }
            let error = match self.connect().await {
                Ok(stream) => {
                    pause = PAUSE;
                    let Some(error) = self.session(stream).await else { return };
                    self.last_up = Some(Instant::now());
                    tracing::info!("the connection to {} broke: {error:#}", self.name);
                    self.link.fail(&format!("the connection broke {MAX_ATTEMPTS} times"), |call| {
                        call.attempts >= MAX_ATTEMPTS
                    });
                    continue;
                }
                Err(error) => error,
            };
            let comes_back = self.last_up.is_some_and(|up| up.elapsed() < READ_DEADLINE);
            let now = Instant::now();
            self.link.fail(&format!("{error:#}"), |call| !comes_back || call.deadline <= now);
            if comes_back {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Takes a call in; its whole request frame.
    fn enqueue(&mut self, call: Call) -> Vec<u8> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let frame = call.request.encode(tag);
        self.link.waiting().insert(tag, call);
        frame
    }

    /// A stream on which the far end has said that it is a lazyroot and serves us.
    async fn connect(&self) -> Result<Stream> {
        let opened = timeout(CONNECT_DEADLINE, async {
            let mut stream = self.dial.open().await?;
            let greeted = greet(&mut stream).await;
            anyhow::Ok((stream, greeted))
        });
        match opened.await {
            Ok(Ok((stream, Ok(())))) => Ok(stream),
            Ok(Ok((stream, Err(error)))) => {
                let Stream { reader, writer, end } = stream;
                // A program that waits for our words ends when there can be none.
                drop((reader, writer));
                Err(self.dial.explain(end, &error).await)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("no answer within {} s", CONNECT_DEADLINE.as_secs()),
        }
    }

    /// Talks until the stream breaks, and says why; `None` when nobody can ask any more.
    async fn session(&mut self, stream: Stream) -> Option<anyhow::Error> {
        let Stream { reader, mut writer, end: _end } = stream;
        let link = self.link.clone();
        *link.heard() = Instant::now();
        tokio::select! {
            error = listen(&link, reader) => Some(error),
            end = self.talk(&mut writer) => end.err(),
        }
    }

    /// Sends requests and watches deadlines.
    async fn talk(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        let link = self.link.clone();
        if link.packed.load(Ordering::Relaxed) {
            writer.write_all(&PeerRequest::Packing(Packing::Zstd).encode(0)).await?;
        }
        let mut frames = Vec::new();
        for (tag, call) in link.waiting().iter_mut() {
            call.attempts += 1;
            frames.extend(call.request.encode(*tag));
        }
        writer.write_all(&frames).await?;
        writer.flush().await?;
        let mut pinged = None;
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                call = self.calls.recv() => {
                    let Some(call) = call else { return Ok(()) };
                    if link.waiting().is_empty() {
                        // Silence counts from here: there was nothing to say.
                        *link.heard() = Instant::now();
                    }
                    let mut frames = self.enqueue(call);
                    while let Ok(call) = self.calls.try_recv() {
                        frames.extend(self.enqueue(call));
                    }
                    writer.write_all(&frames).await?;
                }
                () = link.changed.notified() => {
                    let packing = if link.packed.load(Ordering::Relaxed) { Packing::Zstd } else { Packing::None };
                    writer.write_all(&PeerRequest::Packing(packing).encode(0)).await?;
                }
                _ = tick.tick() => {
                    let now = Instant::now();
                    let late = format!("no answer within {} s", READ_DEADLINE.as_secs());
                    link.fail(&late, |call| call.deadline <= now);
                    let (silent, idle) = (link.heard().elapsed(), link.waiting().is_empty());
                    match pinged {
                        _ if idle || silent < HEARTBEAT => pinged = None,
                        None => {
                            pinged = Some(now);
                            writer.write_all(&PeerRequest::Ping.encode(0)).await?;
                        }
                        Some(since) if now - since >= HEARTBEAT => bail!("it is silent"),
                        Some(_) => (),
                    }
                }
            }
            writer.flush().await?;
        }
    }
}

/// Says hello and waits for the welcome.
async fn greet(stream: &mut Stream) -> Result<()> {
    let hello = frame::Request::Hello(Hello { role: Role::Peer }).encode(0);
    let hung_up = "it hung up before it said that it is lazyroot";
    stream.writer.write_all(&hello).await.context(hung_up)?;
    stream.writer.flush().await.context(hung_up)?;
    let mut header = [0; HEADER];
    stream.reader.read_exact(&mut header).await.context(hung_up)?;
    let stranger = "it does not answer as lazyroot does: is something printed when a shell starts there?";
    let header = Header::decode(&header).context(stranger)?;
    let mut payload = vec![0; header.len as usize];
    stream.reader.read_exact(&mut payload).await.context(hung_up)?;
    match HostMessage::decode(header.kind, &payload).context(stranger)? {
        HostMessage::Welcome { .. } => Ok(()),
        HostMessage::Error { message, .. } => bail!("it refuses: {message}"),
        _ => bail!(stranger),
    }
}

/// Hands out replies until the stream ends; why it did.
async fn listen(link: &Link, reader: impl AsyncRead + Unpin) -> anyhow::Error {
    /// Enough for many headers and small replies in one system call; long payloads go past it.
    const BUFFER: usize = 64 << 10;
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let mut meter = Meter::default();
    loop {
        let mut header = [0; HEADER];
        if let Err(error) = reader.read_exact(&mut header).await {
            return error.into();
        }
        let begun = Instant::now();
        let header = match Header::decode(&header) {
            Ok(header) => header,
            Err(error) => return error.into(),
        };
        let mut payload = vec![0; header.len as usize];
        if let Err(error) = reader.read_exact(&mut payload).await {
            return error.into();
        }
        let now = Instant::now();
        *link.heard() = now;
        if link.measured && header.len >= WORTH_MEASURING {
            let packed = link.packed.load(Ordering::Relaxed);
            if let Some(better) = meter.add(header.len.into(), now - begun, packed) {
                tracing::debug!("compression: {better}");
                link.packed.store(better, Ordering::Relaxed);
                link.changed.notify_one();
            }
        }
        if let Some(call) = link.waiting().remove(&header.tag) {
            let _ = call.reply.send(Ok((header.kind, payload)));
        }
    }
}
