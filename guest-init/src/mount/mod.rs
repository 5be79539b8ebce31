//! Mounting an image: EROFS on the image file that the FUSE layer serves, the FUSE layer as data, overlayfs over both.
//!
//! This folder makes mounts, on any Linux, and the file system on a VM's disk that changes go to. What the kernel then asks
//! is answered by [`crate::fuse`]. What a VM does before and after is in [`crate::init`].

mod bdi;
pub mod disk;
pub mod ext4;
mod fs_context;
mod layers;
pub mod loopdev;
mod mountinfo;
pub mod scratch;
mod upper;
mod workdir;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;
use rustix::fs::{AtFlags, OFlags};
use rustix::mount::MountFlags;

use crate::ahead::Ahead;
use crate::ahead::kernel::KernelReadahead;
use crate::ahead::memory_layer::MemoryLayer;
use crate::content::Content;
use crate::content::image_file::ImageFile;
use crate::content::metadata::{Manifest, fetch_index};
use crate::content::object::SMALL;
use crate::fuse::data_layer::IMAGE;
use crate::fuse::session;
use crate::layer_guard::LayerGuard;
use crate::link::Link;
use crate::link::recorder::Recorder;
use fs_context::attach;
use layers::Backing;
pub use mountinfo::is_mounted;
pub use upper::Upper;
use upper::UpperLayer;
use workdir::Workdir;

/// What a mount trusts: the digests of the image's two metadata files, learnt from somewhere safer than the wire
/// (the kernel command line, or the local store).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// fs-verity digest of the EROFS manifest.
    pub manifest: ObjectId,
    /// fs-verity digest of the object index.
    pub index: ObjectId,
}

/// Memory for what the boot profile brings, in bytes, where there is plenty; else a quarter of what there is.
const MAX_PREFETCH: usize = 256 << 20;

/// A mounted image. Dropping it does not unmount: the kernel's mount lives until it is unmounted, and needs
/// this process until then.
pub struct Mounted {
    serving: session::Serving,
    /// The folder of changes.
    changes: Option<OwnedFd>,
}

impl Mounted {
    /// Waits until the image is unmounted.
    pub fn wait(self) -> io::Result<()> {
        self.serving.wait()
    }

    /// The folder that holds the changes, which no path leads to; `None` of a mount without.
    pub fn upper(&self) -> io::Result<Option<OwnedFd>> {
        self.changes.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Whether the file at `path`, from the root and without a leading slash, was changed or removed.
    pub fn has_changed(&self, path: &str) -> bool {
        let there = |upper: &OwnedFd| rustix::fs::statat(upper, path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        self.changes.as_ref().is_some_and(there)
    }

    /// The image's objects, and with them the link to the host.
    pub fn content(&self) -> &Arc<Content> {
        self.serving.content()
    }
}

/// Fetches the image's metadata over `link`, checks it against `trust`, and mounts the image at `target`, which
/// must exist. `workdir`, a folder of our own, holds the layers for a moment.
///
/// # Errors
/// If the metadata does not match `trust`, or the kernel lacks a feature (the error says which). Nothing stays
/// mounted then.
pub fn mount(link: Arc<Link>, trust: Trust, target: &Path, workdir: &Path, upper: Upper) -> Result<Mounted> {
    let manifest = Manifest::fetch(&link, trust.manifest)?;
    let index = fetch_index(&link, trust.index)?;
    let image = Arc::new(ImageFile::new(manifest, &index, SMALL).context("cannot keep the manifest in memory")?);
    let recorder = Recorder::start(link.clone()).context("cannot start a thread")?;
    let content = Arc::new(Content::new(link, index, recorder));

    let workdir = Workdir::mount(workdir)?;
    let memory_layer = workdir.layer("ready")?;
    rustix::mount::mount("lazyroot", &memory_layer, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, c"mode=700")
        .context("cannot mount a tmpfs for what is read ahead")?;
    let ahead = Arc::new(Ahead::new(content.clone(), MemoryLayer::open(&memory_layer)?, prefetch_budget()));
    // Before there is anything that could be read: what the boot profile brings first is needed first.
    let (to_kernel, for_kernel) = mpsc::channel();
    ahead.start_profile(to_kernel).context("cannot start a thread")?;

    let data_layer = workdir.layer("data")?;
    let (device, data) = layers::fuse()?;
    // The kernel's first request waits in the queue already; the session answers it.
    attach(data, &data_layer)?;
    let serving =
        session::serve(content, ahead.clone(), image.clone(), device).context("cannot serve the FUSE data layer")?;
    bdi::set_readahead(bdi::fuse_bdi(&data_layer));

    let metadata_layer = workdir.layer("metadata")?;
    let (metadata, backing) = layers::erofs(&data_layer.join(IMAGE))?;
    attach(metadata, &metadata_layer)?;
    bdi::set_readahead(bdi::latest_erofs_bdi());

    let mut guard = LayerGuard::default();
    let mut open = |dir: &Path, flags| guard.open(dir, flags).with_context(|| format!("cannot open {}", dir.display()));
    let metadata = open(&metadata_layer, OFlags::RDONLY)?;
    // Only to start from, which takes no request.
    let data = open(&data_layer, OFlags::PATH)?;
    if backing == Backing::File {
        let (stores, limit) = (ahead.stores().clone(), prefetch_budget() as u64);
        KernelReadahead { stores, image, metadata, limit }.start(for_kernel).context("cannot start a thread")?;
    }

    let upper = UpperLayer::mount(upper, &workdir)?;
    attach(layers::overlay(&metadata_layer, &[&*memory_layer, &*data_layer], upper.as_ref())?, target)?;
    if let Some(upper) = &upper {
        upper.lend_folders(target);
    }
    let changes = upper.map(|upper| upper.open()).transpose()?;
    // Best effort: without them all is there, only slower.
    let _ = guard.until_unmounted(target);
    drop(workdir);
    ahead.start_scans(data).context("cannot start a thread")?;
    serving.store_manifest().context("cannot start a thread")?;
    Ok(Mounted { serving, changes })
}

/// Memory for what the boot profile brings, in bytes.
fn prefetch_budget() -> usize {
    let system = rustix::system::sysinfo();
    let quarter = u64::from(system.mem_unit).saturating_mul(system.totalram as u64) / 4;
    usize::try_from(quarter).unwrap_or(usize::MAX).min(MAX_PREFETCH)
}
