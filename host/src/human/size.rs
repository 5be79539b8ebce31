//! Amounts of bytes.
//!
//! Ours, and not the crate `bytesize`: that one takes fractions, reads `M` as a million and prints one digit behind the
//! point. Scripts rely on what is here.

/// Bytes, in the largest binary unit that fits: `1.50 KiB`.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// `part` of `whole`, in percent; 0 of nothing.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// The bytes of an amount: a number with no unit, or with K, M, G or T, which may have `iB` behind it.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &*text[digits.len()..].to_ascii_uppercase() {
        "" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1u64 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The MiB of an amount: a number of MiB, or one with M or G, which may have `iB` or `B` behind it.
pub fn mebibytes(text: &str) -> Option<u32> {
    let (digits, unit) = match text.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        text if text.ends_with('G') => (text[..text.len() - 1].to_owned(), 1024),
        text if text.ends_with('M') => (text[..text.len() - 1].to_owned(), 1),
        text => (text.to_owned(), 1),
    };
    digits.parse::<u32>().ok().and_then(|number| number.checked_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_printed_in_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (1_000_000, "976.56 KiB"),
            (1 << 20, "1.00 MiB"),
            ((1 << 30) - 1, "1024.00 MiB"),
            (10 << 30, "10.00 GiB"),
            (1 << 40, "1.00 TiB"),
            (1 << 50, "1.00 PiB"),
            (u64::MAX, "16.00 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn amounts_of_bytes_have_binary_units_and_no_fraction() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("1k", Some(1 << 10)),
            ("1KiB", Some(1 << 10)),
            ("500M", Some(500 << 20)),
            ("20GiB", Some(20 << 30)),
            ("1t", Some(1 << 40)),
            ("+5", Some(5)),
            ("", None),
            ("M", None),
            ("1B", None),
            ("1MB", None),
            ("1.5G", None),
            ("-1", None),
            ("1 G", None),
            ("10X", None),
            ("99999999T", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn amounts_of_mebibytes_have_no_smaller_unit() {
        for (text, mib) in [
            ("512", Some(512)),
            ("512M", Some(512)),
            ("512mb", Some(512)),
            ("512MiB", Some(512)),
            ("512iB", Some(512)),
            ("2g", Some(2048)),
            ("2GiB", Some(2048)),
            ("2GB", Some(2048)),
            ("2GBBB", Some(2048)),
            ("", None),
            ("x", None),
            ("1K", None),
            ("1T", None),
            ("1.5G", None),
            ("-1", None),
            ("99999999G", None),
        ] {
            assert_eq!(mebibytes(text), mib, "{text:?}");
        }
    }
}
