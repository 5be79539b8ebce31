//! The folders of VMs: what each is, its sockets and logs, and a lock that tells the living from the dead.
//!
//! A VM is alive exactly as long as its lazyroot holds the lock in its folder: the kernel lets go of it however that
//! process ends, and a process id in a file would sooner or later be somebody else's. The folder of a VM that was
//! started to stay (`run -d`) is kept when it ends, with what became of it, until somebody removes it; all others go
//! with their VM, or are swept away by the next launch.
//!
//! Everything that another lazyroot process may know of a VM, or ask of the one that runs it, is here. What is done
//! inside of the guest is in [`super::guest`]; the machine itself is in [`super::hypervisor`].

pub mod control;
pub mod disks;
mod folder;
pub mod port_map;
mod record;
mod registry;
pub mod status;
pub mod stop;
pub mod volume;

pub use folder::{Instance, State};
pub use record::{Defaults, End, Record, now};
pub use registry::{VmEntry, Vms};
