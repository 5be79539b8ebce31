//! LZ4's legacy frame (`lz4 -l`), the one that kernels read: of kernels' own images, and of an initramfs.
//!
//! After the magic come blocks, each behind its compressed length in four bytes (the kernel's
//! `lib/decompress_unlz4.c`).

use std::io;

/// What a frame begins with.
pub const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Bytes of a block, uncompressed: all but the last have as many.
const BLOCK: usize = 8 << 20;

/// `bytes` in a frame.
pub fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut frame = MAGIC.to_vec();
    for block in bytes.chunks(BLOCK) {
        let block = lz4_flex::block::compress(block);
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
    }
    frame
}

/// What is in a frame whose magic was taken off; a little more than `limit` bytes at most.
///
/// # Errors
/// If it is damaged.
pub fn decompress(mut rest: &[u8], limit: u64) -> io::Result<Vec<u8>> {
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

    #[test]
    fn what_goes_in_comes_out() {
        for len in [0, 1, BLOCK, BLOCK + 1] {
            let bytes: Vec<u8> = (0..len).map(|byte| (byte % 251) as u8).collect();
            let frame = compress(&bytes);
            assert!(decompress(frame.strip_prefix(&MAGIC).unwrap(), u64::MAX).unwrap() == bytes, "{len} bytes");
        }
    }
}
