//! Takes the kernel proper out of the file that distributions ship.
//!
//! x86 ships a bzImage: real-mode setup code, a decompressor, and the compressed ELF `vmlinux`. QEMU can enter an
//! ELF kernel that has a PVH note directly, which saves the firmware's and the decompressor's time (under TCG about
//! half of the boot), so the payload is taken out once, at import. Without the note the bzImage boots as it is.
//! arm64 ships a raw `Image`, the same compressed, or an EFI "zboot" program with a compressed Image inside;
//! hypervisors that do not run EFI want the raw Image. A unified kernel image (UKI) is an EFI program with one of these
//! in a section; it has a command line in another, which is left there: ours is the one that boots the guest.
//!
//! Layouts: the kernel's Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst and
//! drivers/firmware/efi/libstub/zboot-header.S; the
//! [UKI specification](https://uapi-group.org/specifications/specs/unified_kernel_image/). Offsets come from the file,
//! so each is checked.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::elf::{EM_X86_64, FileHeader64, NoteType};
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::pe::PeFile64;
use object::{LittleEndian, Object, ObjectSection};

use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::lz4;

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
    /// Nothing that is known.
    #[error("it is no Linux kernel that lazyroot knows: {0}")]
    NotAKernel(&'static str),
    /// A kernel, for a machine that lazyroot does not run.
    #[error("it is a kernel for {0}: lazyroot runs x86_64 and aarch64")]
    Architecture(&'static str),
    /// A kernel in a compression that is not read.
    #[error("it is compressed with {0}, which lazyroot cannot unpack: it reads gzip, zstd, xz, lzma and lz4")]
    Compression(String),
    /// A length or an offset in the file points outside it.
    #[error("it is truncated or damaged: {0}")]
    Damaged(&'static str),
    /// The compressed kernel cannot be read.
    #[error("its compressed payload is damaged")]
    Payload(#[source] io::Error),
}

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

/// What a UKI says about itself in one of its sections; `None` if the file is no UKI, or it has no such section.
fn uki_section<'a>(file: &'a [u8], name: &str) -> Option<Result<&'a [u8], UnwrapError>> {
    if !file.starts_with(b"MZ") {
        return None;
    }
    let pe = PeFile64::parse(file).ok()?;
    let section = pe.section_by_name(name)?;
    let data = section.data().map_err(|_| UnwrapError::Damaged("a section lies outside the file"));
    // The file holds whole blocks; the section ends where it says.
    Some(data.map(|data| data.get(..section.size() as usize).unwrap_or(data)))
}

/// The release of the kernel in a UKI, as `uname -r` says it, if the UKI says so.
pub fn uki_release(file: &[u8]) -> Option<String> {
    let text = uki_section(file, ".uname")?.ok()?;
    Some(String::from_utf8_lossy(text).trim_end_matches(['\0', '\n']).to_owned())
}

/// A name for what is no kernel of ours.
fn what_else(file: &[u8]) -> UnwrapError {
    use object::Architecture;
    let name_of = |architecture| match architecture {
        Architecture::Riscv64 | Architecture::Riscv32 => "riscv",
        Architecture::LoongArch64 => "loongarch64",
        Architecture::Arm => "32-bit arm",
        Architecture::I386 => "32-bit x86",
        Architecture::S390x => "s390x",
        Architecture::PowerPc64 => "ppc64",
        _ => "another machine",
    };
    if file.is_empty() {
        return UnwrapError::NotAKernel("it is empty");
    }
    if file.get(0x30..0x35) == Some(b"RISCV") {
        return UnwrapError::Architecture("riscv64");
    }
    if u32_at(file, 0x24) == Some(0x016f_2818) {
        return UnwrapError::Architecture("32-bit arm");
    }
    if let Ok(object) = object::File::parse(file) {
        return match object.architecture() {
            Architecture::X86_64 => UnwrapError::NotAKernel("an x86_64 program without a PVH entry"),
            Architecture::Aarch64 => UnwrapError::NotAKernel("an arm64 program, and no Image"),
            other => UnwrapError::Architecture(name_of(other)),
        };
    }
    const OTHERS: [(&[u8], &str); 3] = [
        (b"BZh", "bzip2"),
        (&[0x89, b'L', b'Z', b'O', 0], "lzo"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4 frames, not those of the kernel's build"),
    ];
    match OTHERS.iter().find(|(magic, _)| file.starts_with(magic)) {
        Some((_, name)) => UnwrapError::Compression((*name).to_owned()),
        None => UnwrapError::NotAKernel("its first bytes are those of no known format"),
    }
}

/// Why a kernel file cannot be given to a hypervisor that boots uncompressed kernels.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// The file cannot be read.
    #[error("cannot read the kernel {0}")]
    Read(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error("the kernel {0} is no {1}: import it again with 'lazyroot kernel import'")]
    NotPlain(PathBuf, &'static str),
}

/// Checks that a file looks like what a hypervisor without firmware boots: an uncompressed Image on arm64, a bzImage on
/// x86. A hypervisor given anything else hangs without a word.
///
/// # Errors
/// If it does not.
pub fn check_plain(path: &Path, arch: Arch) -> Result<(), PlainError> {
    let mut head = Vec::new();
    let read = |head: &mut Vec<u8>| File::open(path)?.take(1024).read_to_end(head);
    read(&mut head).map_err(|error| PlainError::Read(path.to_owned(), error))?;
    let (fits, wanted) = match arch {
        Arch::Aarch64 => (is_arm64_image(&head), "uncompressed arm64 Image"),
        Arch::X86_64 => (head.get(0x202..0x206) == Some(b"HdrS"), "x86 bzImage"),
    };
    if fits { Ok(()) } else { Err(PlainError::NotPlain(path.to_owned(), wanted)) }
}

fn is_arm64_image(bytes: &[u8]) -> bool {
    bytes.get(0x38..0x3c) == Some(b"ARMd")
}

fn unwrap_bzimage(file: &[u8]) -> Result<Unwrapped<'_>, UnwrapError> {
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

/// The kernel in a zboot program, which says how it is compressed.
fn unwrap_zboot(file: &[u8]) -> Result<Vec<u8>, UnwrapError> {
    const NAME: std::ops::Range<usize> = 24..56;
    let early = || UnwrapError::Damaged("its EFI header ends early");
    let field = |at| u32_at(file, at).map(|value| value as usize).ok_or_else(early);
    let (offset, len) = (field(8)?, field(12)?);
    let payload = file
        .get(offset..)
        .and_then(|rest| rest.get(..len))
        .ok_or(UnwrapError::Damaged("its payload lies outside the file"))?;
    let name = file.get(NAME).ok_or_else(early)?.split(|byte| *byte == 0).next().unwrap_or_default();
    let named = Compression::ALL.into_iter().find(|compression| compression.names().contains(&name));
    match (named, Compression::of(payload)) {
        (Some(named), Some(found)) if named != found => {
            Err(UnwrapError::Damaged("its payload is not compressed as its header says"))
        }
        (Some(_), Some(_)) => decompress(payload),
        (Some(_), None) => Err(UnwrapError::Damaged("its payload is not compressed as its header says")),
        (None, _) => Err(UnwrapError::Compression(String::from_utf8_lossy(name).escape_debug().to_string())),
    }
}

/// A compression that kernels come in and that is read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
    Xz,
    /// Of `lzma(1)`: no container, no checksum.
    Lzma,
    /// Of `lz4 -l`: the legacy frame.
    Lz4,
}

impl Compression {
    const ALL: [Self; 5] = [Self::Gzip, Self::Zstd, Self::Xz, Self::Lzma, Self::Lz4];

    /// As zboot's header has it (`comp-type` in drivers/firmware/efi/libstub/Makefile.zboot, now and in Linux 6.1).
    fn names(self) -> &'static [&'static [u8]] {
        match self {
            Self::Gzip => &[b"gzip"],
            Self::Zstd => &[b"zstd", b"zstd22"],
            Self::Xz => &[b"xz", b"xzkern"],
            Self::Lzma => &[b"lzma"],
            Self::Lz4 => &[b"lz4"],
        }
    }

    /// What the first bytes say.
    fn of(bytes: &[u8]) -> Option<Self> {
        let magic = |compression| -> &[u8] {
            match compression {
                Self::Gzip => &[0x1f, 0x8b],
                Self::Zstd => &[0x28, 0xb5, 0x2f, 0xfd],
                Self::Xz => &[0xfd, b'7', b'z', b'X', b'Z', 0],
                // The usual parameters, and a dictionary of 64 KiB or more.
                Self::Lzma => &[0x5d, 0, 0],
                Self::Lz4 => &lz4::MAGIC,
            }
        };
        Self::ALL.into_iter().find(|compression| bytes.starts_with(magic(*compression)))
    }
}

fn decompress(bytes: &[u8]) -> Result<Vec<u8>, UnwrapError> {
    decompress_up_to(bytes, MAX_KERNEL).map_err(UnwrapError::Payload)
}

/// Decompresses `bytes`, whose first ones say how; anything else is returned as it is.
///
/// # Errors
/// If the data is damaged or longer than `limit` bytes.
fn decompress_up_to(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    /// Memory that lzma may take: its dictionary, which the kernel's build makes no larger than 128 MiB.
    const LZMA_MEMORY: u64 = 256 << 20;
    let read = |reader: &mut dyn Read| -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // One byte more than allowed tells "just fits" from "too long".
        reader.take(limit + 1).read_to_end(&mut out)?;
        Ok(out)
    };
    let lzma = || liblzma::stream::Stream::new_lzma_decoder(LZMA_MEMORY).map_err(io::Error::other);
    let out = match Compression::of(bytes) {
        // Padding may follow the one frame of a kernel's payload.
        Some(Compression::Zstd) => read(&mut zstd::Decoder::with_buffer(bytes)?.single_frame())?,
        Some(Compression::Gzip) => read(&mut flate2::bufread::GzDecoder::new(bytes))?,
        Some(Compression::Xz) => read(&mut liblzma::bufread::XzDecoder::new(bytes))?,
        Some(Compression::Lzma) => read(&mut liblzma::bufread::XzDecoder::new_stream(bytes, lzma()?))?,
        Some(Compression::Lz4) => lz4::decompress(&bytes[lz4::MAGIC.len()..], limit)?,
        None => bytes.to_vec(),
    };
    if out.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {limit} bytes")));
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

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        liblzma::bufread::XzEncoder::new(bytes, 1).read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn a_pvh_kernel_is_taken_out_of_a_bzimage_of_every_usual_compression() {
        let kernel = elf_with_note(18);
        let zstd = zstd::encode_all(&kernel[..], 1).unwrap();
        let others = [zstd, xz(&kernel), lz4::compress(&kernel)].map(|compressed| sized(compressed, &kernel));
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

    fn lzma(bytes: &[u8]) -> Vec<u8> {
        let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut out = Vec::new();
        liblzma::bufread::XzEncoder::new_stream(bytes, stream).read_to_end(&mut out).unwrap();
        out
    }

    fn image() -> Vec<u8> {
        let mut image = vec![7u8; 4096];
        image[0x38..0x3c].copy_from_slice(b"ARMd");
        image
    }

    /// A zboot program that says it is compressed by `kind`.
    fn zboot(kind: &str, payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0u8; 64];
        file[..2].copy_from_slice(b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        file[8..12].copy_from_slice(&64u32.to_le_bytes());
        file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
        // Most compressions are followed by the size, which is no part of the payload.
        [&file, payload, &[0, 16, 0, 0]].concat()
    }

    /// A PE program with these sections, 512 bytes apart or more.
    fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
        const ALIGN: usize = 512;
        let optional = 112 + 16 * 8;
        let mut file = vec![0u8; 64];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 64;
        file.extend_from_slice(b"PE\0\0");
        // Machine (arm64), sections, time, symbols (2), size of the optional header, characteristics.
        file.extend_from_slice(&0xaa64u16.to_le_bytes());
        file.extend_from_slice(&(sections.len() as u16).to_le_bytes());
        file.extend_from_slice(&[0; 12]);
        file.extend_from_slice(&(optional as u16).to_le_bytes());
        file.extend_from_slice(&0x22u16.to_le_bytes());
        let at = file.len();
        file.resize(at + optional, 0);
        file[at..at + 2].copy_from_slice(&0x20bu16.to_le_bytes());
        file[at + 108..at + 112].copy_from_slice(&16u32.to_le_bytes());
        let mut data = (file.len() + sections.len() * 40).next_multiple_of(ALIGN);
        for (name, content) in sections {
            let mut header = [0u8; 40];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let size = content.len() as u32;
            header[8..12].copy_from_slice(&size.to_le_bytes());
            header[12..16].copy_from_slice(&(data as u32).to_le_bytes());
            header[16..20].copy_from_slice(&(content.len().next_multiple_of(ALIGN) as u32).to_le_bytes());
            header[20..24].copy_from_slice(&(data as u32).to_le_bytes());
            file.extend_from_slice(&header);
            data += content.len().next_multiple_of(ALIGN);
        }
        for (_, content) in sections {
            file.resize(file.len().next_multiple_of(ALIGN), 0);
            file.extend_from_slice(content);
        }
        file.resize(file.len().next_multiple_of(ALIGN), 0);
        file
    }

    fn assert_unwraps_to_image(file: &[u8], what: &str) {
        let unwrapped = unwrap(file).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(unwrapped.format, Format::Image, "{what}");
        assert!(unwrapped.bytes == image(), "{what}");
    }

    #[test]
    fn arm64_kernels_are_unwrapped_from_every_compression_plain_and_in_zboot() {
        assert_unwraps_to_image(&image(), "as it is");
        let zstd = zstd::encode_all(&image()[..], 1).unwrap();
        let kinds = [
            (gzip(&image()), vec!["gzip"]),
            (zstd, vec!["zstd", "zstd22"]),
            (xz(&image()), vec!["xz", "xzkern"]),
            (lzma(&image()), vec!["lzma"]),
            (lz4::compress(&image()), vec!["lz4"]),
        ];
        for (packed, names) in kinds {
            assert_unwraps_to_image(&packed, names[0]);
            for name in names {
                assert_unwraps_to_image(&zboot(name, &packed), name);
            }
        }
    }

    #[test]
    fn a_uki_gives_its_kernel_and_keeps_its_command_line() {
        let zboot = zboot("gzip", &gzip(&image()));
        for linux in [image(), zboot] {
            let sections: [(&str, &[u8]); 3] =
                [(".uname", b"6.12.1\n"), (".cmdline", b"root=/dev/sda evil"), (".linux", &linux)];
            let uki = pe(&sections);
            assert_unwraps_to_image(&uki, "UKI");
            assert_eq!(uki_release(&uki).as_deref(), Some("6.12.1"));
        }
        let bz = bzimage(&gzip(&elf_with_note(18)));
        assert_eq!(unwrap(&pe(&[(".linux", &bz)])).unwrap().format, Format::Pvh);
        assert_eq!(uki_release(&pe(&[(".linux", &bz)])), None);
        let no_kernel = unwrap(&pe(&[(".text", b"x")])).unwrap_err().to_string();
        assert!(no_kernel.contains("no Linux kernel"), "{no_kernel}");
    }

    #[test]
    fn what_cannot_boot_is_refused_by_name() {
        let mut riscv = vec![0u8; 64];
        riscv[0x30..0x35].copy_from_slice(b"RISCV");
        let mut arm = vec![0u8; 64];
        arm[0x24..0x28].copy_from_slice(&0x016f_2818u32.to_le_bytes());
        let mut elf = elf_with_note(19);
        elf[18] = 243;
        let mut old = bzimage(b"");
        old[0x206..0x208].copy_from_slice(&0x20au16.to_le_bytes());
        let mut small = bzimage(b"");
        small[0x236] = 0;
        let cases = [
            (riscv.clone(), "riscv64"),
            (gzip(&riscv), "riscv64"),
            (arm, "32-bit arm"),
            (elf, "riscv"),
            (elf_with_note(19), "PVH"),
            (old, "3.8"),
            (small, "32-bit x86"),
            (b"BZh91AY".to_vec(), "bzip2"),
            (vec![0x89, b'L', b'Z', b'O', 0, 1], "lzo"),
            (zboot("lzo", b"x"), "lzo"),
            (zboot("brotli", &gzip(&image())), "brotli"),
            (zboot("zstd", &gzip(&image())), "not compressed as its header says"),
            (zboot("zstd", b"plain"), "not compressed as its header says"),
            (Vec::new(), "empty"),
            (b"hello".to_vec(), "no known format"),
        ];
        for (file, word) in cases {
            let error = unwrap(&file).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let mut nested = image();
        for _ in 0..MAX_WRAPPERS {
            nested = gzip(&nested);
        }
        assert!(unwrap(&nested).unwrap_err().to_string().contains("too often"));
    }

    #[test]
    fn what_a_hypervisor_without_firmware_would_hang_on_is_seen_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        let check = |content: &[u8], arch| {
            std::fs::write(&path, content).unwrap();
            check_plain(&path, arch).map_err(|error| error.to_string())
        };
        assert!(check(&image(), Arch::Aarch64).is_ok());
        assert!(check(&bzimage(b"x"), Arch::X86_64).is_ok());
        for (content, arch) in [(gzip(&image()), Arch::Aarch64), (image(), Arch::X86_64), (Vec::new(), Arch::Aarch64)] {
            let error = check(&content, arch).unwrap_err();
            assert!(error.contains("vmlinux") && error.contains("lazyroot kernel import"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(check_plain(&path, Arch::Aarch64), Err(PlainError::Read(..))));
    }

    /// One file of each form, small.
    fn seeds() -> Vec<Vec<u8>> {
        let elf = elf_with_note(18);
        let packed = gzip(&image());
        vec![
            bzimage(&gzip(&elf)),
            bzimage(&sized(xz(&elf), &elf)),
            elf,
            zboot("gzip", &packed),
            zboot("lzma", &lzma(&image())),
            zboot("lz4", &lz4::compress(&image())),
            pe(&[(".uname", b"6.12"), (".linux", &zboot("gzip", &packed))]),
            zstd::encode_all(&image()[..], 1).unwrap(),
            image(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn truncated_and_damaged_files_of_every_form_are_errors_not_panics(
            seed in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
            // Most headers are in the first bytes.
            damage in proptest::collection::vec((0usize..1400, any::<u8>()), 0..8),
            whole in any::<bool>(),
        ) {
            let seeds = seeds();
            let mut file = seed.get(&seeds).clone();
            for (at, byte) in damage {
                if let Some(place) = file.get_mut(at) {
                    *place = byte;
                }
            }
            if !whole {
                file.truncate(cut.index(file.len() + 1));
            }
            let _ = uki_release(&file);
            if let Ok(unwrapped) = unwrap(&file) {
                // What is said to be a kernel is one.
                prop_assert_eq!(unwrap(&unwrapped.bytes).unwrap().format, unwrapped.format);
            }
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
