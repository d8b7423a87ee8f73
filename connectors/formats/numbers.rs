//! Decimals and other numbers as text, exactly: no value passes through a binary fraction on its way to DECIMAL.

/// Why a text is no value of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberFault {
    NotANumber,
    OutOfRange,
}

/// What becomes of the digits behind the last one kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// Away from zero from 5 on, as Java's `BigDecimal` and Flink round a DECIMAL.
    HalfUp,
    /// Cut off, as Flink reads a fractional number into INT and BIGINT.
    Down,
}

/// A decimal number in plain or scientific notation to the unscaled value of DECIMAL(precision, scale).
pub(super) fn parse_decimal(text: &[u8], precision: u8, scale: i8, rounding: Rounding) -> Result<i128, NumberFault> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let exponent_at = digits.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(digits.len());
    let (mantissa, exponent) = digits.split_at(exponent_at);
    let exponent = if exponent.is_empty() { 0 } else { parse_exponent(&exponent[1..])? };
    let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
    let (whole, fraction) = (&mantissa[..point], mantissa.get(point + 1..).unwrap_or_default());
    if whole.is_empty() && fraction.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return Err(NumberFault::NotANumber);
    }
    // The digit at index i of whole ++ fraction weighs 10^(point − 1 − i + exponent); the unscaled value keeps the digits
    // whose weight is at least 10^−scale.
    let kept = (point as i64).saturating_add(exponent).saturating_add(i64::from(scale));
    let mut unscaled: i128 = 0;
    let mut round_up = false;
    for (index, digit) in whole.iter().chain(fraction).enumerate() {
        let digit = i128::from(digit - b'0');
        if index as i64 >= kept {
            round_up = rounding == Rounding::HalfUp && index as i64 == kept && digit >= 5;
            break;
        }
        unscaled = unscaled.checked_mul(10).and_then(|value| value.checked_add(digit)).ok_or(NumberFault::OutOfRange)?;
    }
    let missing_zeros = kept - (whole.len() + fraction.len()) as i64;
    if missing_zeros > 0 && unscaled != 0 {
        let power = u32::try_from(missing_zeros).ok().and_then(|zeros| 10i128.checked_pow(zeros)).ok_or(NumberFault::OutOfRange)?;
        unscaled = unscaled.checked_mul(power).ok_or(NumberFault::OutOfRange)?;
    }
    unscaled = unscaled.checked_add(i128::from(round_up)).ok_or(NumberFault::OutOfRange)?;
    if unscaled >= 10i128.pow(u32::from(precision)) {
        return Err(NumberFault::OutOfRange);
    }
    Ok(if negative { -unscaled } else { unscaled })
}

/// An exponent's digits; beyond ±10^9 it is held there, where every non-zero decimal is out of range or zero.
fn parse_exponent(text: &[u8]) -> Result<i64, NumberFault> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(NumberFault::NotANumber);
    }
    let magnitude = digits.iter().fold(0i64, |value, digit| (value * 10 + i64::from(digit - b'0')).min(1_000_000_000));
    Ok(if negative { -magnitude } else { magnitude })
}

/// Writes a decimal with all digits of its scale, never in scientific notation.
pub(super) fn write_decimal(out: &mut Vec<u8>, unscaled: i128, scale: i8) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(unscaled.unsigned_abs()).as_bytes();
    if unscaled < 0 {
        out.push(b'-');
    }
    let Ok(scale) = usize::try_from(scale) else {
        out.extend_from_slice(digits);
        if unscaled != 0 {
            out.extend(std::iter::repeat_n(b'0', usize::from(scale.unsigned_abs())));
        }
        return;
    };
    if scale == 0 {
        out.extend_from_slice(digits);
    } else if digits.len() > scale {
        out.extend_from_slice(&digits[..digits.len() - scale]);
        out.push(b'.');
        out.extend_from_slice(&digits[digits.len() - scale..]);
    } else {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', scale - digits.len()));
        out.extend_from_slice(digits);
    }
}

/// A whole number in decimal notation with an optional sign, as Java's `Long.parseLong` reads it.
pub(super) fn parse_integer(text: &[u8]) -> Result<i64, NumberFault> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(NumberFault::NotANumber);
    }
    digits
        .iter()
        .try_fold(0i64, |value, digit| {
            let value = value.checked_mul(10)?;
            let digit = i64::from(digit - b'0');
            if negative { value.checked_sub(digit) } else { value.checked_add(digit) }
        })
        .ok_or(NumberFault::OutOfRange)
}

/// A floating-point number; `NaN`, `Infinity` and `-Infinity` are read as Java writes them.
pub(super) fn parse_float(text: &[u8]) -> Result<f64, NumberFault> {
    match text {
        b"NaN" => return Ok(f64::NAN),
        b"Infinity" | b"+Infinity" => return Ok(f64::INFINITY),
        b"-Infinity" => return Ok(f64::NEG_INFINITY),
        _ => {}
    }
    // Rust also reads "inf" and "nan", which Java does not.
    if text.iter().any(|byte| byte.is_ascii_alphabetic() && !matches!(byte, b'e' | b'E')) {
        return Err(NumberFault::NotANumber);
    }
    let parsed: f64 = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(NumberFault::NotANumber)?;
    if parsed.is_finite() { Ok(parsed) } else { Err(NumberFault::OutOfRange) }
}

/// Writes a finite float in the shortest form that reads back as the same.
pub(super) fn write_float<F: ryu::Float>(out: &mut Vec<u8>, value: F) {
    out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(text: &str, precision: u8, scale: i8) -> Result<i128, NumberFault> {
        parse_decimal(text.as_bytes(), precision, scale, Rounding::HalfUp)
    }

    #[test]
    fn decimals_round_half_up_and_away_from_zero() {
        for (text, unscaled) in [
            ("1.005", 101),
            ("-1.005", -101),
            ("1.004999", 100),
            ("1.0049999999999999999999999999999999999999999999", 100),
            ("0.005", 1),
            ("0.0049", 0),
            ("5e-3", 1),
            ("4.9e-3", 0),
            ("1e1", 1000),
            ("12", 1200),
            ("0", 0),
            ("0e999999999999", 0),
            ("1e-999999999999", 0),
            ("99999999.994", 9_999_999_999),
            (".5", 50),
            ("5.", 500),
        ] {
            assert_eq!(decimal(text, 10, 2), Ok(unscaled), "{text}");
        }
    }

    #[test]
    fn a_decimal_that_does_not_fit_is_out_of_range() {
        for text in [
            "100000000",
            "99999999.995",
            "1e999999999",
            "1e18446744073709551616",
            "99999999999999999999999999999999999999999999999999",
            // Rounded up, one more than the largest i128.
            "1701411834604692317316873037158841057.275",
        ] {
            assert_eq!(decimal(text, 10, 2), Err(NumberFault::OutOfRange), "{text}");
        }
        for text in ["", "-", ".", "1e", "e5", "1.2.3", "0x1", "1 "] {
            assert_eq!(decimal(text, 10, 2), Err(NumberFault::NotANumber), "{text}");
        }
        assert_eq!(decimal("99999999999999999999999999999999999999", 38, 0), Ok(10i128.pow(38) - 1));
    }

    #[test]
    fn integers_are_read_to_their_limits() {
        assert_eq!(parse_integer(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse_integer(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(parse_integer(b"9223372036854775808"), Err(NumberFault::OutOfRange));
        assert_eq!(parse_integer(b"1.0"), Err(NumberFault::NotANumber));
        assert_eq!(parse_float(b"inf"), Err(NumberFault::NotANumber));
        assert_eq!(parse_float(b"1e999"), Err(NumberFault::OutOfRange));
    }

    proptest! {
        #[test]
        fn a_written_decimal_reads_back(unscaled in -(10i128.pow(30))..10i128.pow(30), scale in 0i8..30) {
            let mut text = Vec::new();
            write_decimal(&mut text, unscaled, scale);
            prop_assert_eq!(parse_decimal(&text, 38, scale, Rounding::HalfUp), Ok(unscaled));
        }
    }
}
