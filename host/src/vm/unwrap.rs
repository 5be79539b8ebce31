//! Takes the kernel proper out of the file that distributions ship.
//!
//! x86 ships a bzImage: real-mode setup code, a decompressor, and the compressed ELF `vmlinux`. QEMU can enter an
//! ELF kernel that has a PVH note directly, which saves the firmware's and the decompressor's time (under TCG about
//! half of the boot), so the payload is taken out once, at import. Without the note the bzImage boots as it is.
//! arm64 ships a raw `Image`, the same in gzip, or an EFI "zboot" program with a compressed Image inside;
//! hypervisors that do not run EFI want the raw Image.
//!
//! Layouts: the kernel's Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst and
//! drivers/firmware/efi/libstub/zboot-header.S. Offsets come from the file, so each is checked.

use std::borrow::Cow;
use std::io::{self, Read};

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, NoteType};
use object::read::elf::{FileHeader, ProgramHeader};

use super::arch::Arch;

/// The longest uncompressed kernel accepted, in bytes. Distributions' are 40 to 100 MiB.
const MAX_KERNEL: u64 = 512 << 20;

/// XEN_ELFNOTE_PHYS32_ENTRY: where a hypervisor enters the kernel by the PVH protocol.
const PVH_ENTRY_NOTE: NoteType = NoteType(18);

/// In which form a kernel is given to the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An x86 ELF file with a PVH entry.
    Pvh,
    /// An x86 bzImage.
    BzImage,
    /// An uncompressed arm64 Image.
    Image,
}

impl Format {
    /// The architecture.
    pub fn arch(self) -> Arch {
        match self {
            Self::Pvh | Self::BzImage => Arch::X86_64,
            Self::Image => Arch::Aarch64,
        }
    }
}

/// A kernel ready to boot.
#[derive(Debug)]
pub struct Unwrapped<'a> {
    /// What the bytes are.
    pub format: Format,
    /// What to give to the hypervisor; borrowed when it is the file as it was found.
    pub bytes: Cow<'a, [u8]>,
}

/// Why a file is no kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum UnwrapError {
    /// Not a kernel, or of another architecture than x86-64 and arm64.
    #[error("not a Linux kernel for x86_64 or aarch64")]
    NotAKernel,
    /// A length or an offset in the file points outside it.
    #[error("the kernel is truncated or damaged: {0}")]
    Damaged(&'static str),
    /// The compressed kernel cannot be read.
    #[error("the kernel's compressed payload is damaged")]
    Payload(#[source] io::Error),
}

/// Finds out what `file` is, and unwraps it.
///
/// # Errors
/// If it is no kernel, or a damaged one.
pub fn unwrap(file: &[u8]) -> Result<Unwrapped<'_>, UnwrapError> {
    if file.get(0x202..0x206) == Some(b"HdrS") {
        return unwrap_bzimage(file);
    }
    if has_pvh_entry(file) {
        return Ok(Unwrapped { format: Format::Pvh, bytes: Cow::Borrowed(file) });
    }
    if is_arm64_image(file) {
        return Ok(Unwrapped { format: Format::Image, bytes: Cow::Borrowed(file) });
    }
    let inner = if file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg") {
        decompress(zboot_payload(file)?)?
    } else if file.starts_with(&GZIP) {
        decompress(file)?
    } else {
        return Err(UnwrapError::NotAKernel);
    };
    if !is_arm64_image(&inner) {
        return Err(UnwrapError::NotAKernel);
    }
    Ok(Unwrapped { format: Format::Image, bytes: Cow::Owned(inner) })
}

fn is_arm64_image(bytes: &[u8]) -> bool {
    bytes.get(0x38..0x3c) == Some(b"ARMd")
}

fn unwrap_bzimage(file: &[u8]) -> Result<Unwrapped<'_>, UnwrapError> {
    let as_found = Unwrapped { format: Format::BzImage, bytes: Cow::Borrowed(file) };
    // Boot protocol 2.08 (Linux 2.6.26) added the payload's place. XLF_KERNEL_64 is bit 0 of xloadflags (2.12).
    let version = u16_at(file, 0x206).ok_or(UnwrapError::Damaged("its setup header ends early"))?;
    if version < 0x20c {
        return Err(UnwrapError::NotAKernel);
    }
    if u16_at(file, 0x236).unwrap_or(0) & 1 == 0 {
        return Err(UnwrapError::NotAKernel);
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
    if !is_compressed(compressed) {
        // bzip2, lzma, lzo: nobody ships them any more, and the kernel unpacks itself.
        return Ok(as_found);
    }
    let kernel = decompress(if compressed.starts_with(&GZIP) { payload } else { compressed })?;
    if kernel.len() != u32::from_le_bytes(*size) as usize {
        return Err(UnwrapError::Damaged("its payload has another size than the file says"));
    }
    Ok(pvh(kernel.into()).unwrap_or(as_found))
}

fn pvh(kernel: Cow<'_, [u8]>) -> Option<Unwrapped<'_>> {
    has_pvh_entry(&kernel).then_some(Unwrapped { format: Format::Pvh, bytes: kernel })
}

/// Whether the bytes are an x86-64 ELF file with a note that says where PVH enters it.
fn has_pvh_entry(bytes: &[u8]) -> bool {
    let notes = || -> object::Result<bool> {
        let elf = FileHeader64::<LittleEndian>::parse(bytes)?;
        let endian = elf.endian()?;
        if elf.e_machine(endian) != EM_X86_64 {
            return Ok(false);
        }
        for header in elf.program_headers(endian, bytes)? {
            let Some(mut notes) = header.notes(endian, bytes)? else { continue };
            while let Some(note) = notes.next()? {
                if note.name() == b"Xen" && note.n_type(endian) == PVH_ENTRY_NOTE {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    notes().unwrap_or(false)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn zboot_payload(file: &[u8]) -> Result<&[u8], UnwrapError> {
    let field =
        |at| u32_at(file, at).map(|value| value as usize).ok_or(UnwrapError::Damaged("its EFI header ends early"));
    let (offset, len) = (field(8)?, field(12)?);
    file.get(offset..).and_then(|rest| rest.get(..len)).ok_or(UnwrapError::Damaged("its payload lies outside the file"))
}

/// Whether `bytes` begin like one of the formats that [`decompress`] reads.
fn is_compressed(bytes: &[u8]) -> bool {
    const MAGICS: [&[u8]; 4] = [&[0x28, 0xb5, 0x2f, 0xfd], &GZIP, &[0xfd, b'7', b'z', b'X', b'Z', 0], &LZ4_LEGACY];
    MAGICS.iter().any(|magic| bytes.starts_with(magic))
}

const GZIP: [u8; 2] = [0x1f, 0x8b];

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

fn decompress(bytes: &[u8]) -> Result<Vec<u8>, UnwrapError> {
    decompress_up_to(bytes, MAX_KERNEL).map_err(UnwrapError::Payload)
}

/// Decompresses zstd, gzip, xz or legacy-LZ4 `bytes`, told apart by their first bytes; anything else is returned
/// as it is.
///
/// # Errors
/// If the data is damaged or longer than `limit` bytes.
fn decompress_up_to(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let read = |reader: &mut dyn Read| -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // One byte more than allowed tells "just fits" from "too long".
        reader.take(limit + 1).read_to_end(&mut out)?;
        Ok(out)
    };
    let out = match bytes {
        // Padding may follow the one frame of a kernel's payload.
        [0x28, 0xb5, 0x2f, 0xfd, ..] => read(&mut zstd::Decoder::with_buffer(bytes)?.single_frame())?,
        [0x1f, 0x8b, ..] => read(&mut flate2::bufread::GzDecoder::new(bytes))?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(&mut liblzma::bufread::XzDecoder::new(bytes))?,
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => unlz4_legacy(rest, limit)?,
        _ => bytes.to_vec(),
    };
    if out.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {limit} bytes")));
    }
    Ok(out)
}

/// LZ4's legacy frame: blocks of at most 8 MiB uncompressed, each behind its compressed length.
fn unlz4_legacy(mut rest: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut out = Vec::new();
    let mut block = vec![0; BLOCK];
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let (compressed, after) = after.split_at_checked(len).ok_or_else(|| damaged("an LZ4 block ends early"))?;
        let size =
            lz4_flex::block::decompress_into(compressed, &mut block).map_err(|error| damaged(&error.to_string()))?;
        out.extend_from_slice(&block[..size]);
        if out.len() as u64 > limit || size == 0 {
            break;
        }
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF file with nothing but a Xen note of `kind`.
    fn elf_with_note(kind: u32) -> Vec<u8> {
        let mut elf = vec![0u8; 64 + 56];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[18..20].copy_from_slice(&62u16.to_le_bytes());
        elf[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
        elf[0x36..0x38].copy_from_slice(&56u16.to_le_bytes());
        elf[0x38..0x3a].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&4u32.to_le_bytes());
        elf[72..80].copy_from_slice(&120u64.to_le_bytes());
        elf[96..104].copy_from_slice(&20u64.to_le_bytes());
        for word in [4u32, 4, kind, u32::from_le_bytes(*b"Xen\0"), 0x1000000] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        elf
    }

    /// A bzImage around `payload`, which ends with the uncompressed size.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0u8; 1024 + 16];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x236] = 1;
        file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        [&file, payload, b"trailer"].concat()
    }

    fn sized(compressed: Vec<u8>, kernel: &[u8]) -> Vec<u8> {
        [compressed, (kernel.len() as u32).to_le_bytes().into()].concat()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::bufread::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
        out
    }

    fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(bytes);
        [&LZ4_LEGACY[..], &(block.len() as u32).to_le_bytes(), &block].concat()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        liblzma::bufread::XzEncoder::new(bytes, 1).read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn a_pvh_kernel_is_taken_out_of_a_bzimage_of_every_usual_compression() {
        let kernel = elf_with_note(18);
        let zstd = zstd::encode_all(&kernel[..], 1).unwrap();
        let others = [zstd, xz(&kernel), lz4_legacy(&kernel)].map(|compressed| sized(compressed, &kernel));
        for payload in [gzip(&kernel), kernel.clone()].into_iter().chain(others) {
            let file = bzimage(&payload);
            let unwrapped = unwrap(&file).unwrap();
            assert_eq!(unwrapped.format, Format::Pvh);
            assert_eq!(unwrapped.bytes, kernel);
        }
    }

    #[test]
    fn a_bzimage_without_a_pvh_entry_boots_as_it_is() {
        let kernel = elf_with_note(19);
        let file = bzimage(&gzip(&kernel));
        let unwrapped = unwrap(&file).unwrap();
        assert_eq!(unwrapped.format, Format::BzImage);
        assert_eq!(unwrapped.bytes, file);
    }

    #[test]
    fn a_payload_of_another_size_than_announced_is_refused() {
        let kernel = elf_with_note(18);
        let file = bzimage(&sized(xz(&kernel), &kernel[1..]));
        assert!(matches!(unwrap(&file), Err(UnwrapError::Damaged(_))));
    }

    #[test]
    fn arm64_kernels_are_unwrapped_from_gzip_and_zboot() {
        let mut image = vec![7u8; 4096];
        image[0x38..0x3c].copy_from_slice(b"ARMd");
        let packed = gzip(&image);
        let mut zboot = vec![0u8; 64];
        zboot[..2].copy_from_slice(b"MZ");
        zboot[4..8].copy_from_slice(b"zimg");
        zboot[8..12].copy_from_slice(&64u32.to_le_bytes());
        zboot[12..16].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        zboot.extend_from_slice(&packed);
        for file in [image.clone(), packed, zboot] {
            let unwrapped = unwrap(&file).unwrap();
            assert_eq!(unwrapped.format, Format::Image);
            assert_eq!(unwrapped.bytes, image);
        }
    }

    proptest! {
        #[test]
        fn truncated_and_damaged_kernels_are_errors_not_panics(
            cut in 0usize..1400,
            damage in proptest::collection::vec((0usize..1400, any::<u8>()), 0..8),
        ) {
            let kernel = elf_with_note(18);
            let mut file = bzimage(&gzip(&kernel));
            for (at, byte) in damage {
                if let Some(place) = file.get_mut(at) {
                    *place = byte;
                }
            }
            file.truncate(cut);
            let _ = unwrap(&file);
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = unwrap(&bytes);
        }
    }
}
