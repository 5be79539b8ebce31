//! Virtual machines: kernels, the initramfs, hypervisors, and the life of a running VM.
//!
//! A folder for each of five things, and arrows that run one way: [`launch`] puts the others together; [`guest`] is what
//! is done inside of a running VM, by its agent; [`instance`] is what is written down of VMs, and how one lazyroot
//! process reaches the one that runs a VM; [`hypervisor`] starts machines; [`kernel`] is what they boot. The files beside
//! the folders know none of them: child processes, programs of others and their checks, logs, the podman machine.
//! Images are in [`crate::store`]; what a guest reads of them is served by [`crate::serve`].

pub mod check;
pub mod guest;
pub mod hypervisor;
pub mod instance;
pub mod kernel;
pub mod launch;
pub mod log;
pub mod podman_machine;
pub mod process;
pub mod programs;
