//! `lazyroot start`, `update`, `resize`, `snapshot`, `fork` and `commit`: VMs that keep what their guest writes.

use std::fs::File;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::cli::background;
use crate::cli::context::{Context, runtime};
use crate::cli::output::print;
use crate::cli::vm::run::{self, ParseRun};
use crate::store::{ImageName, Store};
use crate::vm::guest::copy;
use crate::vm::instance::disks::{Disks, Saved};
use crate::vm::instance::{Record, State, VmEntry, Vms};
use crate::vm::kernel::bundle::Kernels;

/// Start a stopped VM that was made with --persist
#[derive(clap::Args)]
pub struct StartArgs {
    /// Name or id of the VM
    vm: String,
}

/// Change what a stopped persistent VM is started with
#[derive(clap::Args)]
pub struct UpdateArgs {
    /// Virtual CPUs
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    cpus: Option<u32>,
    /// Memory: MiB, or with a suffix (512M, 2G)
    #[arg(long, value_parser = run::memory)]
    memory: Option<u32>,
    /// Kernel to boot: a release from 'lazyroot kernel ls'
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,
    /// Name or id of the VM
    vm: String,
}

/// Make the disk of a stopped persistent VM larger
#[derive(clap::Args)]
pub struct ResizeArgs {
    /// Name or id of the VM
    vm: String,
    /// Its new size: MiB, or with a suffix (512M, 20G)
    #[arg(value_parser = run::disk_size)]
    size: u64,
}

/// Keep the disk of a stopped persistent VM as it is now, under a name
#[derive(clap::Args)]
pub struct SnapshotArgs {
    /// Name or id of the VM
    vm: String,
    /// Name of the snapshot
    snapshot: String,
}

/// Make a persistent VM from a stopped one, or from a snapshot of it
#[derive(clap::Args)]
pub struct ForkArgs {
    /// VM, or VM@SNAPSHOT
    from: String,
    /// Name of the new VM
    name: String,
}

/// Make an image of a VM: its own with what the guest changed
///
/// A stopped VM must have been made with --persist; it is booted for a moment, with nothing running in it. Writing to the
/// disk of a running one waits meanwhile. Host name, machine id and resolv.conf stay as the image has them.
#[derive(clap::Args)]
pub struct CommitArgs {
    /// Name or id of the VM
    vm: String,
    /// Name of the new image
    image: String,
}

/// A VM that does not run.
struct Stopped {
    name: String,
    disks: Disks,
    saved: Saved,
    /// On its disk.
    claim: File,
}

impl Stopped {
    fn find(context: &Context, text: &str) -> Result<Self> {
        let VmEntry { record: Record { name, .. }, state, .. } = Vms::open(&context.home)?.find(text)?;
        ensure!(state != State::Alive, "VM '{name}' is running: 'lazyroot stop {name}' first");
        let disks = Disks::open(&context.home)?;
        let claim = disks.claim(&name)?;
        let saved = disks.get(&name)?;
        let claim = claim.with_context(|| format!("VM '{name}' was removed meanwhile"))?;
        Ok(Self { name, disks, saved, claim })
    }
}

/// Starts a VM again.
pub fn start(args: &StartArgs, context: &Context, launched: Instant, parse: ParseRun) -> Result<ExitCode> {
    let vm = Stopped::find(context, &args.vm)?;
    if !background::is_here() {
        // For the one in the background.
        drop(vm);
        return background::start();
    }
    run::start(&vm.name, vm.saved, context, launched, parse)
}

/// Changes what a VM is started with.
pub fn update(args: UpdateArgs, context: &Context) -> Result<ExitCode> {
    let Stopped { name, disks, mut saved, claim: _claim } = Stopped::find(context, &args.vm)?;
    if let Some(release) = &args.kernel {
        Kernels::open(&context.home)?.get(release)?;
    }
    saved.cpus = args.cpus.or(saved.cpus);
    saved.memory_mib = args.memory.or(saved.memory_mib);
    saved.kernel = args.kernel.or(saved.kernel);
    disks.set(&name, &saved)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes a disk larger.
pub fn resize(args: &ResizeArgs, context: &Context) -> Result<ExitCode> {
    let vm = Stopped::find(context, &args.vm)?;
    vm.disks.resize(&vm.name, args.size)?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps a disk.
pub fn snapshot(args: &SnapshotArgs, context: &Context) -> Result<ExitCode> {
    let vm = Stopped::find(context, &args.vm)?;
    vm.disks.snapshot(&vm.name, &args.snapshot)?;
    Ok(ExitCode::SUCCESS)
}

/// Forks a VM.
pub fn fork(args: &ForkArgs, context: &Context) -> Result<ExitCode> {
    let (from, snapshot) = match args.from.split_once('@') {
        Some((from, snapshot)) => (from, Some(snapshot)),
        None => (args.from.as_str(), None),
    };
    let vms = Vms::open(&context.home)?;
    // A snapshot does not change while its VM runs.
    let (from, disks, _claim) = match snapshot {
        Some(_) => (vms.find(from)?.record.name, Disks::open(&context.home)?, None),
        None => Stopped::find(context, from).map(|vm| (vm.name, vm.disks, Some(vm.claim)))?,
    };
    vms.check_free(&args.name)?;
    disks.fork(&from, snapshot, &args.name)?;
    let saved = disks.get(&args.name)?;
    let store = Store::open(&context.home, saved.store.as_deref())?;
    // Of an upstream's image there is nothing here to keep.
    if let Ok(image) = store.resolve(&saved.image) {
        disks.keep_image(&args.name, &store, &image);
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes an image of a VM.
pub fn commit(args: &CommitArgs, context: &Context, launched: Instant, parse: ParseRun) -> Result<ExitCode> {
    let name: ImageName = args.image.parse()?;
    let vm = Vms::open(&context.home)?.find(&args.vm)?;
    let vm_name = vm.record.name.clone();
    let image = if vm.state == State::Alive {
        let saved = Disks::open(&context.home)?.get(&vm_name).ok().filter(|_| vm.record.persistent);
        let store =
            Store::open(&context.home, saved.and_then(|saved| saved.store).or(context.store.clone()).as_deref())?;
        let base = store.resolve(&vm.record.image)?;
        store.ensure_can_commit(&base)?;
        let to = name.to_string();
        runtime()?.block_on(copy::upper(&vm.dir, move |layer| store.commit(&base, layer, &to)))
    } else {
        ensure!(
            vm.record.persistent,
            "VM '{vm_name}' has ended, and what it wrote is gone: only a VM made with --persist keeps it"
        );
        let Stopped { saved, claim: _claim, .. } = Stopped::find(context, &vm_name)?;
        run::commit(&vm_name, saved, name.as_str(), context, launched, parse)
    };
    let image = image.with_context(|| format!("VM '{vm_name}'"))?;
    print(&format!("{} {name}\n", image.id))
}
