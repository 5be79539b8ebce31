//! A unified kernel image: an EFI program with a kernel in one of its sections.
//!
//! Layout: the [UKI specification](https://uapi-group.org/specifications/specs/unified_kernel_image/). Its command line,
//! in another section, stays there: lazyroot's own is the one that boots the guest.

use object::read::pe::PeFile64;
use object::{Object, ObjectSection};

use super::form::UnwrapError;

/// What a UKI says about itself in one of its sections; `None` if the file is no UKI, or it has no such section.
pub(super) fn uki_section<'a>(file: &'a [u8], name: &str) -> Option<Result<&'a [u8], UnwrapError>> {
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
