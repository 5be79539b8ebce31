//! A VM as `ps` and `inspect` print it.

use serde::Serialize;

use crate::vm::instance::control;
use crate::vm::instance::status::{Status, Timings};
use crate::vm::instance::{Record, State, VmEntry};

/// A VM as JSON.
#[derive(Serialize)]
pub struct VmReport {
    id: String,
    /// `starting`, `running`, `paused`, `stopping`, `unresponsive`, `exited`, `failed` or `lost`.
    pub state: String,
    #[serde(flatten)]
    /// What is on the disk about it.
    pub record: Record,
    /// The exit status of its command, if it has ended with one.
    pub exit_status: Option<u8>,
    reason: Option<String>,
    ended: Option<u64>,
    /// How long the steps of its boot took.
    pub timings: Option<Timings>,
    /// How it is, if it lives and answers.
    status: Option<Status>,
    /// Folder with its sockets and logs.
    dir: std::path::PathBuf,
}

/// Asks the VM how it is.
pub async fn report(vm: VmEntry) -> VmReport {
    let status = match vm.state {
        State::Alive => control::status(&vm.dir).await.ok(),
        _ => None,
    };
    let id = vm.id();
    let (state, end) = match (vm.state, &status) {
        (State::Alive, Some(status)) => (status.phase.to_string(), None),
        (State::Alive, None) => ("unresponsive".to_owned(), None),
        (State::Ended(end), _) if end.status.is_some() => ("exited".to_owned(), Some(end)),
        (State::Ended(end), _) => ("failed".to_owned(), Some(end)),
        (State::Lost, _) => ("lost".to_owned(), None),
        (State::Stopped, _) => ("stopped".to_owned(), None),
    };
    let timings = status.as_ref().map(|status| status.timings).or(end.as_ref().map(|end| end.timings));
    VmReport {
        id,
        state,
        exit_status: end.as_ref().and_then(|end| end.status),
        ended: end.as_ref().map(|end| end.at),
        reason: end.and_then(|end| end.reason),
        timings,
        record: vm.record,
        status,
        dir: vm.dir,
    }
}
