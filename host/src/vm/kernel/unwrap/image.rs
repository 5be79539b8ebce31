//! Kernels that boot as they are: an arm64 Image, an x86 bzImage.
//!
//! Layout: the kernel's Documentation/arch/arm64/booting.rst.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::vm::kernel::arch::Arch;

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
    let (fits, form) = match arch {
        Arch::Aarch64 => (is_arm64_image(&head), "uncompressed arm64 Image"),
        Arch::X86_64 => (head.get(0x202..0x206) == Some(b"HdrS"), "x86 bzImage"),
    };
    if fits { Ok(()) } else { Err(PlainError::NotPlain(path.to_owned(), form)) }
}

pub(super) fn is_arm64_image(bytes: &[u8]) -> bool {
    bytes.get(0x38..0x3c) == Some(b"ARMd")
}
