//! Times as people write them: `1s`, `500ms`, `250us`.

use std::time::Duration;

/// A time such as `1s`, `500ms` or `250us`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let malformed = || format!("`{text}` is not a time; write a whole number with s, ms or us, such as 500ms");
    let number: u64 = number.parse().map_err(|_| malformed())?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "us" | "µs" => Ok(Duration::from_micros(number)),
        _ => Err(malformed()),
    }
}

/// The same, and more than nothing.
pub(crate) fn parse_some(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("a time of zero makes no sense here".to_owned()),
        time => Ok(time),
    }
}

/// Microseconds as a person reads them: `340 µs`, `2.5 ms`, `1.20 s`.
pub(crate) fn of_micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        1_000_000.. => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

/// More microseconds than fit are as good as for ever; where that is too long, it is refused like everything that is.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit_and_refused_without() {
        assert_eq!(parse("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse("250us"), Ok(Duration::from_micros(250)));
        for text in ["", "1", "s", "-1s", "1.5s", "1h", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("0s").is_ok() && parse_some("0s").is_err());
    }

    #[test]
    fn times_are_shown_in_the_unit_that_fits() {
        for (us, text) in [(0, "0 µs"), (999, "999 µs"), (2_540, "2.5 ms"), (1_209_999, "1.20 s")] {
            assert_eq!(of_micros(us), text);
        }
    }
}
