//! The compressions that kernels come in, and taking them off.

use std::io::{self, Read};

use super::form::UnwrapError;
use crate::vm::kernel::lz4;

/// The longest uncompressed kernel accepted, in bytes. Distributions' are 40 to 100 MiB.
const MAX_KERNEL: u64 = 512 << 20;

/// A compression that kernels come in and that is read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
    Xz,
    /// Of `lzma(1)`: no container, no checksum.
    Lzma,
    /// Of `lz4 -l`: the legacy frame.
    Lz4,
}

impl Compression {
    pub(super) const ALL: [Self; 5] = [Self::Gzip, Self::Zstd, Self::Xz, Self::Lzma, Self::Lz4];

    /// As zboot's header has it (`comp-type` in drivers/firmware/efi/libstub/Makefile.zboot, now and in Linux 6.1).
    pub(super) fn names(self) -> &'static [&'static [u8]] {
        match self {
            Self::Gzip => &[b"gzip"],
            Self::Zstd => &[b"zstd", b"zstd22"],
            Self::Xz => &[b"xz", b"xzkern"],
            Self::Lzma => &[b"lzma"],
            Self::Lz4 => &[b"lz4"],
        }
    }

    /// What the first bytes say.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
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

pub(super) fn decompress(bytes: &[u8]) -> Result<Vec<u8>, UnwrapError> {
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
