//! A thousand sessions on one server.
//!
//! Their reads of 4 KiB come at random moments, so many a second that the machine is far from busy: how long one takes
//! is then what the server and the scheduler do to it, not the length of a queue that grows with the number of clients.
//! What the server can do at most is measured apart, by sessions that ask again as soon as they are answered.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lazyroot::store::{Profile, Store};
use lazyroot_proto::ObjectId;
use lazyroot_proto::frame::{HEADER, Header, Hello, HostMessage, MAX_READ, Metadata, Request, Role, kind};
use lazyroot_proto::reads::{Extent, Origin, Read as GuestRead};
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use super::inputs::Inputs;
use super::plan::Plan;
use super::raw::resident;
use super::report::{Cell, Report, Unit, cache};
use crate::lazyroot::Lazyroot;
use crate::rootfs;

/// The name of this part.
pub const PART: &str = "crowd";

const SESSIONS: usize = 1000;

/// Reads of the one session that others are compared with.
const READS: u32 = 5000;

/// One session's pause between two reads, on average, and for how long they go on.
const PAUSE: Duration = Duration::from_millis(500);
const PACED: Duration = Duration::from_secs(5);

/// How long throughput is measured.
const BUSY: Duration = Duration::from_secs(3);

/// A small read, and the largest.
const SMALL: u32 = 4 << 10;
const LARGE: u32 = MAX_READ;

/// What replies are read into: a piece of the largest.
const BUFFER: usize = 64 << 10;

/// Stack of a client's thread.
const STACK: usize = 64 << 10;

const ONE: &str = "lazyroot, one session";
const CROWD: &str = "lazyroot, 1,000 sessions";
const SOCKET: &str = "unix socket";
const SOCKETS: &str = "1,000 unix sockets";

/// Takes the samples.
///
/// # Errors
/// If a session fails.
pub fn run(_inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    raise_file_limit()?;
    let lazyroot = Lazyroot::default();
    lazyroot.import(&rootfs(), "debian");
    let image = Store::at(lazyroot.home().join("repository"))?.resolve("debian")?;
    let index = image.index.load()?;
    let ranges = |len: u32| -> Vec<(ObjectId, u64)> {
        let pieces = |(id, size): &(ObjectId, u64)| {
            let id = *id;
            (0..size / u64::from(len)).map(move |piece| (id, piece * u64::from(len)))
        };
        index.entries().iter().flat_map(pieces).collect()
    };
    let (small, large) = (ranges(SMALL), ranges(LARGE));
    ensure!(!large.is_empty(), "the image has no object of {LARGE} bytes");
    profile(&lazyroot, &image.id, index.entries().len())?;
    report.compare(PART, ONE);
    let cell = |workload: &str, system: &str| Cell::new(PART, workload, cache::WARM, system);
    let (latency, memory, speed) = ("read of 4 KiB", "server's memory", "reads of 1 MiB");
    for _ in 0..plan.samples {
        let server = lazyroot.serve();
        let socket = server.socket();
        {
            let mut session = Session::open(socket, image.id)?;
            // Once for the page cache.
            small.iter().try_for_each(|range| session.read(*range, SMALL))?;
            large.iter().try_for_each(|range| session.read(*range, LARGE))?;
            let mut taken = Vec::new();
            for _ in 0..READS {
                let begin = Instant::now();
                session.read(*pick(&small), SMALL)?;
                taken.push(begin.elapsed().as_secs_f64());
            }
            report.add(&cell(latency, ONE), quantile(&mut taken, 0.5), None);
        }
        report.add_in(Unit::Bytes, &cell(memory, ONE), resident(server.pid())? as f64);
        let sessions = (0..SESSIONS).map(|_| Session::open(socket, image.id)).collect::<Result<Vec<_>>>()?;
        let (sessions, mut taken) = paced(sessions, &|session| session.read(*pick(&small), SMALL))?;
        report.add(&cell(latency, CROWD), quantile(&mut taken, 0.99), None);
        report.note(&cell(latency, CROWD), &spread(&mut taken));
        let (sessions, bytes) = busy(sessions, &|session| session.read(*pick(&large), LARGE))?;
        report.add_in(Unit::BytesPerSecond, &cell(speed, CROWD), bytes);
        // Now that all have been served much.
        report.add_in(Unit::Bytes, &cell(memory, CROWD), resident(server.pid())? as f64);
        drop(sessions);
        let alone = vec![Session::open(socket, image.id)?];
        let (_, bytes) = busy(alone, &|session| session.read(*pick(&large), LARGE))?;
        report.add_in(Unit::BytesPerSecond, &cell(speed, ONE), bytes);
        let raw = Raw::start(LARGE)?;
        report.add_in(Unit::BytesPerSecond, &cell(speed, SOCKET), raw.limit(1)?);
        report.add_in(Unit::BytesPerSecond, &cell(speed, SOCKETS), raw.limit(SESSIONS)?);
        let raw = Raw::start(SMALL)?;
        let (_, mut taken) = paced(raw.connect(SESSIONS)?, &|session| raw.read(session))?;
        report.add(&cell(latency, SOCKETS), quantile(&mut taken, 0.99), None);
        report.note(&cell(latency, SOCKETS), &spread(&mut taken));
    }
    Ok(())
}

fn pick<T>(all: &[T]) -> &T {
    &all[fastrand::usize(..all.len())]
}

/// The value that `share` of them do not exceed.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((share * values.len() as f64) as usize).min(values.len() - 1)]
}

/// Each session is a socket on either side.
fn raise_file_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    ensure!(limit.current.is_none_or(|files| files > 8 * SESSIONS as u64), "too few open files are allowed");
    Ok(())
}

/// As after a boot that read a third of the image: every session is told.
fn profile(lazyroot: &Lazyroot, image: &ObjectId, objects: usize) -> Result<()> {
    let store = Store::at(lazyroot.home().join("repository"))?;
    let read = |position: usize| GuestRead {
        extent: Extent { position: position as u32, block: 0, blocks: 1 },
        at: position as u64,
        waited: 0,
        origin: Origin::Host,
    };
    let mut profile = Profile::default();
    profile.merge(&store.resolve(&image.to_string())?.index.load()?, &(0..objects / 3).map(read).collect::<Vec<_>>());
    store.profile(image).write(&profile)
}

/// A guest's data connection, as far as reads go.
struct Session(UnixStream);

impl Session {
    /// Connects, and fetches what a guest needs before it mounts.
    fn open(socket: &Path, image: ObjectId) -> Result<Self> {
        let mut session = Self(UnixStream::connect(socket)?);
        session.0.write_all(&Request::Hello(Hello { role: Role::Data(image) }).encode(0))?;
        let mut header = [0; HEADER];
        session.0.read_exact(&mut header)?;
        let header = Header::decode(&header)?;
        let mut payload = vec![0; header.len as usize];
        session.0.read_exact(&mut payload)?;
        let HostMessage::Welcome { manifest_size, index_size, profile_size } =
            HostMessage::decode(header.kind, &payload)?
        else {
            anyhow::bail!("the server does not welcome us")
        };
        ensure!(profile_size > 0, "the server knows no profile");
        let files =
            [(Metadata::Manifest, manifest_size), (Metadata::Index, index_size), (Metadata::Profile, profile_size)];
        for (what, size) in files {
            for offset in (0..size).step_by(MAX_READ as usize) {
                let len = (size - offset).min(MAX_READ.into()) as u32;
                session.ask(&Request::Get { what, offset, len }, len)?;
            }
        }
        Ok(session)
    }

    fn read(&mut self, (id, offset): (ObjectId, u64), len: u32) -> Result<()> {
        self.ask(&Request::Read { id, offset, len }, len)
    }

    fn ask(&mut self, request: &Request, len: u32) -> Result<()> {
        self.0.write_all(&request.encode(1))?;
        swallow(&mut self.0, len)
    }
}

/// Reads a reply of so many bytes of data.
fn swallow(stream: &mut UnixStream, len: u32) -> Result<()> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let header = Header::decode(&header)?;
    ensure!((header.kind, header.len) == (kind::DATA, len), "the server answers with {header:?}");
    let mut buffer = vec![0; (len as usize).min(BUFFER)];
    let mut left = len as usize;
    while left > 0 {
        let piece = left.min(BUFFER);
        stream.read_exact(&mut buffer[..piece])?;
        left -= piece;
    }
    Ok(())
}

/// What the 99th percentile does not say.
fn spread(taken: &mut [f64]) -> String {
    let rate = taken.len() as u64 / PACED.as_secs();
    format!(
        "99th percentile at {rate} reads a second, of one session the median; half took {:.0} µs",
        1e6 * quantile(taken, 0.5)
    )
}

/// Seconds that reads took which all sessions made at random moments.
fn paced(
    sessions: Vec<Session>,
    read: &(dyn Fn(&mut Session) -> Result<()> + Sync),
) -> Result<(Vec<Session>, Vec<f64>)> {
    let all = Mutex::new(Vec::new());
    let sessions = each(sessions, &|session: &mut Session| {
        let (begin, mut taken) = (Instant::now(), Vec::new());
        // Anywhere in the first pause, and then at intervals that no two sessions share.
        let mut next = PAUSE.mul_f64(fastrand::f64());
        while next < PACED {
            thread::sleep(next.saturating_sub(begin.elapsed()));
            let asked = Instant::now();
            read(session)?;
            taken.push(asked.elapsed().as_secs_f64());
            next += PAUSE.mul_f64(0.5 + fastrand::f64());
        }
        all.lock().expect("no panic under the lock").append(&mut taken);
        Ok(())
    })?;
    Ok((sessions, all.into_inner().expect("no panic under the lock")))
}

/// Bytes a second that sessions get which ask for [`LARGE`] bytes again and again.
fn busy<T: Send>(sessions: Vec<T>, read: &(dyn Fn(&mut T) -> Result<()> + Sync)) -> Result<(Vec<T>, f64)> {
    let bytes = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let sessions = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(BUSY);
            over.store(true, Ordering::Relaxed);
        });
        each(sessions, &|session: &mut T| {
            while !over.load(Ordering::Relaxed) {
                read(session)?;
                bytes.fetch_add(LARGE.into(), Ordering::Relaxed);
            }
            Ok(())
        })
    })?;
    // Those that were under way at the end count with the time they took.
    Ok((sessions, bytes.into_inner() as f64 / begin.elapsed().as_secs_f64()))
}

/// Lets each session do something in a thread of its own, all at once.
fn each<T: Send>(mut sessions: Vec<T>, work: &(dyn Fn(&mut T) -> Result<()> + Sync)) -> Result<Vec<T>> {
    let start = Barrier::new(sessions.len());
    thread::scope(|scope| {
        let threads = sessions
            .iter_mut()
            .map(|session| {
                let start = &start;
                let work = move || {
                    start.wait();
                    work(session)
                };
                thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).context("no more threads")
            })
            .collect::<Result<Vec<_>>>()?;
        threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    Ok(sessions)
}

/// A server that answers every request with as many bytes of memory, and nothing else: what no server can beat.
struct Raw {
    dir: TempDir,
    reply: u32,
}

impl Raw {
    fn start(reply: u32) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let listener = UnixListener::bind(dir.path().join("raw"))?;
        let answer = move |mut stream: UnixStream| -> std::io::Result<()> {
            let (mut request, mut answer) = ([0; HEADER], vec![0; HEADER + reply as usize]);
            answer[..HEADER].copy_from_slice(&Header { len: reply, kind: kind::DATA, tag: 1 }.encode());
            loop {
                stream.read_exact(&mut request)?;
                stream.write_all(&answer)?;
            }
        };
        // Its threads end with their connections, and the listener's with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = thread::Builder::new().stack_size(STACK).spawn(move || answer(stream));
            }
        });
        Ok(Self { dir, reply })
    }

    fn connect(&self, connections: usize) -> Result<Vec<Session>> {
        let path = self.dir.path().join("raw");
        (0..connections).map(|_| Ok(Session(UnixStream::connect(&path)?))).collect()
    }

    fn read(&self, session: &mut Session) -> Result<()> {
        session.0.write_all(&[0; HEADER])?;
        swallow(&mut session.0, self.reply)
    }

    /// Bytes a second that so many clients get together.
    fn limit(&self, connections: usize) -> Result<f64> {
        Ok(busy(self.connect(connections)?, &|session| self.read(session))?.1)
    }
}
