//! Times: now, and as the formats read and write them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
}

/// `2024-01-01 00:00:00.123Z` (also with a `T`, without a fraction, without the `Z`) in milliseconds since 1970.
pub fn parse_time(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' '])?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next().unwrap_or(Ok(0)).ok()?);
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    let days = days_from_civil(year, month, day);
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000 + digits.parse::<i64>().ok()?)
}

/// Days since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// `2024-01-01 00:00:00.123` of milliseconds since 1970.
pub fn time_text(ms: i64) -> String {
    let (days, ms_of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil_from_days(days);
    let seconds = ms_of_day / 1_000;
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}", ms_of_day % 1_000)
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let month = month_index + if month_index < 10 { 3 } else { -9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * month_index + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_formats_write_them() {
        assert_eq!(parse_time("1970-01-01 00:00:00Z"), Some(0));
        assert_eq!(parse_time("2024-01-01T00:00:00.12"), Some(1_704_067_200_120));
        assert_eq!(parse_time("2100-01-01 00:00:00.1Z"), Some(4_102_444_800_100));
        assert_eq!(parse_time("2024-02-29 12:34:56.789Z"), Some(1_709_210_096_789));
        assert_eq!((parse_time("yesterday"), parse_time("2024-01-01")), (None, None));
    }

    #[test]
    fn a_time_that_is_written_is_read() {
        for ms in [0, 951_782_399_999, 1_709_210_096_789, 4_102_444_800_100, 1_735_689_599_999] {
            assert_eq!(parse_time(&time_text(ms)), Some(ms), "{}", time_text(ms));
        }
        assert_eq!(time_text(1_709_210_096_789), "2024-02-29 12:34:56.789");
        assert_eq!((time_text(0).as_str(), time_text(-1).as_str()), ("1970-01-01 00:00:00.000", "1969-12-31 23:59:59.999"));
    }
}
