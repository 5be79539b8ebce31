//! The x86 bzImage: setup code, a decompressor, and the compressed ELF `vmlinux`.
//!
//! Layout: the kernel's Documentation/arch/x86/boot.rst.

use std::borrow::Cow;

use super::bytes::{u16_at, u32_at};
use super::compression::{Compression, decompress};
use super::elf::pvh;
use super::form::{Format, UnwrapError, Unwrapped};

pub(super) fn unwrap_bzimage(file: &[u8]) -> Result<Unwrapped<'_>, UnwrapError> {
    let as_found = Unwrapped { format: Format::BzImage, bytes: Cow::Borrowed(file) };
    // Boot protocol 2.08 (Linux 2.6.26) added the payload's place. XLF_KERNEL_64 is bit 0 of xloadflags (2.12).
    let version = u16_at(file, 0x206).ok_or(UnwrapError::Damaged("its setup header ends early"))?;
    if version < 0x20c {
        return Err(UnwrapError::NotAKernel("an x86 kernel older than Linux 3.8"));
    }
    if u16_at(file, 0x236).unwrap_or(0) & 1 == 0 {
        return Err(UnwrapError::Architecture("32-bit x86"));
    }
    // Zero means four, for boot loaders older than the field.
    let setup_sectors = match file[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let header = || UnwrapError::Damaged("its setup header ends early");
    let offset = u32_at(file, 0x248).ok_or_else(header)? as usize;
    let len = u32_at(file, 0x24c).ok_or_else(header)? as usize;
    let payload = file
        .get((setup_sectors + 1) * 512..)
        .and_then(|kernel| kernel.get(offset..))
        .and_then(|rest| rest.get(..len))
        .ok_or(UnwrapError::Damaged("its payload lies outside the file"))?;
    if payload.starts_with(b"\x7fELF") {
        return Ok(pvh(payload.into()).unwrap_or(as_found));
    }
    // The build appends the uncompressed size, little-endian, to all but gzip, which ends with it by itself.
    let (compressed, size) = payload.split_last_chunk::<4>().ok_or(UnwrapError::Damaged("its payload is empty"))?;
    let kernel = match Compression::of(compressed) {
        // bzip2, lzo: nobody ships them any more, and the kernel unpacks itself.
        None => return Ok(as_found),
        Some(Compression::Gzip) => decompress(payload)?,
        Some(_) => decompress(compressed)?,
    };
    if kernel.len() != u32::from_le_bytes(*size) as usize {
        return Err(UnwrapError::Damaged("its payload has another size than the file says"));
    }
    Ok(pvh(kernel.into()).unwrap_or(as_found))
}
