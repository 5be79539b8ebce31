//! What the host does in the guest: it asks for streams over a control connection, and each stream runs a program, copies
//! files, or connects to something.
//!
//! Only this folder starts programs of the image. Its connections to the host are opened with [`crate::link::dial`], not
//! over the session that objects come through. It ends the machine, too, when the host asks for that.

pub mod exec;
pub mod mode;
pub mod service;
pub mod shutdown;
pub mod users;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::exec::ExecInput;
use lazyroot_proto::frame::{HostMessage, Role};
use lazyroot_proto::service::Service;

use crate::complain::complain;
use crate::link::recorder::Recorder;
use crate::link::{Address, FrameReader, dial, dial_patiently, introduce};
use crate::threads;
use mode::Mode;

/// Pause before the control connection is opened again after it broke; twice as long each time it breaks at once, up to
/// the second: a server that runs no commands refuses it for ever.
const RECONNECT: Duration = Duration::from_millis(200);
const MAX_RECONNECT: Duration = Duration::from_secs(10);

/// The host's hand in the guest.
pub struct Agent {
    address: Address,
    root: Arc<OwnedFd>,
    upper: Option<Arc<OwnedFd>>,
    mode: Mode,
    recorder: Arc<Recorder>,
}

impl Agent {
    /// An agent that runs programs in `root`, a directory that becomes theirs, beside an init or without one.
    /// `upper` has the changes to it. The host is told what `recorder` knows of a program's reads before it hears of the program's end.
    pub fn new(address: Address, root: OwnedFd, upper: Option<OwnedFd>, mode: Mode, recorder: Arc<Recorder>) -> Self {
        Self { address, root: Arc::new(root), upper: upper.map(Arc::new), mode, recorder }
    }

    /// Serves the host; never returns.
    pub fn run(self) -> ! {
        let mut pause = RECONNECT;
        loop {
            let opened = Instant::now();
            // A broken connection is the host's restart or sleep: try for ever.
            let _ = self.control();
            if opened.elapsed() > MAX_RECONNECT {
                pause = RECONNECT;
            }
            thread::sleep(pause);
            pause = (2 * pause).min(MAX_RECONNECT);
        }
    }

    fn control(&self) -> io::Result<()> {
        let mut frames = introduce(dial(&self.address)?, Role::Control)?;
        loop {
            let (header, payload) = frames.read_frame()?;
            match HostMessage::decode(header.kind, &payload).map_err(io::Error::other)? {
                HostMessage::OpenStream(number) => {
                    let address = self.address.clone();
                    let (root, upper, recorder) = (self.root.clone(), self.upper.clone(), self.recorder.clone());
                    threads::start_or_panic("stream", move || {
                        let stream =
                            dial_patiently(&address).and_then(|stream| introduce(stream, Role::Stream(number)));
                        let served = stream.and_then(|frames| serve_stream(frames, &root, upper.as_deref(), &recorder));
                        if let Err(error) = served {
                            complain(format_args!("a stream ended: {error}"));
                        }
                    });
                }
                HostMessage::PowerOff => {
                    let (root, mode) = (self.root.clone(), self.mode);
                    // Not here: until the end the host may want more streams.
                    threads::start_or_panic("shutdown", move || shutdown::gently(&root, mode));
                }
                HostMessage::Welcome { .. } => (),
                other => return Err(io::Error::other(format!("unexpected on a control connection: {other:?}"))),
            }
        }
    }
}

/// Does what the host's first frame asks for.
fn serve_stream(
    mut frames: FrameReader,
    root: &OwnedFd,
    upper: Option<&OwnedFd>,
    recorder: &Recorder,
) -> io::Result<()> {
    let (header, payload) = frames.read_frame()?;
    if let Ok(service) = Service::decode(header.kind, &payload) {
        return service::serve(frames, service, root, upper);
    }
    match ExecInput::decode(header.kind, &payload).map_err(io::Error::other)? {
        ExecInput::Exec(exec) => exec::run_program(frames, exec, root, recorder),
        other => Err(io::Error::other(format!("unexpected at the start of a stream: {other:?}"))),
    }
}
