//! Names for files that are no kernel of ours.

use object::Object;

use super::bytes::u32_at;
use super::form::UnwrapError;

/// A name for what is no kernel of ours.
pub(super) fn what_else(file: &[u8]) -> UnwrapError {
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
