//! The table of mounts (proc_pid_mountinfo(5)).

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::Result;

/// Whether an image of lazyroot's is mounted at `target` itself.
pub fn is_mounted(target: &Path) -> Result<bool> {
    let mut table = String::new();
    File::open("/proc/self/mountinfo")?.read_to_string(&mut table)?;
    let target = fs::canonicalize(target)?;
    let wanted = target.to_string_lossy();
    // Fields of proc_pid_mountinfo(5): ... 4 mount point ... "-" type source options.
    Ok(table.lines().any(|line| {
        let point = line.split(' ').nth(4).map(unescape_octal);
        let kind = line.split_once(" - ").map(|(_, rest)| rest);
        point.as_deref() == Some(&*wanted) && kind.is_some_and(|kind| kind.starts_with("overlay lazyroot "))
    }))
}

/// Undoes mountinfo's escapes: `\040` for a space, and so on.
fn unescape_octal(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
