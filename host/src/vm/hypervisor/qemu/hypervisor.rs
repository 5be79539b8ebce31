//! QEMU as it is installed: starting a machine of it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lazyroot_proto::settings;
use tokio::process::Command;

use super::accelerator::Accelerator;
use super::arguments::{arguments, machine_arguments, monitor, vhost_user_socket};
use super::machine::QemuMachine;
use super::program;
use super::vsock::{PRIVATE_CID, Vsock};
use crate::home::Home;
use crate::vm::hypervisor::console::Console;
#[cfg(target_os = "linux")]
use crate::vm::hypervisor::console::ConsoleLog;
use crate::vm::hypervisor::helpers::{vhost_device_vsock, virtiofsd};
use crate::vm::hypervisor::machine::{BoxFuture, GuestListener, Hypervisor, Machine, MachineSpec, Network};
use crate::vm::kernel::arch::Arch;
use crate::vm::process::end_with_parent;

/// How long QEMU is watched for a refusal of its options, which comes at once or not at all.
const REFUSAL_WINDOW: Duration = Duration::from_millis(20);

/// Bytes from which on a piece of an emulating QEMU's memory is mapped by itself, and so always lies at the same place of a
/// page. The state of an emulated processor is such a piece. In the heap it lies where others have left it, by the length
/// of the VM's name for example; where its vector registers lie across cache lines, as that suggests, vectors are slower:
/// a guest read and hashed 128 MiB in 3.1 s with a name of up to five letters, and in 2.1 s with a longer one. Mapped, in
/// 2.1 s with both: the state is larger than this. glibc's own threshold is 128 KiB, and moves.
const MAPPED_FROM: &str = "16384";

/// Words that save an emulated guest time: no mitigations of speculation that does not happen, no self-tests.
///
/// And one that costs some: with `init_on_alloc=1`, which not every kernel has by default, the guest's processor zeroes memory
/// before a device fills it. The translator keeps what it has translated of a page until it sees a write to it, and does not
/// see those of other processes (virtiofsd, vhost-device-vsock): programs would run code that was there before.
const TCG_CMDLINE: &str = "mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests init_on_alloc=1";

/// The same for x86, together one to two seconds: no calibration against a clock that QEMU keeps, no probing for
/// hardware that is not there.
///
/// `clearcpuid=cx16` keeps the kernel, not its programs, from using CMPXCHG16B: QEMU 7.2 damages the flags when an
/// interrupt meets that instruction, and without this word about one boot in seventeen panics in the slab allocator.
const TCG_CMDLINE_X86: &str = "tsc=reliable no_timer_check clearcpuid=cx16 8250.nr_uarts=1 i8042.noaux i8042.nokbd \
                               i8042.noprobe";

/// QEMU for one architecture, with an accelerator.
pub struct Qemu {
    program: PathBuf,
    arch: Arch,
    accelerator: Accelerator,
    vsock: Vsock,
}

impl Qemu {
    /// QEMU as it is installed, with the vsock that this machine has.
    ///
    /// # Errors
    /// If QEMU or the vsock is missing.
    pub fn new(home: &Home, arch: Arch, accelerator: Accelerator) -> Result<Self> {
        let vsock = Vsock::of_machine(home)?;
        Ok(Self { program: program::program(arch)?, arch, accelerator, vsock })
    }

    /// QEMU's arguments for the machine of `spec` but for its connection to the host: also what a VM that
    /// lazyroot is compared with has in common with lazyroot's.
    ///
    /// # Errors
    /// If a path is not UTF-8, or the machine has what QEMU cannot give it.
    pub fn machine_arguments(&self, spec: &MachineSpec) -> Result<Vec<String>> {
        machine_arguments(self.arch, self.accelerator, spec)
    }

    async fn launch(&self, spec: &MachineSpec) -> Result<QemuMachine> {
        let device = match &self.vsock {
            Vsock::Vhost { .. } => None,
            Vsock::VhostUser(program) => {
                let (socket, uds, log) = (vhost_user_socket(spec), spec.dir.join("v"), spec.dir.join("vsock.log"));
                Some(vhost_device_vsock::start(program, PRIVATE_CID, &socket, &uds, &log).await?)
            }
        };
        let mut shares = Vec::new();
        for share in &spec.shares {
            shares.push(virtiofsd::start(&spec.dir, share).await?);
        }
        let log = spec.dir.join("qemu.log");
        let mut command = Command::new(&self.program);
        command
            .args(arguments(self.arch, self.accelerator, &self.vsock, spec)?)
            .stderr(create(&log)?)
            .kill_on_drop(true);
        if self.accelerator == Accelerator::Tcg {
            // Words of glibc's mallopt(3), which others pass over.
            command.env("MALLOC_MMAP_THRESHOLD_", MAPPED_FROM);
        }
        if spec.console != Console::Stdio {
            command.stdin(Stdio::null()).stdout(create(&spec.dir.join("qemu.out"))?);
            // Ctrl-C is for us, and for the program in the guest.
            command.process_group(0);
        }
        end_with_parent(command.as_std_mut());
        let qemu = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut machine = QemuMachine { qemu, device, shares, log, monitor: monitor(spec) };
        tokio::select! {
            ended = machine.wait() => {
                ended?;
                bail!("QEMU ended as soon as it had started");
            }
            () = tokio::time::sleep(REFUSAL_WINDOW) => Ok(machine),
        }
    }
}

impl Hypervisor for Qemu {
    fn acceleration(&self) -> &'static str {
        self.accelerator.name()
    }

    /// QEMU writes to whatever it is given: a pipe costs nothing while the guest is silent.
    #[cfg(target_os = "linux")]
    fn console_log(&self, dir: &Path) -> Result<(Console, ConsoleLog)> {
        ConsoleLog::from_pipe(dir)
    }

    fn cmdline(&self) -> String {
        match (self.accelerator, self.arch) {
            (Accelerator::Tcg, Arch::X86_64) => format!("{TCG_CMDLINE} {TCG_CMDLINE_X86}"),
            (Accelerator::Tcg, Arch::Aarch64) => TCG_CMDLINE.into(),
            (Accelerator::Kvm, _) => String::new(),
        }
    }

    fn vsock_port(&self) -> u32 {
        self.vsock.port()
    }

    fn vsock(&self, spec: &MachineSpec) -> GuestListener {
        self.vsock.listener(spec)
    }

    fn network_settings(&self, network: Network) -> Option<settings::Network> {
        // QEMU's own defaults (its documentation, "Using the user mode network stack").
        let (address, gateway, dns) = ([10, 0, 2, 15], [10, 0, 2, 2], [10, 0, 2, 3]);
        (network == Network::User).then_some(settings::Network { address, prefix: 24, gateway, dns })
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        Box::pin(async move { Ok(Box::new(self.launch(spec).await?) as Box<dyn Machine>) })
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))
}
