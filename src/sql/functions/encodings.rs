//! Flink's functions between texts, numbers and bytes: hexadecimal and binary digits, SHA-1, what is left of base64, and casts to a text.
//!
//! Base64 itself and the SHA-2 family are DataFusion's, under Flink's names by [`crate::rewrite`].

use super::scalar::{overloaded, scalar};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type};
use arrow_array::{ArrayRef, BinaryArray, StringArray};
use arrow_schema::DataType;
use datafusion_common::Result;
use datafusion_expr::ScalarUDF;
use sha1::{Digest, Sha1};
use std::sync::Arc;

const UPPER: &[u8; 16] = b"0123456789ABCDEF";
const LOWER: &[u8; 16] = b"0123456789abcdef";

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    use DataType::{Binary, Boolean, Float32, Float64, Int64, Utf8};
    let functions = [
        overloaded("hex", vec![vec![Int64], vec![Utf8]], Utf8, hex),
        scalar("unhex", vec![Utf8], Binary, unhex),
        scalar("bin", vec![Int64], Utf8, bin),
        scalar("sha1", vec![Utf8], Utf8, sha1),
        scalar("__text_of_bytes", vec![Binary], Utf8, text_of_bytes),
        scalar("__boolean_text", vec![Boolean], Utf8, boolean_text),
        overloaded("__float_text", vec![vec![Float32], vec![Float64]], Utf8, float_text),
    ];
    functions.into_iter().map(Arc::new).collect()
}

fn digits(bytes: &[u8], alphabet: &[u8; 16]) -> String {
    bytes.iter().flat_map(|&byte| [alphabet[usize::from(byte >> 4)], alphabet[usize::from(byte & 15)]]).map(char::from).collect()
}

/// `HEX(whole number or text)`. A negative number has all the digits of a BIGINT, as in Java.
fn hex(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts: StringArray = match columns[0].as_string_opt::<i32>() {
        Some(texts) => texts.iter().map(|text| text.map(|text| digits(text.as_bytes(), UPPER))).collect(),
        None => columns[0].as_primitive::<Int64Type>().iter().map(|number| number.map(|number| format!("{number:X}"))).collect(),
    };
    Ok(Arc::new(texts))
}

/// `UNHEX(text)`: NULL where there is another character.
fn unhex(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let values = columns[0].as_string::<i32>().iter().map(|text| bytes_of(text?.as_bytes()));
    Ok(Arc::new(values.collect::<BinaryArray>()))
}

/// Of an odd number of digits the first one stands for a zero byte, as in Flink.
fn bytes_of(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    let (odd, pairs) = digits.split_at(digits.len() % 2);
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    for digit in odd {
        value(*digit)?;
        bytes.push(0);
    }
    for pair in pairs.chunks_exact(2) {
        bytes.push((value(pair[0])? * 16 + value(pair[1])?) as u8);
    }
    Some(bytes)
}

/// `BIN(whole number)`
fn bin(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_primitive::<Int64Type>().iter().map(|number| number.map(|number| format!("{number:b}")));
    Ok(Arc::new(texts.collect::<StringArray>()))
}

/// `SHA1(text)`
fn sha1(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_string::<i32>().iter().map(|text| text.map(|text| digits(&Sha1::digest(text)[..], LOWER)));
    Ok(Arc::new(texts.collect::<StringArray>()))
}

/// `CAST(flag AS STRING)`
fn boolean_text(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_boolean().iter().map(|flag| flag.map(|flag| if flag { "TRUE" } else { "FALSE" }));
    Ok(Arc::new(texts.collect::<StringArray>()))
}

/// `CAST(number AS STRING)` of a FLOAT or DOUBLE
fn float_text(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts: StringArray = match columns[0].as_primitive_opt::<Float32Type>() {
        Some(numbers) => numbers.iter().map(|number| number.map(as_java_writes)).collect(),
        None => columns[0].as_primitive::<Float64Type>().iter().map(|number| number.map(as_java_writes)).collect(),
    };
    Ok(Arc::new(texts))
}

/// As Java's `Double.toString` and `Float.toString`: the fewest digits that tell the number from its neighbours, at least one of them behind
/// the point; with an exponent outside of 10⁻³ to 10⁷.
fn as_java_writes<T: Copy + Into<f64> + std::fmt::Debug + std::fmt::LowerExp>(number: T) -> String {
    let value: f64 = number.into();
    if value.is_infinite() {
        return if value < 0.0 { "-Infinity".into() } else { "Infinity".into() };
    }
    // Rust's debug form writes NaN and plain numbers as Java does.
    if value.is_nan() || value == 0.0 || (1e-3..1e7).contains(&value.abs()) {
        return format!("{number:?}");
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((text.as_str(), "0"));
    let point = if digits.contains('.') { "" } else { ".0" };
    format!("{digits}{point}E{exponent}")
}

/// `FROM_BASE64` gives a text: what is no UTF-8 is shown as U+FFFD, as Java does.
fn text_of_bytes(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_binary::<i32>().iter().map(|bytes| bytes.map(String::from_utf8_lossy));
    Ok(Arc::new(texts.collect::<StringArray>()))
}

#[cfg(test)]
mod tests {
    use super::as_java_writes;

    #[test]
    fn numbers_are_written_as_java_writes_them() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (100.0, "100.0"),
            (-0.1, "-0.1"),
            (0.001, "0.001"),
            (0.00099, "9.9E-4"),
            (1e-5, "1.0E-5"),
            (9_999_999.5, "9999999.5"),
            (1e7, "1.0E7"),
            (-1.5e10, "-1.5E10"),
            (f64::MAX, "1.7976931348623157E308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(as_java_writes(number), text);
        }
        assert_eq!(as_java_writes(0.1f32), "0.1");
        assert_eq!(as_java_writes(0.001f32), "0.001");
        assert_eq!(as_java_writes(f32::MAX), "3.4028235E38");
    }
}
