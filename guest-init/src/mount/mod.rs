//! Mounting an image: EROFS on the image file that the FUSE layer serves, the FUSE layer as data, overlayfs over both.

pub mod disk;
pub mod ext4;
pub mod loopdev;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use anyhow::{Context, Result, bail};
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::verity::{self, LeafHasher};
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::ahead::kernel::Readahead;
use crate::ahead::page_cache::Pages;
use crate::ahead::profile;
use crate::ahead::ready_layer::Ready;
use crate::content::image_file::ImageFile;
use crate::fuse::data_layer;
use crate::fuse::session;
use crate::held::Held;
use crate::link::Link;
use crate::link::recorder::Recorder;
use crate::objects::{LONGEST_READ, Objects, SMALL};

/// What a mount trusts: the digests of the image's two metadata files, learnt from somewhere safer than the wire
/// (the kernel command line, or the local store).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// fs-verity digest of the EROFS manifest.
    pub manifest: ObjectId,
    /// fs-verity digest of the object index.
    pub index: ObjectId,
}

/// Where overlayfs keeps what only it understands.
const OVERLAYS_OWN: &[u8] = b"trusted.overlay.";

/// The folder of changes in the upper layer's file system.
const CHANGES: &str = "changes";

/// Memory for what the boot profile brings, in bytes, where there is plenty; else a quarter of what there is.
const MAX_PREFETCH: usize = 256 << 20;

/// Where changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Nowhere: the mount is read-only.
    None,
    /// To memory, gone with the mount.
    Tmpfs,
    /// To the ext4 on this block device.
    Disk(PathBuf),
}

/// A mounted image. Dropping it does not unmount: the kernel's mount lives until it is unmounted, and needs
/// this process until then.
pub struct Mounted {
    serving: session::Serving,
    upper: Option<OwnedFd>,
}

impl Mounted {
    /// Waits until the image is unmounted.
    pub fn wait(self) -> io::Result<()> {
        self.serving.wait()
    }

    /// The folder that holds the changes, which no path leads to; `None` of a mount without.
    pub fn upper(&self) -> io::Result<Option<OwnedFd>> {
        self.upper.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Whether the file at `path`, from the root and without a leading slash, was changed or removed.
    pub fn has_changed(&self, path: &str) -> bool {
        let there = |upper: &OwnedFd| rustix::fs::statat(upper, path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        self.upper.as_ref().is_some_and(there)
    }

    /// The image's objects, and with them the link to the host.
    pub fn objects(&self) -> &Arc<Objects> {
        self.serving.objects()
    }
}

/// Fetches the image's metadata over `link`, checks it against `trust`, and mounts the image at `target`, which
/// must exist. `workdir`, a folder of our own, holds the layers for a moment.
///
/// # Errors
/// If the metadata does not match `trust`, or the kernel lacks a feature (the error says which). Nothing stays
/// mounted then.
pub fn mount(link: Arc<Link>, trust: Trust, target: &Path, workdir: &Path, upper: Upper) -> Result<Mounted> {
    let manifest = fetch_manifest(&link, trust.manifest)?;
    let index = fetch_index(&link, trust.index)?;
    let image = Arc::new(ImageFile::new(manifest, &index, SMALL).context("cannot keep the manifest in memory")?);
    let recorder = Recorder::start(link.clone()).context("cannot start a thread")?;
    let objects = Arc::new(Objects::new(link, index, recorder, prefetch_budget()));

    let workdir = Workdir::mount(workdir)?;
    let ready_layer = workdir.layer("ready")?;
    rustix::mount::mount("lazyroot", &ready_layer, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, c"mode=700")
        .context("cannot mount a tmpfs for what is read ahead")?;
    let ready = Arc::new(Ready::open(&ready_layer)?);
    let pages = Arc::new(Pages::new(objects.index().entries().len()));
    // Before there is anything that could be read: what the boot profile brings first is needed first.
    let (arrive, arrived) = mpsc::channel();
    profile::start(objects.clone(), pages.clone(), ready.clone(), arrive).context("cannot start a thread")?;

    let data_layer = workdir.layer("data")?;
    let (device, data) = fuse()?;
    // The kernel's first request waits in the queue already; the session answers it.
    attach(data, &data_layer)?;
    let serving =
        session::serve(objects.clone(), image.clone(), pages, device).context("cannot serve the FUSE data layer")?;
    set_readahead(fuse_bdi(&data_layer));

    let metadata_layer = workdir.layer("metadata")?;
    let (metadata, backing) = erofs(&data_layer.join(data_layer::IMAGE))?;
    attach(metadata, &metadata_layer)?;
    set_readahead(latest_erofs_bdi());

    let mut held = Held::default();
    let mut hold = |dir: &Path, flags| held.open(dir, flags).with_context(|| format!("cannot open {}", dir.display()));
    let metadata = hold(&metadata_layer, OFlags::RDONLY)?;
    // Only to start from, which takes no request.
    let data = hold(&data_layer, OFlags::PATH)?;
    if backing == Backing::File {
        let limit = prefetch_budget() as u64;
        Readahead { objects, image, metadata, limit }.start(arrived).context("cannot start a thread")?;
    }

    let upper_layer = match &upper {
        Upper::None => None,
        Upper::Disk(device) => {
            let dir = workdir.layer("upper")?;
            disk::mount(device, &dir)?;
            Some(dir)
        }
        Upper::Tmpfs => {
            let dir = workdir.layer("upper")?;
            rustix::mount::mount("lazyroot", &dir, "tmpfs", MountFlags::empty(), c"mode=755")
                .context("cannot mount a tmpfs for changes")?;
            Some(dir)
        }
    };
    let data_layers = [&*ready_layer, &*data_layer];
    attach(overlay(&metadata_layer, &data_layers, upper_layer.as_deref(), &upper)?, target)?;
    if let (Upper::Disk(_), Some(upper)) = (&upper, &upper_layer) {
        disk::lend_folders(upper, target);
    }
    let upper =
        upper_layer.map(|dir| open_folder(&dir.join(CHANGES))).transpose().context("cannot open the upper layer")?;
    // Best effort: without them all is there, only slower.
    let _ = held.until_unmounted(target);
    drop(workdir);
    serving.read_ahead(data, ready).context("cannot start a thread")?;
    serving.store_manifest().context("cannot start a thread")?;
    Ok(Mounted { serving, upper })
}

fn open_folder(dir: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Memory for what the boot profile brings, in bytes.
fn prefetch_budget() -> usize {
    let system = rustix::system::sysinfo();
    let quarter = u64::from(system.mem_unit).saturating_mul(system.totalram as u64) / 4;
    usize::try_from(quarter).unwrap_or(usize::MAX).min(MAX_PREFETCH)
}

/// The manifest, if it is the one with this digest.
fn fetch_manifest(link: &Link, digest: ObjectId) -> Result<File> {
    let mut manifest = File::from(rustix::fs::memfd_create("manifest", MemfdFlags::CLOEXEC)?);
    let mut hasher = LeafHasher::new(digest.algorithm());
    let keep = |piece: &[u8]| -> Result<()> {
        hasher.update(piece);
        manifest.write_all(piece).context("cannot keep it in memory")
    };
    link.manifest(keep).context("cannot fetch the image's manifest")?;
    let (found, _) = hasher.finish();
    if found != digest {
        bail!("the manifest does not match its digest: expected {digest}, got {found}; the image is refused");
    }
    Ok(manifest)
}

/// The index, if it is the one with this digest.
fn fetch_index(link: &Link, digest: ObjectId) -> Result<ObjectIndex> {
    let index = link.index().context("cannot fetch the image's object index")?;
    let found = verity::digest(digest.algorithm(), &index);
    if found != digest {
        bail!("the object index does not match its digest: expected {digest}, got {found}; the image is refused");
    }
    Ok(ObjectIndex::from_bytes(&index)?)
}

/// A file system of our own for the layers' mount points. Once detached, when this is dropped, it goes when the last layer
/// does.
struct Workdir(PathBuf);

impl Workdir {
    fn mount(dir: &Path) -> Result<Self> {
        rustix::mount::mount("lazyroot", dir, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, c"mode=700")
            .with_context(|| mount_hint("tmpfs", dir))?;
        Ok(Self(dir.to_owned()))
    }

    /// A folder to mount a layer at.
    fn layer(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn attach(mount: OwnedFd, target: &Path) -> Result<()> {
    move_mount(mount.as_fd(), "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("cannot mount at {}", target.display()))
}

fn mount_hint(what: &str, at: &Path) -> String {
    let who = if rustix::process::geteuid().is_root() { "" } else { " (mounting needs root: try sudo)" };
    format!("cannot mount {what} at {}{who}", at.display())
}

/// A file system being configured, whose errors carry the kernel's own words.
struct FsContext {
    name: &'static str,
    fd: OwnedFd,
}

impl FsContext {
    fn open(name: &'static str, missing: &str) -> Result<Self> {
        let fd = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).with_context(|| {
            let who = if rustix::process::geteuid().is_root() { missing } else { "mounting needs root: try sudo" };
            format!("this kernel cannot mount {name}: {who}")
        })?;
        Ok(Self { name, fd })
    }

    fn set(&self, key: &str, value: &str) -> Result<&Self> {
        fsconfig_set_string(self.fd.as_fd(), key, value).map_err(|error| self.explain(error))?;
        Ok(self)
    }

    fn flag(&self, key: &str) -> Result<&Self> {
        fsconfig_set_flag(self.fd.as_fd(), key).map_err(|error| self.explain(error))?;
        Ok(self)
    }

    fn create(&self, attributes: MountAttrFlags) -> Result<OwnedFd> {
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

/// What EROFS reads from.
#[derive(PartialEq, Eq)]
enum Backing {
    /// The image file.
    File,
    /// A loop device on it, which has pages of its own.
    Loop,
}

fn erofs(image: &Path) -> Result<(OwnedFd, Backing)> {
    let mount = |source: &str| {
        let erofs = FsContext::open("erofs", "it needs CONFIG_EROFS_FS (module erofs)")?;
        // Reads go from the image file straight into EROFS' page cache, and asynchronously, so that one fails as a whole.
        // Kernels that do not know the word always do so (6.12) or have a loop device, which sees to failures itself.
        let _ = erofs.flag("directio");
        erofs.flag("ro")?.set("source", source)?.create(MountAttrFlags::MOUNT_ATTR_RDONLY)
    };
    match mount(&image.to_string_lossy()) {
        // Kernels before 6.12 want a block device.
        Err(error) if error.downcast_ref() == Some(&rustix::io::Errno::NOTBLK) => {
            let device = loopdev::attach(Path::new("/dev"), &File::open(image)?)
                .context("this kernel cannot mount EROFS from a file (6.12 can), and offers no loop device instead")?;
            Ok((mount(&device.path().to_string_lossy())?, Backing::Loop))
        }
        other => Ok((other?, Backing::File)),
    }
}

/// `/dev/fuse`, opened, and the mount that it serves.
fn fuse() -> Result<(OwnedFd, OwnedFd)> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .context("cannot open /dev/fuse: the kernel needs CONFIG_FUSE_FS (module fuse)")?;
    let fuse = FsContext::open("fuse", "it needs CONFIG_FUSE_FS (module fuse)")?;
    let mount = fuse
        .set("source", "lazyroot")?
        .set("subtype", "lazyroot")?
        .set("fd", &device.as_raw_fd().to_string())?
        .set("rootmode", "40555")?
        .set("user_id", &rustix::process::getuid().as_raw().to_string())?
        .set("group_id", &rustix::process::getgid().as_raw().to_string())?
        .flag("allow_other")?
        .create(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    Ok((device.into(), mount))
}

fn overlay(metadata: &Path, data: &[&Path], upper: Option<&Path>, kind: &Upper) -> Result<OwnedFd> {
    let overlay = FsContext::open("overlay", "it needs CONFIG_OVERLAY_FS (module overlay)")?;
    // A double colon marks a data-only layer.
    let lower = data.iter().fold(escape(metadata), |lower, data| format!("{lower}::{}", escape(data)));
    // Not "composefs:...": units of bootc and ostree key on that name.
    overlay
        .set("source", "lazyroot")?
        .set("metacopy", "on")?
        .set("redirect_dir", "on")?
        .set("lowerdir", &lower)
        .context("overlayfs needs data-only lower layers (Linux 6.5)")?;
    let attributes = match upper {
        None => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Some(upper) => {
            let (changes, work) = (upper.join(CHANGES), upper.join("work"));
            // A disk has them from an earlier boot.
            if !changes.exists() {
                fs::create_dir(&changes).context("cannot make the upper layer")?;
                copy_root_attributes(metadata, &changes)?;
            }
            fs::create_dir_all(&work).context("cannot make the upper layer")?;
            overlay.set("upperdir", &escape(&changes))?.set("workdir", &escape(&work))?;
            if *kind == Upper::Tmpfs {
                // The upper layer is memory: nothing to sync.
                overlay.flag("volatile")?;
            }
            MountAttrFlags::empty()
        }
    };
    overlay.create(attributes)
}

/// A path as overlayfs's options want it: colons, commas and backslashes escaped.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// The merged root shows the upper layer's own attributes: give it the image's.
fn copy_root_attributes(from: &Path, to: &Path) -> Result<()> {
    let meta = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, meta.permissions())?;
    for name in xattr::list(from)?.filter(|name| !name.as_bytes().starts_with(OVERLAYS_OWN)) {
        // Best effort: a kernel may not let us have one.
        if let Ok(Some(value)) = xattr::get(from, &name) {
            let _ = xattr::set(to, &name, &value);
        }
    }
    let time = fs::FileTimes::new().set_accessed(meta.accessed()?).set_modified(meta.modified()?);
    File::open(to)?.set_times(time)?;
    Ok(())
}

/// The name by which the kernel knows the mounted FUSE layer as a backing device.
fn fuse_bdi(data: &Path) -> Option<String> {
    // What the kernel knows without a request: the device.
    let known = AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC as u32);
    let stat = rustix::fs::statx(rustix::fs::CWD, data, known, StatxFlags::empty()).ok()?;
    Some(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor))
}

/// The name by which the kernel knows the latest EROFS mount on a file as a backing device: a number that counts up. It
/// does not say which mount that is; whoever mounts at the same time has its readahead set, as we would do it.
fn latest_erofs_bdi() -> Option<String> {
    let names = fs::read_dir("/sys/class/bdi").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let numbered = names.filter_map(|name| Some((name.strip_prefix("erofs-")?.parse::<u64>().ok()?, name)));
    numbered.max().map(|(_, name)| name)
}

/// Lets the kernel read ahead as far as one FUSE READ reaches; it offers 128 KiB by itself. Best effort.
fn set_readahead(bdi: Option<String>) {
    let Some(bdi) = bdi else { return };
    let _ = fs::write(format!("/sys/class/bdi/{bdi}/read_ahead_kb"), (LONGEST_READ >> 10).to_string());
}

/// Whether an image of lazyroot's is mounted at `target` itself.
pub fn is_mounted(target: &Path) -> Result<bool> {
    let mut table = String::new();
    File::open("/proc/self/mountinfo")?.read_to_string(&mut table)?;
    let target = fs::canonicalize(target)?;
    let wanted = target.to_string_lossy();
    // Fields of proc_pid_mountinfo(5): ... 4 mount point ... "-" type source options.
    Ok(table.lines().any(|line| {
        let point = line.split(' ').nth(4).map(unescape_octal);
        let kind = line.split_once(" - ").map(|(_, rest)| rest);
        point.as_deref() == Some(&*wanted) && kind.is_some_and(|kind| kind.starts_with("overlay lazyroot "))
    }))
}

/// Undoes mountinfo's escapes: `\040` for a space, and so on.
fn unescape_octal(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
