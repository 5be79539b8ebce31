//! What boots are compared with: the same tree as one ready-made EROFS image on a virtio disk of the same machine.
//!
//! Kernel, QEMU's options, memory and kernel command line are lazyroot's own; the initramfs has the same form, with
//! the modules for a disk and a minimal init. So the difference is what streaming costs, and what making the
//! disk beforehand costs is in the note.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, str};

use anyhow::{Context, Result, ensure};
use lazyroot::home::Home;
use lazyroot::vm::accel::Accelerator;
use lazyroot::vm::arch::Arch;
use lazyroot::vm::hypervisor::{Console, Hypervisor, MachineSpec, Network};
use lazyroot::vm::initramfs;
use lazyroot::vm::kernel::{Kernels, modules_of_deb};
use lazyroot::vm::qemu::{self, Qemu};
use lazyroot_proto::frame::DEFAULT_PORT;

use super::vm;
use crate::{given, kernel_deb, rootfs};

/// What the peer needs of its kernel.
const MODULES: &[(&str, &str)] = &[
    ("virtio_pci", "virtio devices"),
    ("virtio_blk", "its disk"),
    ("erofs", "the file system on its disk"),
    ("overlay", "changes in memory"),
];

/// The peer's disk and machine.
pub struct Peer {
    qemu: Qemu,
    spec: MachineSpec,
    disk: PathBuf,
    /// What making the disk took.
    pub about: String,
}

impl Peer {
    /// Makes the disk from the test's root, and the initramfs.
    ///
    /// # Errors
    /// If anything is missing.
    pub fn make(work: &Path) -> Result<Self> {
        let home = Home::open()?;
        let disk = work.join("peer.erofs");
        let begin = Instant::now();
        let output = Command::new("mkfs.erofs").args([disk.as_path(), &rootfs()]).output().context("mkfs.erofs")?;
        ensure!(output.status.success(), "mkfs.erofs: {}", str::from_utf8(&output.stderr)?);
        let (seconds, bytes) = (begin.elapsed().as_secs_f64(), fs::metadata(&disk)?.len());

        let init = fs::read(given("LAZYROOT_BENCH_PEER_INIT")).context("cannot read the peer's init")?;
        let initramfs = work.join("peer.initramfs");
        fs::write(&initramfs, initramfs::pack(&init, &modules_of_deb(&kernel_deb(), MODULES)?)?)?;

        let qemu = Qemu::new(&home, Arch::HOST, Accelerator::Tcg)?;
        let spec = MachineSpec {
            name: "peer".into(),
            cpus: vm::CPUS,
            memory_mib: vm::MEMORY_MIB,
            kernel: Kernels::open(&home)?.newest(Arch::HOST)?.boot_file(),
            initramfs,
            cmdline: String::new(),
            dir: work.to_owned(),
            // Our pipe.
            console: Console::File("/dev/stdout".into()),
            vsock_port: DEFAULT_PORT,
            disks: Vec::new(),
            shares: Vec::new(),
            network: Network::None,
        };
        let about = format!("mkfs.erofs took {seconds:.1} s for {bytes} bytes");
        Ok(Self { qemu, spec, disk, about })
    }

    /// Time from the hypervisor's start until the line `wanted` of the command arrived here.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn boot(&self, command: &[&str], wanted: &str) -> Result<Duration> {
        let mut words = vec![format!("console={} panic=-1", self.qemu.console_device()), self.qemu.cmdline()];
        words.push("-- run".into());
        // The kernel splits at spaces outside of double quotes.
        words.extend(command.iter().map(|word| format!("\"{word}\"")));
        let spec = MachineSpec { cmdline: words.join(" "), ..self.spec.clone() };
        let mut program = Command::new(qemu::program(Arch::HOST)?);
        program.args(self.qemu.machine_arguments(&spec)?);
        program.args(["-drive", &format!("file={},if=none,id=disk,format=raw,readonly=on", self.disk.display())]);
        program.args(["-device", "virtio-blk-pci,drive=disk"]);
        vm::time_to_line(&mut program, wanted)
    }
}
