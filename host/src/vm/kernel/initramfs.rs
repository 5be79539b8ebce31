//! The initramfs: guest-init and the kernel's modules, less than 2 MiB, built once and kept by content.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::{Algorithm, verity};
use object::Object;

use crate::home::Home;
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::Kernel;
use crate::vm::kernel::lz4;
use crate::vm::kernel::modules::{Feature, Module};

/// Built images that are kept; each is well under 3 MiB. More kernels than this in turn cost a rebuild.
const KEPT: usize = 16;

/// Changes when the same inputs give another image.
const FORMAT: &str = "3";

/// The guest-init for guests of an architecture: `LAZYROOT_GUEST_INIT`, else beside this program, else where
/// `make install` puts it; in each place also `guest-init-ARCH`, for others than this machine's.
///
/// # Errors
/// If there is none.
pub fn guest_init_path(arch: Arch) -> Result<PathBuf> {
    let places = match std::env::var_os("LAZYROOT_GUEST_INIT").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            if !path.is_file() {
                bail!("there is no guest-init at {} (LAZYROOT_GUEST_INIT)", path.display());
            }
            vec![path.with_file_name(format!("guest-init-{arch}")), path]
        }
        None => {
            let program = std::env::current_exe().context("cannot tell where lazyroot is")?;
            let beside = program.parent().unwrap_or(Path::new("/"));
            let names = [format!("guest-init-{arch}"), "guest-init".to_owned()];
            let folders = [beside.to_owned(), beside.join("../libexec/lazyroot")];
            folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))).collect()
        }
    };
    let fits = |path: &&PathBuf| fs::read(path).is_ok_and(|elf| Arch::of_elf(&elf) == Some(arch));
    places.iter().find(fits).cloned().with_context(|| {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        format!(
            "there is no guest-init for {arch} at {}: run 'make build', or 'make guest-init ARCH={arch}' for another \
             machine's",
            places.join(" or ")
        )
    })
}

/// The initramfs for `kernel` with `guest_init` as its init, for guests with these features: an LZ4-compressed cpio
/// archive in the cache.
///
/// # Errors
/// If an input cannot be read, the kernel lacks a feature, or the cache cannot be written.
pub fn build(home: &Home, kernel: &Kernel, guest_init: &Path, features: &[Feature]) -> Result<PathBuf> {
    let init = fs::read(guest_init).with_context(|| format!("cannot read {}", guest_init.display()))?;
    let key = format!("{FORMAT} {} {features:?} {}", kernel.bundle.id, verity::digest(Algorithm::Sha256, &init));
    let key = verity::digest(Algorithm::Sha256, key.as_bytes()).to_hex();
    let cache = home.data_dir("cache")?;
    let path = cache.join(format!("initramfs-{key}"));
    if path.exists() {
        return Ok(path);
    }
    ensure!(
        is_static(&init),
        "{} needs shared libraries, which an initramfs has not: 'make build' links one that does not",
        guest_init.display()
    );
    let packed = pack(&init, &kernel.modules(features)?);
    // Written under another name: a half-written image is never booted.
    let mut file = tempfile::NamedTempFile::new_in(&cache)?;
    file.write_all(&packed).and_then(|()| file.as_file().sync_all()).context("cannot write the initramfs")?;
    file.persist(&path).with_context(|| format!("cannot make {}", path.display()))?;
    prune(&cache)?;
    Ok(path)
}

/// Whether a program starts by itself, with no dynamic linker.
fn is_static(elf: &[u8]) -> bool {
    object::File::parse(elf).is_ok_and(|elf| elf.section_by_name(".interp").is_none())
}

/// Removes all but the newest images.
fn prune(cache: &Path) -> Result<()> {
    let mut images = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("initramfs-") {
            images.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    images.sort();
    for (_, path) in images.iter().rev().skip(KEPT) {
        match fs::remove_file(path) {
            // Another launch was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
            removed => removed.with_context(|| format!("cannot remove {}", path.display()))?,
        }
    }
    Ok(())
}

/// An initramfs: an LZ4-compressed cpio archive with `init`, and `modules` with their order in `/modules`.
///
/// zstd makes it smaller by two fifths, which nobody notices, and takes an emulated processor 0.13 s longer to unpack at
/// every boot.
pub fn pack(init: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for dir in ["dev", "proc", "sys", "run", "sysroot", "modules"] {
        cpio.add(dir, S_IFDIR | 0o755, (0, 0), &[]);
    }
    // The kernel opens it for init before any file system is mounted. If it cannot, because the console's driver is a
    // module, Rust's runtime opens the other.
    cpio.add("dev/console", S_IFCHR | 0o600, (5, 1), &[]);
    cpio.add("dev/null", S_IFCHR | 0o666, (1, 3), &[]);
    cpio.add("init", S_IFREG | 0o755, (0, 0), init);
    let order: String = modules.iter().map(|module| module.file_name() + "\n").collect();
    cpio.add("modules/order", S_IFREG | 0o644, (0, 0), order.as_bytes());
    for module in modules {
        cpio.add(&format!("modules/{}", module.file_name()), S_IFREG | 0o644, (0, 0), &module.content);
    }
    lz4::compress(&cpio.finish())
}

// stat(2)'s file types, which cpio uses.
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// A "newc" cpio archive (the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`). All times
/// and owners are 0, so that the same content gives the same bytes.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.inode += 1;
        // Inode, mode, uid, gid, links, mtime, size, device, special device, name with NUL, checksum (unused).
        let size = content.len() as u32;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn an_init_that_needs_a_dynamic_linker_is_refused() {
        assert!(!is_static(&fs::read("/proc/self/exe").unwrap()), "as tests do");
        assert!(!is_static(b"#!/bin/sh"));
    }

    #[test]
    fn an_archive_is_laid_out_as_the_kernel_reads_it() {
        let mut cpio = Cpio::default();
        cpio.add("ab", S_IFREG | 0o644, (0, 0), b"hello");
        let bytes = cpio.finish();
        // Header (110) + "ab\0" = 113, padded to 116; content 5, padded to 124; then the trailer.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..113], b"ab\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
