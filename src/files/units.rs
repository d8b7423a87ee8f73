//! Durations, sizes and shares as people write them: `100 ms`, `1 min`, `512 MiB`, `99.9 %`.

use std::time::Duration;

/// `100 ms`, `5s`, `1.5 min`, `2 h`. A number without a unit is refused: nobody agrees on what it means.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text).ok_or_else(|| format!("`{text}` is not a duration"))?;
    let seconds = match unit.to_ascii_lowercase().as_str() {
        "us" | "µs" => 1e-6,
        "ms" | "millis" | "millisecond" | "milliseconds" => 1e-3,
        "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        "" => return Err(format!("`{text}` has no unit")),
        unit => return Err(format!("`{unit}` is not a unit of time")),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| format!("`{text}` is out of range"))
}

/// A [`duration`] that is not zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| if duration.is_zero() { Err("must be longer than nothing".into()) } else { Ok(duration) })
}

/// `512 MiB`, `1GB`, `65536`. Decimal and binary units are what they say.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text).ok_or_else(|| format!("`{text}` is not a size"))?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" | "byte" | "bytes" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000 * 1000,
        "g" | "gb" => 1000 * 1000 * 1000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        unit => return Err(format!("`{unit}` is not a unit of size")),
    };
    let bytes = number * factor as f64;
    if bytes < 0.0 || bytes >= u64::MAX as f64 { Err(format!("`{text}` is out of range")) } else { Ok(bytes as u64) }
}

/// `99.9 %` or `0.999`, as a number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = number_and_unit(text).ok_or_else(|| format!("`{text}` is not a share"))?;
    let share = match unit {
        "" => number,
        // Rounded, so that 99.9 % is 0.999 and not the nearest quotient.
        "%" => (number * 1e7).round() / 1e9,
        unit => return Err(format!("`{unit}` is not a unit of a share")),
    };
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("`{text}` is not between 0 and 1 (or 0 % and 100 %)")) }
}

fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let number: f64 = text[..end].replace('_', "").parse().ok()?;
    Some((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("100 ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("1.5min"), Ok(Duration::from_secs(90)));
        assert!(duration("100").unwrap_err().contains("no unit"));
        assert!(duration("5 lightyears").is_err() && duration("soon").is_err() && duration("-1 s").is_err());
        assert_eq!(duration("0 s"), Ok(Duration::ZERO));
        assert!(positive_duration("0 s").is_err() && positive_duration("1 ms").is_ok());
    }

    #[test]
    fn sizes_are_decimal_or_binary_as_they_say() {
        assert_eq!(bytes("512 MiB"), Ok(512 << 20));
        assert_eq!(bytes("1GB"), Ok(1_000_000_000));
        assert_eq!(bytes("65_536"), Ok(65536));
        assert!(bytes("1 MB/s").is_err());
    }

    #[test]
    fn shares_are_percent_or_fractions() {
        assert_eq!(share("99.9 %"), Ok(0.999));
        assert_eq!(share("1"), Ok(1.0));
        assert!(share("100").is_err());
    }
}
