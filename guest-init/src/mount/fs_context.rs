//! File systems being configured (fsopen(2)), and mounts being attached.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

/// Attaches a mount at `target`.
pub fn attach(mount: OwnedFd, target: &Path) -> Result<()> {
    move_mount(mount.as_fd(), "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("cannot mount at {}", target.display()))
}

/// Says that `what` cannot be mounted, and what may help.
pub fn mount_hint(what: &str, at: &Path) -> String {
    let who = if rustix::process::geteuid().is_root() { "" } else { " (mounting needs root: try sudo)" };
    format!("cannot mount {what} at {}{who}", at.display())
}

/// A file system being configured, whose errors carry the kernel's own words.
pub struct FsContext {
    name: &'static str,
    fd: OwnedFd,
}

impl FsContext {
    /// A file system of the kind `name`; `missing` says what the kernel may lack.
    pub fn open(name: &'static str, missing: &str) -> Result<Self> {
        let fd = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).with_context(|| {
            let who = if rustix::process::geteuid().is_root() { missing } else { "mounting needs root: try sudo" };
            format!("this kernel cannot mount {name}: {who}")
        })?;
        Ok(Self { name, fd })
    }

    /// Sets an option.
    pub fn set(&self, key: &str, value: &str) -> Result<&Self> {
        fsconfig_set_string(self.fd.as_fd(), key, value).map_err(|error| self.explain(error))?;
        Ok(self)
    }

    /// Sets an option that has no value.
    pub fn flag(&self, key: &str) -> Result<&Self> {
        fsconfig_set_flag(self.fd.as_fd(), key).map_err(|error| self.explain(error))?;
        Ok(self)
    }

    /// Makes the mount, which is attached nowhere yet.
    pub fn create(&self, attributes: MountAttrFlags) -> Result<OwnedFd> {
        fsconfig_create(self.fd.as_fd()).map_err(|error| self.explain(error))?;
        fsmount(self.fd.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|error| self.explain(error))
    }

    /// The error with what the kernel wrote about it into the descriptor (fsopen(2)).
    fn explain(&self, error: rustix::io::Errno) -> anyhow::Error {
        let mut words = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = rustix::io::read(&self.fd, &mut buffer) {
            words.push(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned());
        }
        anyhow::Error::new(error).context(format!("cannot mount {}: {}", self.name, words.join("; ")))
    }
}
