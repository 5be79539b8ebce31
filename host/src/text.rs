//! Words of others, made safe to show: escape codes of a guest or of a file's name must not reach a terminal or a log.

use std::fmt::Write;

/// What a guest's words are cut to, in characters.
const MAX_WORDS: usize = 500;

/// A guest's words in one line, control characters escaped, cut to 500 characters.
pub fn printable(words: &str) -> String {
    let mut shown = String::new();
    for character in words.chars().take(MAX_WORDS) {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// A file's name or path in one line, whole and without doubt about what it is: control characters, backslashes and
/// bytes that are no UTF-8 are escaped as in C (`\n`, `\x1b`, `\\`).
pub fn printable_name(name: impl AsRef<[u8]>) -> String {
    let name = name.as_ref();
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'\\';
    if name.iter().all(plain) {
        return String::from_utf8_lossy(name).into_owned();
    }
    let mut shown = String::with_capacity(name.len() + 8);
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => shown.push_str("\\n"),
                '\t' => shown.push_str("\\t"),
                '\r' => shown.push_str("\\r"),
                '\\' => shown.push_str("\\\\"),
                // C0, DEL and, as its UTF-8 bytes, C1: terminals obey both.
                control if control.is_control() => {
                    let mut buffer = [0; 4];
                    control.encode_utf8(&mut buffer).bytes().for_each(|byte| escape(&mut shown, byte));
                }
                // Marks that turn the writing direction around would show another name.
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    let mut buffer = [0; 4];
                    character.encode_utf8(&mut buffer).bytes().for_each(|byte| escape(&mut shown, byte));
                }
                plain => shown.push(plain),
            }
        }
        chunk.invalid().iter().for_each(|byte| escape(&mut shown, *byte));
    }
    shown
}

fn escape(shown: &mut String, byte: u8) {
    write!(shown, "\\x{byte:02x}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        assert_eq!(printable("a\x1b[2Jb\"c"), "a\\u{1b}[2Jb\"c");
        assert_eq!(printable_name("plain name-1.txt"), "plain name-1.txt");
        assert_eq!(printable_name("grün 日本"), "grün 日本");
        assert_eq!(printable_name(b"a\nb\x1b[31m\x7f"), "a\\nb\\x1b[31m\\x7f");
        assert_eq!(printable_name(b"\xff\xc3"), "\\xff\\xc3");
        assert_eq!(printable_name("\u{9b}31m"), "\\xc2\\x9b31m");
        assert_eq!(printable_name("gpj.\u{202e}exe"), "gpj.\\xe2\\x80\\xaeexe");
        // What was escaped is told from what looks so.
        assert_eq!(printable_name("a\\nb"), "a\\\\nb");
    }
}
