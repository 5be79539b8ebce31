//! QEMU on Linux, for guests of this machine's architecture and, emulated, of others: direct kernel boot, a serial console, vsock, and nothing else.
//!
//! Where the host's kernel has vhost_vsock the guest's connections arrive at AF_VSOCK; elsewhere
//! vhost-device-vsock, a process of its own beside QEMU, brings them to a unix socket.

pub mod accelerator;
mod qmp;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::frame::DEFAULT_PORT;
use lazyroot_proto::settings;
use tokio::process::{Child, Command};

use crate::home::Home;
#[cfg(target_os = "linux")]
use crate::vm::hypervisor::console::ConsoleLog;
use crate::vm::hypervisor::helpers::virtiofsd;
use crate::vm::hypervisor::machine::{
    Access, BoxFuture, Console, GuestListener, Hypervisor, Machine, MachineSpec, Network,
};
use crate::vm::hypervisor::qemu::accelerator::Accelerator;
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::{Bundle, Kernel};
use crate::vm::process::{end_with_parent, last_words};
use crate::vm::programs;

/// How long vhost-device-vsock may take to make its socket.
const SOCKET_DEADLINE: Duration = Duration::from_secs(10);

/// How long QEMU is watched for a refusal of its options, which comes at once or not at all.
const REFUSAL_WINDOW: Duration = Duration::from_millis(20);

/// The guest's address where vhost-device-vsock connects it: each guest has a device of its own.
const PRIVATE_CID: u32 = 3;

/// QEMU's machine: `microvm` would be smaller, but hung in 3 of 38 boots at its clock's calibration.
pub fn machine(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "q35",
        Arch::Aarch64 => "virt",
    }
}

/// The guest's name for the serial port of [`machine`].
pub fn console(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "ttyS0",
        Arch::Aarch64 => "ttyAMA0",
    }
}

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
    transport: Transport,
}

#[derive(Clone, Debug)]
enum Transport {
    /// The host's own vhost_vsock, and the guest's address.
    Vhost { cid: u32 },
    /// This program.
    VhostUser(PathBuf),
}

/// QEMU for guests of an architecture.
///
/// # Errors
/// If it is not installed.
pub fn program(arch: Arch) -> Result<PathBuf> {
    let name = format!("qemu-system-{arch}");
    let (debian, fedora) = match arch {
        Arch::X86_64 => ("qemu-system-x86", "qemu-system-x86"),
        Arch::Aarch64 => ("qemu-system-arm", "qemu-system-aarch64"),
    };
    programs::find(&name, &[]).with_context(|| {
        format!(
            "{name}, which runs {arch} guests, is not installed: 'apt-get install {debian}' on Debian, 'dnf install \
             {fedora}' on Fedora"
        )
    })
}

/// The vsock daemon of this machine.
///
/// # Errors
/// If it is not installed.
pub fn vhost_device_vsock(home: &Home) -> Result<PathBuf> {
    const NAME: &str = "vhost-device-vsock";
    const VARIABLE: &str = "LAZYROOT_VHOST_DEVICE_VSOCK";
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("there is no {NAME} at {} ({VARIABLE})", path.display());
        }
        return Ok(path);
    }
    let cargo = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
    let folders: Vec<PathBuf> = cargo.into_iter().chain([home.data_dir("bin")?]).collect();
    programs::find(NAME, &folders).with_context(|| {
        format!(
            "this kernel has no /dev/vhost-vsock, and {NAME}, which serves without it, is not installed: \
             'modprobe vhost_vsock' as root, or 'cargo install {NAME}'"
        )
    })
}

impl Qemu {
    /// QEMU as it is installed, with the transport that this machine has.
    ///
    /// # Errors
    /// If QEMU or the transport is missing.
    pub fn new(home: &Home, arch: Arch, accelerator: Accelerator) -> Result<Self> {
        let vhost = File::options().read(true).write(true).open("/dev/vhost-vsock");
        let transport = match vhost {
            Ok(_) => Transport::Vhost { cid: random_cid()? },
            Err(_) => Transport::VhostUser(vhost_device_vsock(home)?),
        };
        Ok(Self { program: program(arch)?, arch, accelerator, transport })
    }

    /// QEMU's arguments for the machine of `spec` but for its connection to the host: also what a VM that
    /// lazyroot is compared with has in common with lazyroot's.
    ///
    /// # Errors
    /// If a path is not UTF-8, or the machine has what QEMU cannot give it.
    pub fn machine_arguments(&self, spec: &MachineSpec) -> Result<Vec<String>> {
        let memory = format!("{}M", spec.memory_mib);
        let mut arguments: Vec<String> = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            // A guest that breaks out of QEMU finds a process that starts no other and gains no privilege.
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-name",
            &spec.name,
            "-M",
            &format!("{},memory-backend=mem", machine(self.arch)),
            "-cpu",
            self.accelerator.cpu(self.arch),
            "-accel",
            self.accelerator.name(),
            "-smp",
            &spec.cpus.to_string(),
            "-m",
            &memory,
            // Shared, so that a vhost-user device reaches it.
            "-object",
            &format!("memory-backend-memfd,id=mem,size={memory},share=on"),
            "-kernel",
            utf8(&spec.kernel)?,
            "-initrd",
            utf8(&spec.initramfs)?,
            "-append",
            &spec.cmdline,
        ]
        .map(str::to_owned)
        .into();
        let mut add = |words: [&str; 2]| arguments.extend(words.map(str::to_owned));
        match &spec.console {
            Console::File(path) => {
                add(["-chardev", &format!("file,id=console,path={}", option(utf8(path)?))]);
            }
            Console::Pty => add(["-chardev", "pty,id=console"]),
            Console::Stdio => {
                // Multiplexed with the monitor: Ctrl-A X ends the machine, Ctrl-A H lists the rest.
                add(["-chardev", "stdio,id=console,mux=on,signal=off"]);
                add(["-mon", "chardev=console,mode=readline"]);
            }
        }
        add(["-serial", "chardev:console"]);
        for disk in &spec.disks {
            let (path, id) = (option(utf8(&disk.path)?), option(&disk.id));
            // A full disk of the host is the guest's error, not a guest that stands still.
            let readonly = if disk.access == Access::ReadOnly { "on" } else { "off" };
            add([
                "-drive",
                &format!("if=none,format=raw,id=disk-{id},readonly={readonly},discard=unmap,werror=report,file={path}"),
            ]);
            add(["-device", &format!("virtio-blk-pci,drive=disk-{id},serial={id}")]);
        }
        match spec.network {
            Network::None => (),
            Network::User => {
                add(["-netdev", "user,id=net"]);
                // No ROM to boot from, which not every package of QEMU brings.
                add(["-device", "virtio-net-pci,netdev=net,romfile="]);
            }
            Network::Nat => bail!("QEMU has no NAT of its own: use its user network"),
        }
        for share in &spec.shares {
            let (socket, tag) = (virtiofsd::socket(&spec.dir, share), option(&share.tag));
            add(["-chardev", &format!("socket,id=share-{tag},path={}", option(utf8(&socket)?))]);
            add(["-device", &format!("vhost-user-fs-pci,chardev=share-{tag},tag={tag}")]);
        }
        Ok(arguments)
    }

    fn arguments(&self, spec: &MachineSpec) -> Result<Vec<String>> {
        let mut arguments = self.machine_arguments(spec)?;
        let mut add = |words: [&str; 2]| arguments.extend(words.map(str::to_owned));
        // For one of us at a time, who connects when there is something to say.
        add(["-chardev", &format!("socket,id=qmp,server=on,wait=off,path={}", option(utf8(&monitor(spec))?))]);
        add(["-mon", "chardev=qmp,mode=control"]);
        match &self.transport {
            Transport::Vhost { cid } => add(["-device", &format!("vhost-vsock-pci,guest-cid={cid}")]),
            Transport::VhostUser(_) => {
                let socket = device_socket(spec);
                add(["-chardev", &format!("socket,id=vsock,path={}", option(utf8(&socket)?))]);
                add(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
            }
        }
        Ok(arguments)
    }

    async fn launch(&self, spec: &MachineSpec) -> Result<QemuMachine> {
        let device = match &self.transport {
            Transport::Vhost { .. } => None,
            Transport::VhostUser(program) => Some(start_device(program, spec).await?),
        };
        let mut shares = Vec::new();
        for share in &spec.shares {
            shares.push(virtiofsd::start(&spec.dir, share).await?);
        }
        let log = spec.dir.join("qemu.log");
        let mut command = Command::new(&self.program);
        command.args(self.arguments(spec)?).stderr(create(&log)?).kill_on_drop(true);
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

    fn kernel_file(&self, kernel: &Kernel) -> Result<PathBuf> {
        let Bundle { release, arch, .. } = &kernel.bundle;
        ensure!(*arch == self.arch, "this is QEMU for {}: kernel {release} is for {arch}", self.arch);
        Ok(kernel.boot_file())
    }

    fn console_device(&self) -> &'static str {
        console(self.arch)
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
        match self.transport {
            // All guests share the host's ports: each has its own, named after its address.
            Transport::Vhost { cid } => cid,
            Transport::VhostUser(_) => DEFAULT_PORT,
        }
    }

    fn vsock(&self, spec: &MachineSpec) -> GuestListener {
        match self.transport {
            Transport::Vhost { cid } => GuestListener::Vsock { port: spec.vsock_port, cid },
            Transport::VhostUser(_) => GuestListener::Unix(spec.dir.join(format!("v_{}", spec.vsock_port))),
        }
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

/// A guest address that is most likely free: the host's kernel refuses one that is not. 0 to 2 are reserved, and up to
/// 1023 it would be no port for everybody.
fn random_cid() -> Result<u32> {
    let mut bytes = [0; 4];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes) % (u32::MAX - 1025) + 1024)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("QEMU cannot take the path {}, which is not UTF-8", path.display()))
}

/// A value in one of QEMU's comma-separated lists: commas are doubled.
fn option(value: &str) -> String {
    value.replace(',', ",,")
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))
}

fn monitor(spec: &MachineSpec) -> PathBuf {
    spec.dir.join("qmp")
}

fn device_socket(spec: &MachineSpec) -> PathBuf {
    spec.dir.join("vhost.sock")
}

/// Starts vhost-device-vsock, and waits until QEMU can connect to it.
async fn start_device(program: &Path, spec: &MachineSpec) -> Result<Child> {
    let (socket, uds) = (device_socket(spec), spec.dir.join("v"));
    for path in [&socket, &uds] {
        if path.to_string_lossy().contains(',') {
            bail!("vhost-device-vsock cannot take a path with a comma: {}", path.display());
        }
    }
    let log = spec.dir.join("vsock.log");
    let vm = format!("guest-cid={PRIVATE_CID},socket={},uds-path={}", utf8(&socket)?, utf8(&uds)?);
    let mut command = Command::new(program);
    command.args(["--vm", &vm]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(create(&log)?).kill_on_drop(true);
    command.process_group(0);
    end_with_parent(command.as_std_mut());
    let mut device = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let deadline = Instant::now() + SOCKET_DEADLINE;
    while !socket.exists() {
        if let Some(status) = device.try_wait()? {
            bail!("vhost-device-vsock ended with {status}: {}", last_words(&log));
        }
        if Instant::now() > deadline {
            bail!("vhost-device-vsock made no socket within {} s", SOCKET_DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(device)
}

struct QemuMachine {
    qemu: Child,
    device: Option<Child>,
    shares: Vec<Child>,
    log: PathBuf,
    monitor: PathBuf,
}

impl Machine for QemuMachine {
    fn pids(&self) -> Vec<u32> {
        let others = self.device.iter().chain(&self.shares).map(Child::id);
        [self.qemu.id()].into_iter().chain(others).flatten().collect()
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let status = match &mut self.device {
                None => self.qemu.wait().await?,
                Some(device) => tokio::select! {
                    biased;
                    status = self.qemu.wait() => status?,
                    status = device.wait() => bail!("vhost-device-vsock ended under the VM with {}", status?),
                },
            };
            if !status.success() {
                bail!("QEMU ended with {status}: {}", last_words(&self.log));
            }
            Ok(())
        })
    }

    fn kill(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // Fails only for processes that have ended.
            let _ = self.qemu.kill().await;
            if let Some(device) = &mut self.device {
                let _ = device.kill().await;
            }
            for share in &mut self.shares {
                let _ = share.kill().await;
            }
        })
    }
    fn pause(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(qmp::execute(&self.monitor, "stop"))
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(qmp::execute(&self.monitor, "cont"))
    }
}
