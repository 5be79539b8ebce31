//! Kernel files: whatever the bytes are, unwrapping ends with a kernel or an error, in bounded memory.
#![no_main]

use lazyroot::vm::kernel::unwrap::{uki_release, unwrap};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let _ = uki_release(file);
    if let Ok(kernel) = unwrap(file) {
        assert_eq!(unwrap(&kernel.bytes).expect("a kernel stays one").format, kernel.format);
    }
});
