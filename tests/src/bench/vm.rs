//! VMs with a stopwatch, and what they boot into: a file for each root file system that is compared.
//!
//! What is measured in them is in [`crate::bench::guest`] and [`crate::bench::boot`].

pub mod erofs;
mod lazyroot;
mod nbd;
mod peer;
mod session;
pub mod squashfs;
mod virtiofs;

use anyhow::Result;
use lazyroot::launched;

use super::guest;
use super::inputs::Inputs;
use super::plan::Plan;
use super::report::{Cell, Fetched, Report};
pub use session::Session;

/// Virtual CPUs of every measured VM.
pub const CPUS: u32 = 1;
/// Memory of every measured VM in MiB.
pub const MEMORY_MIB: u32 = 1024;

/// What a VM boots into.
#[derive(Clone, Copy, Debug)]
pub enum Boot<'a> {
    /// This command.
    Command(&'a [&'a str]),
    /// The image's init.
    Init,
}

/// A way to give a VM the tree as its root.
pub trait System {
    /// Starts a VM.
    fn start(&self, boot: Boot<'_>) -> Result<Box<dyn Running>>;

    /// Called before a boot is sampled: for systems that learn from what was read before.
    fn learn(&self, _boot: Boot<'_>) -> Result<()> {
        Ok(())
    }

    /// Version, options, and what its image cost, for people.
    fn about(&self) -> String;
}

/// A started VM. Dropping it ends it.
pub trait Running {
    /// Its output.
    fn session(&mut self) -> &mut Session;

    /// Processes on the host that serve it, by name: not the hypervisor.
    fn servers(&self) -> Vec<(String, u32)>;

    /// Payload bytes and requests of these so far, where somebody counts them.
    fn fetched(&self) -> Option<Fetched>;

    /// Ends it once the line that was waited for has arrived after `seconds`; from when the hypervisor started that
    /// were, and payload bytes and requests, where somebody counted them.
    fn end(self: Box<Self>, seconds: f64) -> Result<(f64, Option<Fetched>)>;
}

/// How a system gets ready; an error is the reason why it is absent.
type Prepare = fn(&Inputs) -> Result<Box<dyn System>>;

/// The systems. The first is what the others are compared with.
const SYSTEMS: &[(&str, Prepare)] = &[
    (CEILING, erofs::prepare),
    (LAZYROOT, lazyroot::without_profile),
    (WITH_PROFILE, lazyroot::with_profile),
    ("SquashFS on virtio-blk", squashfs::prepare),
    ("EROFS over NBD", nbd::prepare),
    ("virtiofsd", virtiofs::prepare),
];

/// What others are compared with: a ready-made disk.
pub const CEILING: &str = "EROFS on virtio-blk";
/// Ours.
const LAZYROOT: &str = "lazyroot";
/// Ours, with a profile: for boots alone, since it is of a boot and its pages are dropped with the guest's caches.
const WITH_PROFILE: &str = "lazyroot with profile";

/// The chosen systems, by name.
///
/// # Errors
/// If one of the two that matter cannot run; the others are absent from the report then, with the reason.
pub fn systems(
    part: &str,
    inputs: &Inputs,
    plan: &Plan,
    report: &mut Report,
) -> Result<Vec<(&'static str, Box<dyn System>)>> {
    report.compare(part, CEILING);
    let mut systems = Vec::new();
    let takes_part =
        |name: &str| name == CEILING || plan.has_system(name) && (part, name) != (guest::PART, WITH_PROFILE);
    for (name, prepare) in SYSTEMS.iter().filter(|(name, _)| takes_part(name)) {
        match prepare(inputs) {
            Ok(system) => {
                report.about(part, name, &system.about());
                systems.push((*name, system));
            }
            Err(error) if [CEILING, LAZYROOT, WITH_PROFILE].contains(name) => return Err(error.context(*name)),
            Err(error) => report.about(part, name, &format!("not run: {error:#}")),
        }
    }
    Ok(systems)
}

/// Samples a VM; once more, with a note, if that fails. QEMU's emulation of a CPU with all features makes a
/// guest's kernel crash now and then.
pub fn twice_at_most<T>(report: &mut Report, cell: &Cell, mut sample: impl FnMut() -> Result<T>) -> Result<T> {
    sample().or_else(|error| {
        eprintln!("{}, {}: once more, because {error:#}", cell.workload, cell.system);
        report.note(cell, "a sample failed and was taken again");
        sample()
    })
}

/// lazyroot's own report of a VM of `image` in which `command` said `wanted`, run to its end.
pub fn launch(image: &str, command: &[&str], wanted: &str) -> Result<::lazyroot::vm::launch::Report> {
    launched(image, Boot::Command(command))?.finish(wanted)
}
