//! Taking the uncompressed kernel out of an x86 bzImage.
//!
//! QEMU boots an uncompressed ELF with a PVH entry point without the kernel's own slow unpacking, which under
//! emulation takes longer than the rest of the boot. Format: the kernel's `Documentation/arch/x86/boot.rst`.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::{ElfFile64, ProgramHeader};

/// An unpacked kernel is never larger than this many bytes (distribution kernels have about 60 MiB).
const MAX_KERNEL: u64 = 512 << 20;

/// Type of the ELF note that holds the PVH entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: object::elf::NoteType = object::elf::NoteType(18);

/// What a kernel file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelImage {
    /// An x86 bzImage.
    BzImage,
    /// An uncompressed arm64 Image.
    Arm64,
}

impl KernelImage {
    /// Tells by the bytes.
    ///
    /// # Errors
    /// If it is neither; names what it is if that is known.
    pub fn identify(kernel: &[u8]) -> Result<Self> {
        match kernel {
            _ if kernel.get(0x202..0x206) == Some(b"HdrS") => Ok(Self::BzImage),
            _ if kernel.get(0x38..0x3c) == Some(b"ARM\x64") => Ok(Self::Arm64),
            _ if kernel.get(4..8) == Some(b"zimg") => bail!("it is an EFI zboot kernel, which is not supported yet"),
            [0x1f, 0x8b, ..] => bail!("it is compressed with gzip: decompress it first"),
            _ => bail!("it is neither an x86 bzImage nor an uncompressed arm64 Image"),
        }
    }

    /// The architecture, as Rust names it.
    pub fn arch(self) -> &'static str {
        match self {
            Self::BzImage => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}

/// The ELF inside a bzImage, if it can be booted through PVH; `None` if it cannot.
///
/// # Errors
/// If the bzImage is damaged or compressed in a way that is not supported.
pub fn pvh_elf(bzimage: &[u8]) -> Result<Option<Vec<u8>>> {
    let elf = decompress(payload(bzimage)?)?;
    let file = ElfFile64::<object::Endianness>::parse(&*elf).context("the bzImage's payload is no 64-bit ELF")?;
    let endian = object::Endianness::Little;
    for header in file.elf_program_headers() {
        let Some(mut notes) = header.notes(endian, &*elf).context("the kernel's ELF notes are damaged")? else {
            continue;
        };
        while let Some(note) = notes.next().context("the kernel's ELF notes are damaged")? {
            if note.name() == b"Xen" && note.n_type(endian) == PVH_NOTE {
                return Ok(Some(elf));
            }
        }
    }
    Ok(None)
}

/// The compressed kernel inside a bzImage. No offset in the header is trusted.
fn payload(bzimage: &[u8]) -> Result<&[u8]> {
    let word = |offset: usize| -> Result<usize> {
        let bytes = bzimage.get(offset..offset + 4).context("the bzImage's header is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("4 bytes")) as usize)
    };
    ensure!(bzimage.get(0x202..0x206) == Some(b"HdrS"), "the kernel has no bzImage header");
    // 0 means 4, for the oldest kernels.
    let sectors = match usize::from(bzimage[0x1f1]) {
        0 => 4,
        sectors => sectors,
    };
    let protected_mode = (sectors + 1) * 512;
    let start = protected_mode.checked_add(word(0x248)?);
    let range = start.and_then(|start| Some(start..start.checked_add(word(0x24c).ok()?)?));
    range.and_then(|range| bzimage.get(range)).context("the bzImage's payload lies outside of the file")
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    // The build appends the unpacked size to every kind but gzip, which ends with it by itself.
    let body = payload.get(..payload.len().saturating_sub(4)).unwrap_or_default();
    let mut reader: Box<dyn Read + '_> = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::new(body)?.single_frame()),
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(liblzma::read::XzDecoder::new(body)),
        [0x7f, b'E', b'L', b'F', ..] => Box::new(payload),
        _ => bail!("the bzImage is compressed in a way other than zstd, gzip and xz"),
    };
    let mut kernel = Vec::new();
    reader.by_ref().take(MAX_KERNEL).read_to_end(&mut kernel).context("cannot decompress the bzImage's payload")?;
    ensure!((kernel.len() as u64) < MAX_KERNEL, "the bzImage unpacks to more than {MAX_KERNEL} bytes");
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bzImage whose payload is `payload`.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn every_supported_compression_is_undone() {
        let kernel = b"not really a kernel".repeat(100);
        let size = (kernel.len() as u32).to_le_bytes();
        let zstd = [&zstd::encode_all(&*kernel, 1).unwrap()[..], &size].concat();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&*kernel, 1).read_to_end(&mut xz).unwrap();
        xz.extend_from_slice(&size);
        for packed in [zstd, xz] {
            assert_eq!(decompress(payload(&bzimage(&packed)).unwrap()).unwrap(), kernel);
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        assert!(format!("{}", KernelImage::identify(b"\x1f\x8b\x08").unwrap_err()).contains("gzip"));
        assert!(format!("{}", KernelImage::identify(b"MZ\0\0zimg").unwrap_err()).contains("zboot"));
        assert!(KernelImage::identify(b"").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), claim in any::<bool>()) {
            if claim && bytes.len() > 0x206 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
            }
            let _ = KernelImage::identify(&bytes);
            let _ = pvh_elf(&bytes);
        }
    }
}
