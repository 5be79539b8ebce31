//! The kernel's requests as fuser reads them from `/dev/fuse`: INIT, FORGET and INTERRUPT always, all others unless they come over
//! io_uring ([`crate::fuse::ring`]).

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};

use fuser::{
    Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};

use crate::ahead::runs::LONGEST_READ;
use crate::complain::complain;
use crate::fuse::data_layer::{DataLayer, FOREVER};
use crate::fuse::ring::Rings;

/// Answers what fuser reads from the device.
pub struct Device {
    layer: Arc<DataLayer>,
    device: Arc<OwnedFd>,
    rings: Arc<OnceLock<Rings>>,
}

impl Device {
    /// Answers with `layer`. Sets `rings`, for this `device`, if requests are to come over io_uring: they are to be started then.
    pub fn new(layer: Arc<DataLayer>, device: Arc<OwnedFd>, rings: Arc<OnceLock<Rings>>) -> Self {
        Self { layer, device, rings }
    }
}

impl Filesystem for Device {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // EROFS (before a repair of 2026) takes a read of its file that ends half-way for zeros. An asynchronous one fails as a
        // whole.
        let kernel_is_old = |_| io::Error::other("FUSE has no asynchronous direct reads (Linux 3.10)");
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(kernel_is_old)?;
        // Best effort all: a kernel without one of these is slower, not wrong.
        let _ = config.set_max_readahead(LONGEST_READ);
        let _ = config.set_max_write(LONGEST_READ);
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
        ] {
            let _ = config.add_capabilities(flag);
        }
        // Without rings the kernel need not know that there could be some.
        if config.capabilities().contains(InitFlags::FUSE_OVER_IO_URING)
            && let Ok(rings) = Rings::open(&self.device, &self.layer).inspect_err(|error| {
                complain(format!("FUSE over io_uring is switched on, but cannot be had: {error}"));
            })
            && config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_ok()
        {
            // The kernel shakes hands once.
            let _ = self.rings.set(rings);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.layer.lookup(parent.0, name.as_bytes()) {
            Ok(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.layer.list(ino.0, offset, |attr, next, name| {
            !reply.add(attr.ino, next, OsStr::from_bytes(name), &FOREVER, attr, Generation(0))
        });
        reply.ok();
    }

    fn forget(&self, _request: &Request, ino: INodeNo, _lookups: u64) {
        self.layer.forget(ino.0);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.layer.getattr(ino.0) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(error) => reply.error(error),
        }
    }

    /// ENOSYS tells the kernel once that files need no opening; it never asks again.
    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    /// Nor closing.
    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.layer.read(ino.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }
}
