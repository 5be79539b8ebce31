//! In which forms a kernel boots, and why a file is none of them.

use std::borrow::Cow;
use std::io;

use crate::vm::kernel::arch::Arch;

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
