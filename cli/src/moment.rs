//! Times as people type them: `10m`, `2026-11-22 08:00`. The daemon takes microseconds since 1970.

use jiff::civil::DateTime;
use jiff::fmt::friendly::SpanParser;
use jiff::{Timestamp, Zoned};

/// What is taken, in words.
pub(crate) const TAKES: &str = "how long ago it was, such as 30s, 10m, 2h, 3d or 1h30m; a local time, such as 2026-11-22 or 2026-11-22 08:00, \
     or one of RFC 3339, such as 2026-11-22T08:00:00Z; or microseconds since 1970";

/// Reads a time as microseconds since 1970; `None` for what is no time, or before 1970. Days and what is longer are
/// those of the calendar of `now`.
pub(crate) fn parse(text: &str, now: &Zoned) -> Option<u64> {
    if text.bytes().all(|digit| digit.is_ascii_digit()) {
        return text.parse().ok();
    }
    let time = ago(text, now).or_else(|| exact(text, now))?;
    time.as_microsecond().try_into().ok()
}

/// Reads `10m`, `10m ago` or, as systemd's tools take it, `-10m`. `+10m` would be in the future.
fn ago(text: &str, now: &Zoned) -> Option<Timestamp> {
    const PARSER: SpanParser = SpanParser::new();
    if text.starts_with('+') {
        return None;
    }
    let span = PARSER.parse_span(text).ok()?;
    now.checked_sub(span.abs()).ok().map(|time| time.timestamp())
}

fn exact(text: &str, now: &Zoned) -> Option<Timestamp> {
    // First with its offset, which a civil time would pass over.
    let local = || text.parse::<DateTime>().ok()?.to_zoned(now.time_zone().clone()).ok();
    text.parse().ok().or_else(|| local().map(|time| time.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 07:00 UTC.
    const NOW: u64 = 1_795_330_800_000_000;
    const MINUTE: u64 = 60_000_000;

    fn parsed(text: &str) -> Option<u64> {
        let now: Zoned = "2026-11-22T08:00:00+01:00[Europe/Berlin]".parse().unwrap();
        parse(text, &now)
    }

    #[test]
    fn a_span_is_that_long_ago() {
        for (text, ago) in [
            ("30s", MINUTE / 2),
            ("10m", 10 * MINUTE),
            ("10m ago", 10 * MINUTE),
            ("-10m", 10 * MINUTE),
            ("2h", 120 * MINUTE),
            ("1h30m", 90 * MINUTE),
            ("1 hour", 60 * MINUTE),
            ("3d", 3 * 24 * 60 * MINUTE),
            ("250ms", MINUTE / 240),
        ] {
            assert_eq!(parsed(text), Some(NOW - ago), "{text}");
        }
    }

    #[test]
    fn a_time_is_local_unless_it_says_otherwise() {
        for text in [
            "2026-11-22 08:00",
            "2026-11-22 08:00:00",
            "2026-11-22T08:00",
            "2026-11-22T07:00:00Z",
            "2026-11-22 07:00Z",
            "2026-11-22T09:30:00+02:30",
            "1795330800000000",
        ] {
            assert_eq!(parsed(text), Some(NOW), "{text}");
        }
        assert_eq!(parsed("2026-11-22"), Some(NOW - 8 * 60 * MINUTE));
        assert_eq!(parsed("2026-11-22T07:00:00.000001Z"), Some(NOW + 1));
        assert_eq!(parsed("18446744073709551615"), Some(u64::MAX));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "m",
            "+10m",
            "10 x",
            "10m5",
            "soon",
            "2026-13-01",
            "1969-12-31",
            "18446744073709551616",
            "9999y",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
