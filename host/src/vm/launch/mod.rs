//! From an image to a running VM and, with a command, to its exit status.
//!
//! A launch writes nothing to the host's disk but a log of the console: kernel and initramfs are cached, the root streams
//! from the store, changes live in the guest's memory.
//!
//! [`Launch`] says what is wanted. A plan is made of it and checked before anything starts; a supervisor starts the VM and
//! looks after it; a front end says when it is over: [`run`] on this terminal, [`run_detached`] in the background,
//! [`run_around`] for work from outside. What runs in the guest is in [`super::guest`], what others see of a VM in
//! [`super::instance`].

mod boot_kernel;
mod detached;
mod foreground;
mod idle;
mod plan;
mod report;
mod supervise;

use std::path::PathBuf;
use std::time::Duration;

use lazyroot_proto::exec::Exec;

pub use self::detached::{OUTPUT_LOG, run_detached};
pub use self::foreground::run;
pub use self::idle::run_around;
pub use self::report::Report;
use crate::serve::ProfileUse;
use crate::store::Image;
use crate::vm::guest::readiness::Wait;
use crate::vm::hypervisor::machine::Network;
use crate::vm::hypervisor::registry::BackendChoice;
use crate::vm::instance::port_map::PortMap;
use crate::vm::instance::volume::Volume;

/// What to launch.
pub struct Launch {
    /// The image to boot into.
    pub image: Image,
    /// What to run; `None` boots the image's own init on this terminal.
    pub command: Option<Exec>,
    /// Release of the kernel bundle, or `None` for the image's own kernel, else the newest bundle.
    pub kernel: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The VM's name; made up if `None`.
    pub name: Option<String>,
    /// More words for the kernel command line.
    pub append: Vec<String>,
    /// Which hypervisor and accelerator.
    pub hypervisor: BackendChoice,
    /// Show the guest's console on standard error while a command runs.
    pub show_console: bool,
    /// Its network; `None` for one in user space if the kernel can.
    pub network: Option<Network>,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<PortMap>,
    /// Folders of the host that the guest sees.
    pub volumes: Vec<Volume>,
    /// systemd credentials, by name.
    pub credentials: Vec<(String, Vec<u8>)>,
    /// systemd units, by file name.
    pub units: Vec<(String, Vec<u8>)>,
    /// When it counts as ready, if it runs the image's init in the background.
    pub wait: Wait,
    /// What is done with the image's boot profile.
    pub profile: ProfileUse,
    /// End the VM after this long; it has no terminal then.
    pub at_most: Option<Duration>,
    /// A disk for what the guest writes, which formats it if it is blank; memory if `None`.
    pub disk: Option<PathBuf>,
}

/// What becomes of a VM's folder when the VM has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It stays, with logs and status, until somebody removes it.
    UntilRemoved,
    /// It goes too.
    No,
}
