//! Times and durations.
//!
//! Ours, and not `humantime` or `jiff`: those print several units, or spell them in another way.

/// Microseconds, with three digits: `1.5 ms`.
pub fn duration(microseconds: u64) -> String {
    match microseconds {
        0..1000 => format!("{microseconds} µs"),
        1000..1_000_000 => format!("{} ms", short(microseconds as f64 / 1e3)),
        _ => format!("{} s", short(microseconds as f64 / 1e6)),
    }
}

/// Three digits, no zeros behind the point.
fn short(number: f64) -> String {
    let text = match number {
        ..10.0 => format!("{number:.2}"),
        ..100.0 => format!("{number:.1}"),
        _ => return format!("{number:.0}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Seconds that have passed, in whole units of the largest of which there are two: `3 h`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (microseconds, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1000, "1 ms"),
            (1500, "1.5 ms"),
            (1234, "1.23 ms"),
            (12_340, "12.3 ms"),
            (123_400, "123 ms"),
            (999_999, "1000 ms"),
            (1_000_000, "1 s"),
            (61_500_000, "61.5 s"),
            (3_600_000_000, "3600 s"),
        ] {
            assert_eq!(duration(microseconds), text);
        }
    }

    #[test]
    fn an_age_is_a_whole_number() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_799, "47 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
