//! How a VM is: what it has reported, what it was served, and what it is made of.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lazyroot_proto::frame::EventKind;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::complain::complain;
use crate::serve::{Event, Snapshot};

/// What a VM is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is not ready yet.
    #[default]
    Starting,
    /// It is ready.
    Running,
    /// Its processors are halted.
    Paused,
    /// It was asked to end.
    Stopping,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        })
    }
}

/// How a VM is, for `ps` and `inspect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// The processes of its hypervisor.
    pub pids: Vec<u32>,
    /// Where its guest connects.
    pub guest_socket: Option<PathBuf>,
    /// How long its start took.
    pub timings: Timings,
    /// What it was served so far.
    pub served: Snapshot,
}

/// How long a start took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// From the launch to the hypervisor's start.
    pub hypervisor_started: Duration,
    /// From the hypervisor's start until guest-init reached the host.
    pub guest_init: Option<Duration>,
    /// The guest's own clock when the image was mounted, since its kernel started.
    pub guest_clock_mounted: Option<Duration>,
    /// From the hypervisor's start until the command ran, or the system was up.
    pub ready: Option<Duration>,
}

/// What is known about a VM as it comes up; shared by all who report or ask.
pub struct Watch {
    state: Mutex<State>,
    /// Why the guest cannot boot, once it has said so.
    fatal: watch::Sender<Option<String>>,
    /// Whether the guest's init has said that the system is up.
    up: watch::Sender<bool>,
    served: Box<dyn Fn() -> Snapshot + Send + Sync>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    accelerator: String,
    pids: Vec<u32>,
    guest_socket: Option<PathBuf>,
    started: Option<Instant>,
    timings: Timings,
}

impl Watch {
    /// Nothing known but what is served.
    pub fn new(served: impl Fn() -> Snapshot + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            fatal: watch::Sender::default(),
            up: watch::Sender::default(),
            served: Box::new(served),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    /// The hypervisor is about to start, for a launch that began at `launched`.
    pub fn starting(&self, accelerator: &str, guest_socket: Option<PathBuf>, launched: Instant) -> Instant {
        let now = Instant::now();
        let mut state = self.state();
        state.accelerator = accelerator.to_owned();
        state.guest_socket = guest_socket;
        state.started = Some(now);
        state.timings.hypervisor_started = now.saturating_duration_since(launched);
        now
    }

    /// The hypervisor runs, as these processes.
    pub fn started(&self, pids: Vec<u32>) {
        self.state().pids = pids;
    }

    /// The command runs, or the system is up.
    pub fn ready(&self) {
        let mut state = self.state();
        state.timings.ready = state.started.map(|started| started.elapsed());
        if state.phase == Phase::Starting {
            state.phase = Phase::Running;
        }
    }

    /// What the VM is doing now.
    pub fn set_phase(&self, phase: Phase) {
        self.state().phase = phase;
    }

    /// What the VM is doing.
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// # Errors
    /// If programs in the guest get no answer now.
    pub fn check_running(&self) -> Result<()> {
        if self.phase() == Phase::Paused {
            bail!("it is paused: 'lazyroot resume' lets it go on");
        }
        Ok(())
    }

    /// How the VM is.
    pub fn status(&self) -> Status {
        let state = self.state();
        Status {
            phase: state.phase,
            accelerator: state.accelerator.clone(),
            pids: state.pids.clone(),
            guest_socket: state.guest_socket.clone(),
            timings: state.timings,
            served: (self.served)(),
        }
    }

    /// How long the start took so far.
    pub fn timings(&self) -> Timings {
        self.state().timings
    }

    /// Takes down what the guest reports, and tells the user what is wrong.
    pub fn hear(&self, event: Event) {
        if event.kind == EventKind::Warning {
            complain(format_args!("the guest reports: {}", event.text));
            return;
        }
        let mut state = self.state();
        match event.kind {
            EventKind::Init => {
                state.timings.guest_init = state.started.map(|started| started.elapsed());
            }
            EventKind::Mounted => state.timings.guest_clock_mounted = Some(Duration::from_nanos(event.at)),
            EventKind::Started | EventKind::Warning => (),
            EventKind::Ready => {
                self.up.send_replace(true);
            }
            // Of a guest that is up it is no more than a word: its programs may say it too.
            EventKind::Fatal if state.timings.guest_clock_mounted.is_some() => (),
            EventKind::Fatal => {
                self.fatal.send_replace(Some(event.text));
            }
        }
    }

    /// Whether the image's init has said that the system is up.
    pub fn is_system_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Waits until it has.
    pub async fn system_is_up(&self) {
        // The sender lives as long as we do.
        let _ = self.up.subscribe().wait_for(|up| *up).await;
    }

    /// Why the guest cannot boot, if it has said so.
    pub fn fatal(&self) -> Option<String> {
        self.fatal.borrow().clone()
    }

    /// Waits until the guest says that it cannot boot.
    pub async fn gave_up(&self) {
        let mut fatal = self.fatal.subscribe();
        // The sender lives as long as we do.
        let _ = fatal.wait_for(Option::is_some).await;
    }
}
