//! A machine to start, and what a hypervisor must do for it: two small traits.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::{Result, bail};
use lazyroot_proto::settings;

use crate::vm::hypervisor::console::{Console, ConsoleLog};

/// A future of a trait object's method.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A machine to start.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The VM's name.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Kernel to boot.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// Its command line.
    pub cmdline: String,
    /// A folder of the VM's own, for sockets and logs. Short: socket addresses hold about 100 bytes.
    pub dir: PathBuf,
    /// Where the serial console goes.
    pub console: Console,
    /// The vsock port that the guest dials.
    pub vsock_port: u32,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Folders of the host that the guest may mount by virtio-fs.
    pub shares: Vec<Share>,
    /// Its network card.
    pub network: Network,
}

/// A raw disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub access: Access,
    /// The guest finds it at `/dev/disk/by-id/virtio-ID`. At most 20 bytes, of which no comma.
    pub id: String,
}

/// What a guest may do with what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// A folder of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The folder.
    pub dir: PathBuf,
    /// What the guest mounts: `mount -t virtiofs TAG DIR`.
    pub tag: String,
}

/// What a machine's network card is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// There is no card.
    #[default]
    None,
    /// A network in user space, which needs no privilege: QEMU's own, gvproxy beside vfkit.
    User,
    /// The host's own NAT, which vfkit has.
    Nat,
}

/// Where the server must listen, before the machine starts, for the guest to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestListener {
    /// At this unix socket.
    Unix(PathBuf),
    /// At this AF_VSOCK port of the host.
    Vsock {
        /// The port.
        port: u32,
        /// The guest's context id: the only one to listen to.
        cid: u32,
    },
}

/// A hypervisor that is installed, ready to start machines with the kernel that it was made for.
pub trait Hypervisor: Send + Sync {
    /// How the guest's instructions are run, for reports: `kvm`, `tcg`, `vz`.
    fn acceleration(&self) -> &'static str;

    /// A console for a VM with this folder that nobody sits at.
    ///
    /// # Errors
    /// If its files cannot be made.
    fn console_log(&self, dir: &Path) -> Result<(Console, ConsoleLog)> {
        ConsoleLog::from_file(dir)
    }

    /// Words for the kernel command line that suit this hypervisor.
    fn cmdline(&self) -> String;

    /// The vsock port that a guest of this hypervisor dials.
    fn vsock_port(&self) -> u32;

    /// Where to listen for the guest of `spec`.
    fn vsock(&self, spec: &MachineSpec) -> GuestListener;

    /// What a guest of this hypervisor is to set its network card to; `None` if that is for the guest to find out.
    fn network_settings(&self, _network: Network) -> Option<settings::Network> {
        None
    }

    /// Starts a machine; its processes end with this one, whatever ends it.
    ///
    /// # Errors
    /// If it does not start; with the hypervisor's own words.
    fn start<'a>(&'a self, spec: &'a MachineSpec) -> BoxFuture<'a, Result<Box<dyn Machine>>>;
}

/// A running machine. Dropping it ends it.
pub trait Machine: Send {
    /// Its processes.
    fn pids(&self) -> Vec<u32>;

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If the hypervisor failed; with its own words.
    fn wait(&mut self) -> BoxFuture<'_, Result<()>>;

    /// Ends it at once.
    fn kill(&mut self) -> BoxFuture<'_, ()>;

    /// Halts its processors; its memory stays.
    ///
    /// # Errors
    /// If the hypervisor cannot, or refuses.
    fn pause(&mut self) -> BoxFuture<'_, Result<()>>;

    /// Lets its processors go on.
    ///
    /// # Errors
    /// If the hypervisor cannot, or refuses.
    fn resume(&mut self) -> BoxFuture<'_, Result<()>>;

    /// Presses its power button: the guest may end, or not.
    ///
    /// # Errors
    /// If the hypervisor cannot, or refuses.
    fn power_button(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { bail!("this hypervisor has no power button") })
    }

    /// The hypervisor's own description of it; null if it has none.
    ///
    /// # Errors
    /// If the hypervisor does not answer.
    fn inspect(&mut self) -> BoxFuture<'_, Result<serde_json::Value>> {
        Box::pin(async { Ok(serde_json::Value::Null) })
    }
}
