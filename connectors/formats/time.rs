//! Dates, times and timestamps as text, in the two standards of Flink's formats.
//!
//! SQL: `2026-01-02 03:04:05.678`; ISO-8601: `2026-01-02T03:04:05.678`. A `TIMESTAMP_LTZ` ends in `Z`. Reading takes both
//! separators whatever the standard is, since neither can be mistaken for the other; writing follows the standard and,
//! as Flink does, leaves out the trailing zeros of the fraction.
//!
//! Calendar arithmetic after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (proleptic Gregorian).

use arrow_schema::TimeUnit;

/// How timestamps are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TimestampStandard {
    #[default]
    Sql,
    Iso8601,
}

/// An instant: seconds since 1970 and the nanoseconds after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instant {
    pub seconds: i64,
    pub nanos: u32,
}

impl Instant {
    /// In the unit, rounded down to it; None when out of the 64-bit range.
    pub(super) fn to_unit(self, unit: TimeUnit) -> Option<i64> {
        let per_second = units_per_second(unit);
        self.seconds.checked_mul(per_second)?.checked_add(i64::from(self.nanos) / (1_000_000_000 / per_second))
    }

    pub(super) fn from_unit(value: i64, unit: TimeUnit) -> Instant {
        let per_second = units_per_second(unit);
        let nanos = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
        Instant { seconds: value.div_euclid(per_second), nanos: nanos as u32 }
    }
}

fn units_per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

fn two_digits(bytes: &[u8], at: usize) -> Option<u32> {
    let (tens, ones) = (bytes.get(at)?.wrapping_sub(b'0'), bytes.get(at + 1)?.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then(|| u32::from(tens) * 10 + u32::from(ones))
}

/// `yyyy-MM-dd` to days since 1970.
pub(super) fn parse_date(text: &[u8]) -> Option<i32> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let year = two_digits(text, 0)? * 100 + two_digits(text, 2)?;
    let (month, day) = (two_digits(text, 5)?, two_digits(text, 8)?);
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    Some(days_from_civil(i64::from(year), month, day) as i32)
}

/// `HH:mm[:ss[.fraction]]` at the start of the text: seconds of the day, nanoseconds, and what follows.
fn parse_clock(text: &[u8]) -> Option<(u32, u32, &[u8])> {
    let (hour, minute) = (two_digits(text, 0)?, two_digits(text, 3)?);
    if text[2] != b':' || hour > 23 || minute > 59 {
        return None;
    }
    let minutes_only = (hour * 3600 + minute * 60, 0, &text[5..]);
    if text.get(5) != Some(&b':') {
        return Some(minutes_only);
    }
    let second = two_digits(text, 6)?;
    if second > 59 {
        return None;
    }
    let seconds = hour * 3600 + minute * 60 + second;
    if text.get(8) != Some(&b'.') {
        return Some((seconds, 0, &text[8..]));
    }
    let mut nanos = 0;
    let mut weight = 100_000_000;
    let mut at = 9;
    while let Some(digit) = text.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9) {
        nanos += u32::from(digit) * weight;
        weight /= 10;
        at += 1;
    }
    // 1 to 9 digits, as Java's formatter reads them.
    (10..=18).contains(&at).then(|| (seconds, nanos, &text[at..]))
}

/// `HH:mm[:ss[.fraction]]` to milliseconds of the day.
pub(super) fn parse_time_ms(text: &[u8]) -> Option<i32> {
    let (seconds, nanos, rest) = parse_clock(text)?;
    rest.is_empty().then(|| (seconds * 1000 + nanos / 1_000_000) as i32)
}

/// A timestamp; with `zoned` it must end in `Z` or an offset (`+01:00`), without it must not.
pub(super) fn parse_timestamp(text: &[u8], zoned: bool) -> Option<Instant> {
    if text.len() < 16 || !matches!(text[10], b' ' | b'T') {
        return None;
    }
    let days = parse_date(&text[..10])?;
    let (second_of_day, nanos, rest) = parse_clock(&text[11..])?;
    let offset_seconds = match rest {
        [] if !zoned => 0,
        [b'Z'] if zoned => 0,
        [sign @ (b'+' | b'-'), clock @ ..] if zoned && clock.len() == 5 => {
            let (seconds, _, _) = parse_clock(clock)?;
            if *sign == b'+' { i64::from(seconds) } else { -i64::from(seconds) }
        }
        _ => return None,
    };
    Some(Instant { seconds: i64::from(days) * 86_400 + i64::from(second_of_day) - offset_seconds, nanos })
}

const DIGIT_PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut i = 0;
    while i < 100 {
        pairs[i] = [b'0' + (i / 10) as u8, b'0' + (i % 10) as u8];
        i += 1;
    }
    pairs
};

fn pair(number: u32) -> [u8; 2] {
    DIGIT_PAIRS[(number % 100) as usize]
}

pub(super) fn write_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil_from_days(days);
    if (0..=9999).contains(&year) {
        let mut text = *b"yyyy-MM-dd";
        text[0..2].copy_from_slice(&pair(year as u32 / 100));
        text[2..4].copy_from_slice(&pair(year as u32));
        text[5..7].copy_from_slice(&pair(month));
        text[8..10].copy_from_slice(&pair(day));
        out.extend_from_slice(&text);
    } else {
        // Java's yyyy writes such years with a sign.
        out.extend_from_slice(format!("{year:+05}-{month:02}-{day:02}").as_bytes());
    }
}

fn write_clock(out: &mut Vec<u8>, second_of_day: u32, nanos: u32) {
    let mut text = *b"HH:mm:ss";
    text[0..2].copy_from_slice(&pair(second_of_day / 3600));
    text[3..5].copy_from_slice(&pair(second_of_day / 60 % 60));
    text[6..8].copy_from_slice(&pair(second_of_day % 60));
    out.extend_from_slice(&text);
    if nanos != 0 {
        write_fraction(out, nanos);
    }
}

fn write_fraction(out: &mut Vec<u8>, nanos: u32) {
    let mut text = *b".000000000";
    text[1] = b'0' + (nanos / 100_000_000) as u8;
    text[2..4].copy_from_slice(&pair(nanos / 1_000_000));
    text[4..6].copy_from_slice(&pair(nanos / 10_000));
    text[6..8].copy_from_slice(&pair(nanos / 100));
    text[8..10].copy_from_slice(&pair(nanos));
    let mut end = text.len();
    while text[end - 1] == b'0' {
        end -= 1;
    }
    out.extend_from_slice(&text[..end]);
}

pub(super) fn write_time_ms(out: &mut Vec<u8>, millis_of_day: i32) {
    let millis = millis_of_day.rem_euclid(86_400_000) as u32;
    write_clock(out, millis / 1000, millis % 1000 * 1_000_000);
}

pub(super) fn write_timestamp(out: &mut Vec<u8>, value: i64, unit: TimeUnit, zoned: bool, standard: TimestampStandard) {
    let instant = Instant::from_unit(value, unit);
    write_date(out, instant.seconds.div_euclid(86_400));
    out.push(if standard == TimestampStandard::Sql { b' ' } else { b'T' });
    write_clock(out, instant.seconds.rem_euclid(86_400) as u32, instant.nanos);
    if zoned {
        out.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timestamp(text: &str, zoned: bool) -> Option<i64> {
        parse_timestamp(text.as_bytes(), zoned)?.to_unit(TimeUnit::Millisecond)
    }

    #[test]
    fn both_standards_are_read() {
        assert_eq!(timestamp("1970-01-01 00:00:00", false), Some(0));
        assert_eq!(timestamp("2024-01-02T03:04:05.678", false), Some(1_704_164_645_678));
        assert_eq!(timestamp("2024-01-02 03:04:05.678Z", true), Some(1_704_164_645_678));
        assert_eq!(timestamp("2024-01-02 04:04:05.678+01:00", true), Some(1_704_164_645_678));
        assert_eq!(timestamp("2024-01-02 03:04", false), Some(1_704_164_640_000));
        assert_eq!(timestamp("1969-12-31 23:59:59.999", false), Some(-1));
        assert_eq!(timestamp("2024-02-29 00:00:00.123456789", false), Some(1_709_164_800_123));
    }

    #[test]
    fn what_is_no_instant_is_refused() {
        for wrong in [
            "",
            "2024-01-02",
            "2024-13-01 00:00:00",
            "2023-02-29 00:00:00",
            "2024-01-02 24:00:00",
            "2024-01-02 03:04:05.",
            "2024-01-02 03:04:05Z",
            "2024-01-02 03:04:05.1234567891",
            "2024/01/02 03:04:05",
            "2024-01-0203:04:05 ",
        ] {
            assert_eq!(timestamp(wrong, false), None, "{wrong}");
        }
        assert_eq!(timestamp("2024-01-02 03:04:05", true), None);
        assert_eq!(timestamp("2024-01-02 03:04:05+1:00", true), None);
    }

    #[test]
    fn a_year_of_any_length_is_written() {
        let mut text = Vec::new();
        write_timestamp(&mut text, 1_700_000_000_000_000_000, TimeUnit::Millisecond, false, TimestampStandard::Sql);
        assert_eq!(String::from_utf8_lossy(&text), "+53872825-06-17 22:13:20");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in -62_135_596_800_000i64..253_402_300_799_999, zoned: bool, iso: bool) {
            let standard = if iso { TimestampStandard::Iso8601 } else { TimestampStandard::Sql };
            let mut text = Vec::new();
            write_timestamp(&mut text, millis, TimeUnit::Millisecond, zoned, standard);
            prop_assert_eq!(parse_timestamp(&text, zoned).and_then(|instant| instant.to_unit(TimeUnit::Millisecond)), Some(millis));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9T:Z. +-]{0,40}", zoned: bool) {
            parse_timestamp(text.as_bytes(), zoned);
            parse_date(text.as_bytes());
            parse_time_ms(text.as_bytes());
        }
    }
}
