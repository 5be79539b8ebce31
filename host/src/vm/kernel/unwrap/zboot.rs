//! An EFI "zboot" program, with a compressed kernel inside.
//!
//! Layout: the kernel's drivers/firmware/efi/libstub/zboot-header.S.

use super::bytes::u32_at;
use super::compression::{Compression, decompress};
use super::form::UnwrapError;

/// The kernel in a zboot program, which says how it is compressed.
pub(super) fn unwrap_zboot(file: &[u8]) -> Result<Vec<u8>, UnwrapError> {
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
