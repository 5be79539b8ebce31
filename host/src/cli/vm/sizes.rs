//! Sizes of disks and amounts of memory as options give them.

use crate::human::mebibytes;

/// A disk's size in bytes.
pub fn disk_size(text: &str) -> Result<u64, String> {
    mebibytes(text)
        .map(|mib| u64::from(mib) << 20)
        .ok_or_else(|| format!("'{text}' is no size of a disk: give MiB, or a number with M or G"))
}

/// Memory in MiB.
pub fn memory(text: &str) -> Result<u32, String> {
    let mib = mebibytes(text);
    /// Less than this and Debian's kernel with its initramfs does not come up.
    const LEAST: u32 = 128;
    match mib {
        Some(mib) if mib >= LEAST => Ok(mib),
        Some(mib) => Err(format!("{mib} MiB are too little for a guest: give at least {LEAST}M")),
        None => Err(format!("'{text}' is no amount of memory: give MiB, or a number with M or G")),
    }
}

#[cfg(test)]
mod tests {
    use super::memory;

    #[test]
    fn memory_takes_the_usual_spellings() {
        assert_eq!(memory("512"), Ok(512));
        assert_eq!(memory("512M"), Ok(512));
        assert_eq!(memory("2g"), Ok(2048));
        assert_eq!(memory("2GiB"), Ok(2048));
        for text in ["", "x", "1", "-1", "99999999G"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }
}
