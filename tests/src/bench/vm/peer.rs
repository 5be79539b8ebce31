//! What lazyroot's VMs are compared with: the same machine with a root that comes from elsewhere.
//!
//! Kernel, QEMU's options, memory and kernel command line are lazyroot's own; the initramfs has the same form, with
//! the modules for that root and a minimal init (tests/peer-init), which puts the same overlay in memory over it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use lazyroot::vm::hypervisor::backend::Backend;
use lazyroot::vm::hypervisor::console::Console;
use lazyroot::vm::hypervisor::machine::{Hypervisor, MachineSpec, Network};
use lazyroot::vm::hypervisor::qemu::accelerator::Accelerator;
use lazyroot::vm::hypervisor::qemu::{self, Qemu, QemuBackend};
use lazyroot::vm::kernel::arch::Arch;
use lazyroot::vm::kernel::bundle::Kernels;
use lazyroot::vm::kernel::import::modules_of_deb;
use lazyroot::vm::kernel::initramfs;
use lazyroot_proto::frame::DEFAULT_PORT;

use super::{Boot, CPUS, MEMORY_MIB, Running, Session, System};
use crate::bench::inputs::Inputs;
use crate::bench::peers::{self, Killed};
use crate::bench::report::Fetched;
use crate::inputs::BENCH_PEER_INIT;
use crate::kernel_deb;

/// A module and what it is needed for.
pub type Module = (&'static str, &'static str);

/// Where a peer's root comes from.
pub struct Root {
    /// The kernel's name of its file system, and what it mounts.
    pub mount: (&'static str, &'static str),
    /// Modules beside those of every peer.
    pub modules: &'static [Module],
    /// QEMU's arguments for the device.
    pub device: Vec<String>,
    /// What serves the device, if it is no file.
    pub server: Option<Server>,
    /// For people.
    pub about: String,
}

/// A process that serves a device.
pub struct Server {
    /// Its command line.
    pub command: Box<dyn Fn() -> Result<Command>>,
    /// The socket that it makes.
    pub socket: PathBuf,
}

/// What every peer needs.
const MODULES: &[Module] = &[("virtio_pci", "virtio devices"), ("overlay", "changes in memory")];

/// Modules of peers with a disk.
pub const DISK: Module = ("virtio_blk", "its disk");

/// QEMU's arguments for a disk in a file.
pub fn disk(file: &Path) -> Vec<String> {
    drive(&format!("file={},format=raw", file.display()))
}

/// QEMU's arguments for a disk.
pub fn drive(options: &str) -> Vec<String> {
    let drive = format!("{options},if=none,id=disk,readonly=on");
    ["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"].map(str::to_owned).into()
}

/// A peer's machine.
struct Peer {
    qemu: Qemu,
    spec: MachineSpec,
    root: Root,
}

/// A peer with this root.
///
/// # Errors
/// If the kernel lacks something.
pub fn prepare(inputs: &Inputs, root: Root) -> Result<Box<dyn System>> {
    let init = fs::read(BENCH_PEER_INIT.path()).context("cannot read the peer's init")?;
    let modules = modules_of_deb(&kernel_deb(), &[MODULES, root.modules].concat())?;
    let initramfs = inputs.work.join(format!("peer-{}.initramfs", root.mount.0));
    fs::write(&initramfs, initramfs::pack(&init, &modules))?;
    let spec = MachineSpec {
        name: "peer".into(),
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
        kernel: Kernels::open(&inputs.home)?.newest(Arch::HOST)?.boot_file(),
        initramfs,
        cmdline: String::new(),
        dir: inputs.work.clone(),
        // Our pipe.
        console: Console::File("/dev/stdout".into()),
        vsock_port: DEFAULT_PORT,
        disks: Vec::new(),
        shares: Vec::new(),
        network: Network::None,
    };
    Ok(Box::new(Peer { qemu: Qemu::new(&inputs.home, Arch::HOST, Accelerator::Tcg)?, spec, root }))
}

impl System for Peer {
    fn start(&self, boot: Boot<'_>) -> Result<Box<dyn Running>> {
        let server = self.root.server.as_ref().map(serve).transpose()?;
        let mut words =
            vec![format!("console={} panic=-1", QemuBackend.guest_needs(Arch::HOST).console), self.qemu.cmdline()];
        let (kind, source) = self.root.mount;
        words.push(format!("-- {kind} {source} run"));
        let command = match boot {
            Boot::Command(command) => command,
            Boot::Init => &["/sbin/init"],
        };
        // The kernel splits at spaces outside of double quotes.
        words.extend(command.iter().map(|word| format!("\"{word}\"")));
        let spec = MachineSpec { cmdline: words.join(" "), ..self.spec.clone() };
        let mut program = Command::new(qemu::program(Arch::HOST)?);
        program.args(self.qemu.machine_arguments(&spec)?).args(&self.root.device);
        Ok(Box::new(Started { session: Session::start(&mut program)?, server }))
    }

    fn about(&self) -> String {
        self.root.about.clone()
    }
}

/// Starts a server and waits for its socket.
fn serve(server: &Server) -> Result<Killed> {
    let mut command = (server.command)()?;
    let _ = fs::remove_file(&server.socket);
    let mut process = Killed(command.spawn()?);
    while !server.socket.exists() {
        if let Some(status) = process.0.try_wait()? {
            bail!("{command:?} ended with {status}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(process)
}

struct Started {
    session: Session,
    server: Option<Killed>,
}

impl Running for Started {
    fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    fn servers(&self) -> Vec<(String, u32)> {
        self.server.iter().map(|server| ("server".to_owned(), server.0.id())).collect()
    }

    fn fetched(&self) -> Option<Fetched> {
        peers::reads(self.server.as_ref()?.0.id())
    }

    fn end(self: Box<Self>, seconds: f64) -> Result<(f64, Option<Fetched>)> {
        Ok((seconds, self.fetched()))
    }
}
