//! Flink's functions between texts, numbers and bytes: hexadecimal and binary digits, SHA-1, and what is left of base64.
//!
//! Base64 itself and the SHA-2 family are DataFusion's, under Flink's names by [`crate::rewrite`].

use super::scalar::{overloaded, scalar};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, BinaryArray, StringArray};
use arrow_schema::DataType;
use datafusion_common::Result;
use datafusion_expr::ScalarUDF;
use sha1::{Digest, Sha1};
use std::sync::Arc;

const UPPER: &[u8; 16] = b"0123456789ABCDEF";
const LOWER: &[u8; 16] = b"0123456789abcdef";

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    use DataType::{Binary, Int64, Utf8};
    let functions = [
        overloaded("hex", vec![vec![Int64], vec![Utf8]], Utf8, hex),
        scalar("unhex", vec![Utf8], Binary, unhex),
        scalar("bin", vec![Int64], Utf8, bin),
        scalar("sha1", vec![Utf8], Utf8, sha1),
        scalar("__text_of_bytes", vec![Binary], Utf8, text_of_bytes),
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

/// `FROM_BASE64` gives a text: what is no UTF-8 is shown as U+FFFD, as Java does.
fn text_of_bytes(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_binary::<i32>().iter().map(|bytes| bytes.map(String::from_utf8_lossy));
    Ok(Arc::new(texts.collect::<StringArray>()))
}
