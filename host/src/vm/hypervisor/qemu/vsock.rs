//! How the connections of a QEMU guest reach the host.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Result;
use lazyroot_proto::frame::DEFAULT_PORT;

use crate::home::Home;
use crate::vm::hypervisor::helpers::vhost_device_vsock;
use crate::vm::hypervisor::machine::{GuestListener, MachineSpec};

/// The guest's address where vhost-device-vsock connects it: each guest has a device of its own.
pub const PRIVATE_CID: u32 = 3;

/// What carries a guest's vsock connections.
#[derive(Clone, Debug)]
pub enum Vsock {
    /// The host's own vhost_vsock.
    Vhost {
        /// The guest's address.
        cid: u32,
    },
    /// vhost-device-vsock: this program.
    VhostUser(PathBuf),
}

impl Vsock {
    /// What this machine has.
    ///
    /// # Errors
    /// If it has neither.
    pub fn of_machine(home: &Home) -> Result<Self> {
        match File::options().read(true).write(true).open("/dev/vhost-vsock") {
            Ok(_) => Ok(Self::Vhost { cid: random_cid() }),
            Err(_) => Ok(Self::VhostUser(vhost_device_vsock::program(home)?)),
        }
    }

    /// The port of the host that a guest dials.
    pub fn port(&self) -> u32 {
        match self {
            // All guests share the host's ports: each has its own, named after its address.
            Self::Vhost { cid } => *cid,
            Self::VhostUser(_) => DEFAULT_PORT,
        }
    }

    /// Where to listen for the guest of `spec`.
    pub fn listener(&self, spec: &MachineSpec) -> GuestListener {
        match self {
            Self::Vhost { cid } => GuestListener::Vsock { port: spec.vsock_port, cid: *cid },
            Self::VhostUser(_) => GuestListener::Unix(spec.dir.join(format!("v_{}", spec.vsock_port))),
        }
    }
}

/// A guest address that is most likely free: the host's kernel refuses one that is not. 0 to 2 are reserved, and up to
/// 1023 it would be no port for everybody.
fn random_cid() -> u32 {
    getrandom::u32().expect("the system always has random numbers") % (u32::MAX - 1025) + 1024
}
