//! QEMU's command line for a machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::accelerator::Accelerator;
use super::program;
use super::vsock::Vsock;
use crate::vm::hypervisor::console::Console;
use crate::vm::hypervisor::helpers::virtiofsd;
use crate::vm::hypervisor::machine::{Access, MachineSpec, Network};
use crate::vm::kernel::arch::Arch;

/// The networks that QEMU has for us.
pub const NETWORKS: &[Network] = &[Network::None, Network::User];
/// Why it has no other.
pub const OTHER_NETWORKS: &str = "QEMU has no NAT of its own: use its user network";

/// QEMU's arguments for the machine of `spec` but for its connection to the host: also what a VM that
/// lazyroot is compared with has in common with lazyroot's.
///
/// # Errors
/// If a path is not UTF-8, or the machine has what QEMU cannot give it.
pub fn machine_arguments(arch: Arch, accelerator: Accelerator, spec: &MachineSpec) -> Result<Vec<String>> {
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
        &format!("{},memory-backend=mem", program::machine(arch)),
        "-cpu",
        accelerator.cpu(arch),
        "-accel",
        accelerator.name(),
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
        Network::Nat => bail!("{OTHER_NETWORKS}"),
    }
    for share in &spec.shares {
        let (socket, tag) = (virtiofsd::socket(&spec.dir, share), option(&share.tag));
        add(["-chardev", &format!("socket,id=share-{tag},path={}", option(utf8(&socket)?))]);
        add(["-device", &format!("vhost-user-fs-pci,chardev=share-{tag},tag={tag}")]);
    }
    Ok(arguments)
}

/// All of QEMU's arguments for the machine of `spec`, whose guest reaches the host by `vsock`.
///
/// # Errors
/// As [`machine_arguments`].
pub fn arguments(arch: Arch, accelerator: Accelerator, vsock: &Vsock, spec: &MachineSpec) -> Result<Vec<String>> {
    let mut arguments = machine_arguments(arch, accelerator, spec)?;
    let mut add = |words: [&str; 2]| arguments.extend(words.map(str::to_owned));
    // For one of us at a time, who connects when there is something to say.
    add(["-chardev", &format!("socket,id=qmp,server=on,wait=off,path={}", option(utf8(&monitor(spec))?))]);
    add(["-mon", "chardev=qmp,mode=control"]);
    match vsock {
        Vsock::Vhost { cid } => add(["-device", &format!("vhost-vsock-pci,guest-cid={cid}")]),
        Vsock::VhostUser(_) => {
            let socket = vhost_user_socket(spec);
            add(["-chardev", &format!("socket,id=vsock,path={}", option(utf8(&socket)?))]);
            add(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        }
    }
    Ok(arguments)
}

/// Where QEMU listens for us.
pub fn monitor(spec: &MachineSpec) -> PathBuf {
    spec.dir.join("qmp")
}

/// Where vhost-device-vsock listens for QEMU.
pub fn vhost_user_socket(spec: &MachineSpec) -> PathBuf {
    spec.dir.join("vhost.sock")
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("QEMU cannot take the path {}, which is not UTF-8", path.display()))
}

/// A value in one of QEMU's comma-separated lists: commas are doubled.
fn option(value: &str) -> String {
    value.replace(',', ",,")
}
