//! The image's init says that the system is up.
//!
//! systemd (254 and later) sends its messages, as a service would (sd_notify(3)), to the socket that the credential
//! `vmm.notify_socket` names: here one of ours, and the host learns of it as an event on the connection that is there
//! anyway. So no hypervisor needs a port for it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lazyroot_proto::frame::EventKind;

use crate::clock::monotonic_now;
use crate::link::Link;
use crate::threads;

/// The socket, in a folder that moves to the image's root as it is.
const SOCKET: &str = "/run/lazyroot.notify";

/// The credential that names it.
pub const CREDENTIAL: &str = "vmm.notify_socket";

/// Pause between two looks at what PID 1 has become.
const EVERY: Duration = Duration::from_millis(50);

/// systemd's messages are shorter, in bytes.
const LONGEST: usize = 4096;

/// The socket for the init's messages.
pub struct Notify(UnixDatagram);

impl Notify {
    /// Binds it; before the root is switched.
    ///
    /// # Errors
    /// If it cannot be bound.
    pub fn bind() -> Result<Self> {
        UnixDatagram::bind(SOCKET).map(Self).context("cannot make the socket for the init's messages")
    }

    /// The credential's content.
    pub fn address() -> &'static str {
        SOCKET
    }

    /// Tells the host once the system is up, by what the init says or, if it is one that says nothing, when it runs.
    pub fn watch(self, link: Arc<Link>, root: OwnedFd) {
        threads::start_or_panic("notify", move || {
            let report_ready = || link.send_event(EventKind::Ready, monotonic_now(), "");
            if !is_systemd(&root) {
                report_ready();
                return;
            }
            let mut buffer = [0; LONGEST];
            while let Ok(len) = self.0.recv(&mut buffer) {
                if buffer[..len].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    report_ready();
                }
            }
        });
    }
}

/// Waits until PID 1 is the image's, and says whether that is systemd.
fn is_systemd(root: &OwnedFd) -> bool {
    loop {
        match rustix::fs::readlinkat(root, "proc/1/exe", Vec::new()) {
            // Ours, until it has become the image's.
            Ok(program) if program.to_bytes() == b"/init" => thread::sleep(EVERY),
            Ok(program) => return program.to_bytes().ends_with(b"/systemd"),
            Err(_) => return false,
        }
    }
}

/// Writes a credential where systemd looks for those of an initramfs (systemd.exec(5)).
///
/// # Errors
/// If it cannot be written.
pub fn write_credential(name: &Path, content: &[u8]) -> Result<()> {
    let dir = Path::new("/run/credentials/@initrd");
    let write = || {
        fs::create_dir_all(dir)?;
        fs::write(dir.join(name), content)
    };
    write().with_context(|| format!("cannot write the credential {}", name.display()))
}
