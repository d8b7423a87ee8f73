//! Values of options and settings: durations as Flink writes them.

/// `10 s`, `500ms`, `1 min`, `2h`, `1 d`; a bare number is milliseconds.
pub(crate) fn duration_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match text[digits..].trim().to_lowercase().as_str() {
        "" | "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms)
}

#[cfg(test)]
mod tests {
    use super::duration_ms;

    #[test]
    fn durations_read_as_flink_writes_them() {
        for (text, ms) in [("10 s", 10_000), ("500ms", 500), ("1 min", 60_000), ("2h", 7_200_000), ("1 d", 86_400_000), ("7", 7)] {
            assert_eq!(duration_ms(text), Some(ms), "{text}");
        }
        for text in ["", "s", "1 fortnight", "-1 s"] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }
}
