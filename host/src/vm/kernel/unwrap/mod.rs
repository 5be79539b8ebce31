//! Takes the kernel proper out of the file that distributions ship.
//!
//! x86 ships a bzImage. QEMU can enter an ELF kernel that has a PVH note directly, which saves the firmware's and the
//! decompressor's time (under TCG about half of the boot), so the payload is taken out once, at import. Without the note
//! the bzImage boots as it is. arm64 ships a raw `Image`, the same compressed, or an EFI "zboot" program with a
//! compressed Image inside; hypervisors that do not run EFI want the raw Image. A UKI has one of these in a section.
//!
//! A file for each form. Offsets come from the file, so each is checked. Nothing here reads a disk but
//! [`check_plain`], which looks at the first bytes of a kernel before a hypervisor gets it.

mod bytes;
mod bzimage;
mod compression;
mod elf;
mod foreign;
mod form;
mod image;
#[cfg(test)]
mod tests;
mod uki;
mod zboot;

use std::borrow::Cow;

use self::bzimage::unwrap_bzimage;
use self::compression::{Compression, decompress};
use self::elf::has_pvh_entry;
use self::foreign::what_else;
pub use self::form::{Format, UnwrapError, Unwrapped};
use self::image::is_arm64_image;
pub use self::image::{PlainError, check_plain};
pub use self::uki::uki_release;
use self::uki::uki_section;
use self::zboot::unwrap_zboot;

/// Wrappers in wrappers that are opened: a zboot program in a UKI has two, and nobody makes more.
const MAX_WRAPPERS: usize = 4;

/// Finds out what `file` is, and unwraps it.
///
/// # Errors
/// If it is no kernel, one for another architecture, or a damaged one.
pub fn unwrap(file: &[u8]) -> Result<Unwrapped<'_>, UnwrapError> {
    let mut bytes = Cow::Borrowed(file);
    for _ in 0..MAX_WRAPPERS {
        let inner = match &bytes {
            Cow::Borrowed(outer) => match open(outer)? {
                Opened::Kernel(kernel) => return Ok(kernel),
                Opened::Inner(inner) => inner,
            },
            Cow::Owned(outer) => match open(outer)? {
                Opened::Kernel(kernel) => {
                    return Ok(Unwrapped { format: kernel.format, bytes: kernel.bytes.into_owned().into() });
                }
                Opened::Inner(inner) => inner.into_owned().into(),
            },
        };
        bytes = inner;
    }
    Err(UnwrapError::NotAKernel("it is wrapped too often"))
}

/// The file with one wrapper less.
enum Opened<'a> {
    Kernel(Unwrapped<'a>),
    Inner(Cow<'a, [u8]>),
}

fn open(file: &[u8]) -> Result<Opened<'_>, UnwrapError> {
    if file.get(0x202..0x206) == Some(b"HdrS") {
        return unwrap_bzimage(file).map(Opened::Kernel);
    }
    if has_pvh_entry(file) {
        return Ok(Opened::Kernel(Unwrapped { format: Format::Pvh, bytes: Cow::Borrowed(file) }));
    }
    if is_arm64_image(file) {
        return Ok(Opened::Kernel(Unwrapped { format: Format::Image, bytes: Cow::Borrowed(file) }));
    }
    if file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg") {
        return unwrap_zboot(file).map(|inner| Opened::Inner(inner.into()));
    }
    if let Some(kernel) = uki_section(file, ".linux") {
        return Ok(Opened::Inner(kernel?.into()));
    }
    if Compression::of(file).is_some() {
        return decompress(file).map(|inner| Opened::Inner(inner.into()));
    }
    Err(what_else(file))
}
