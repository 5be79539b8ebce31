//! x86 ELF kernels, and their PVH entry.
//!
//! The note is that of Xen's `PHYS32_ENTRY` (include/xen/interface/elfnote.h in the kernel).

use std::borrow::Cow;

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, NoteType};
use object::read::elf::{FileHeader, ProgramHeader};

use super::form::{Format, Unwrapped};

/// XEN_ELFNOTE_PHYS32_ENTRY: where a hypervisor enters the kernel by the PVH protocol.
const PVH_ENTRY_NOTE: NoteType = NoteType(18);

pub(super) fn pvh(kernel: Cow<'_, [u8]>) -> Option<Unwrapped<'_>> {
    has_pvh_entry(&kernel).then_some(Unwrapped { format: Format::Pvh, bytes: kernel })
}

/// Whether the bytes are an x86-64 ELF file with a note that says where PVH enters it.
pub(super) fn has_pvh_entry(bytes: &[u8]) -> bool {
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
