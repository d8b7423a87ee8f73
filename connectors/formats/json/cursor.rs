//! JSON's grammar (RFC 8259) over the bytes of one record.
//!
//! Everything that is read or skipped is checked: strings for UTF-8, control characters and escapes, numbers for their
//! form, brackets for their match. So whether a record is valid does not depend on which columns a query reads.
//!
//! Text and digits are looked at several bytes at a time (`scan.rs`).

use super::scan::{CHUNK, classify, classify_from, leading_digits};

/// Objects and arrays within each other; more is refused. Reading recurses, so this also bounds the stack.
pub(super) const NESTING_MAX: usize = 128;

const POWERS_OF_TEN: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// Where and why the bytes are no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    pub at: usize,
    pub what: &'static str,
}

/// What lies between the quotes of a string.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    pub raw: &'a [u8],
    /// There are escapes in it, not yet checked: see [`unescape`].
    pub escaped: bool,
}

/// Reads one record from its begin to its end.
pub(super) struct Cursor<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// The next byte, 0 at the end (which is valid nowhere outside of strings, nor inside).
    #[inline(always)]
    pub(super) fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    pub(super) fn invalid(&self, what: &'static str) -> Invalid {
        Invalid { at: self.at, what }
    }

    #[inline(always)]
    pub(super) fn skip_space(&mut self) {
        if self.peek() <= b' ' {
            self.skip_some_space();
        }
    }

    fn skip_some_space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    #[inline(always)]
    pub(super) fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), Invalid> {
        if self.peek() != byte {
            return Err(self.invalid(what));
        }
        self.at += 1;
        Ok(())
    }

    /// `true`, `false` or `null`.
    #[inline]
    pub(super) fn literal(&mut self, word: &'static [u8]) -> Result<(), Invalid> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(self.invalid("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// A string, from its opening quote to behind its closing one.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<Text<'a>, Invalid> {
        // Most are short and plain: one look is enough.
        if self.peek() == b'"' {
            let start = self.at + 1;
            if let Some(chunk) = self.bytes[start..].first_chunk::<CHUNK>() {
                let bits = classify(chunk);
                let length = bits.special.trailing_zeros() as usize;
                if bits.high == 0 && length < CHUNK && chunk[length] == b'"' {
                    self.at = start + length + 1;
                    return Ok(Text { raw: &chunk[..length], escaped: false });
                }
            }
        }
        self.any_string()
    }

    #[inline(never)]
    fn any_string(&mut self) -> Result<Text<'a>, Invalid> {
        self.expect(b'"', "expected a string")?;
        let start = self.at;
        let (mut escaped, mut not_ascii) = (false, false);
        loop {
            not_ascii |= self.find_special();
            match self.peek() {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                _ if self.at >= self.bytes.len() => return Err(self.invalid("the text ends inside a string")),
                _ => return Err(self.invalid("control character in a string")),
            }
        }
        let raw = &self.bytes[start..self.at];
        if not_ascii && std::str::from_utf8(raw).is_err() {
            return Err(Invalid { at: start, what: "a string is not UTF-8" });
        }
        self.at += 1;
        Ok(Text { raw, escaped })
    }

    /// Moves to the next quote, backslash or control character, or to the end; true when there was other than ASCII before.
    #[inline(always)]
    fn find_special(&mut self) -> bool {
        let mut high = 0;
        while let Some(chunk) = self.bytes[self.at.min(self.bytes.len())..].first_chunk::<CHUNK>() {
            let bits = classify(chunk);
            if bits.special != 0 {
                let before = (bits.special & bits.special.wrapping_neg()) - 1;
                self.at += bits.special.trailing_zeros() as usize;
                return (high | bits.high & before) != 0;
            }
            high |= bits.high;
            self.at += CHUNK;
        }
        self.find_special_at_the_end() || high != 0
    }

    /// Less than a chunk is left: looks at the record's last chunk and leaves out what lies before the cursor.
    #[inline(always)]
    fn find_special_at_the_end(&mut self) -> bool {
        let left = self.bytes.len().saturating_sub(self.at);
        if left == 0 {
            return false;
        }
        let mut chunk = [0; CHUNK];
        match self.bytes.last_chunk::<CHUNK>() {
            Some(last) => chunk = *last,
            None => chunk[CHUNK - self.bytes.len()..].copy_from_slice(self.bytes),
        }
        let bits = classify_from(&chunk, CHUNK - left);
        let found = (bits.special.trailing_zeros() as usize).min(left);
        self.at += found;
        bits.high & ((1 << found) - 1) != 0
    }

    /// A whole number of at most 16 digits without fraction or exponent; None leaves the cursor where it is.
    #[inline(always)]
    pub(super) fn short_integer(&mut self) -> Option<i64> {
        let negative = self.peek() == b'-';
        let start = self.at + usize::from(negative);
        let (mut count, mut value) = leading_digits(&self.eight_bytes(start));
        if count == 8 {
            let (more, low) = leading_digits(&self.eight_bytes(start + 8));
            count += more;
            value = value * POWERS_OF_TEN[more] + low;
        }
        let leading_zero = count > 1 && self.bytes[start] == b'0';
        let goes_on = matches!(self.bytes.get(start + count), Some(b'.' | b'e' | b'E' | b'0'..=b'9'));
        if count == 0 || leading_zero || goes_on {
            return None;
        }
        self.at = start + count;
        Some(if negative { -(value as i64) } else { value as i64 })
    }

    /// The bytes from here on, zeros behind the record's end.
    #[inline(always)]
    fn eight_bytes(&self, at: usize) -> [u8; 8] {
        let rest = self.bytes.get(at..).unwrap_or_default();
        match rest.first_chunk() {
            Some(chunk) => *chunk,
            None => {
                let mut chunk = [0; 8];
                chunk[..rest.len()].copy_from_slice(rest);
                chunk
            }
        }
    }

    /// A number's text, and whether it has neither fraction nor exponent.
    #[inline]
    pub(super) fn number(&mut self) -> Result<(&'a [u8], bool), Invalid> {
        let start = self.at;
        self.at += usize::from(self.peek() == b'-');
        let first_digit = self.at;
        self.digits()?;
        if self.bytes[first_digit] == b'0' && self.at - first_digit > 1 {
            return Err(Invalid { at: first_digit, what: "a number begins with 0" });
        }
        let mut whole = true;
        if self.peek() == b'.' {
            whole = false;
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            whole = false;
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), b'+' | b'-'));
            self.digits()?;
        }
        Ok((&self.bytes[start..self.at], whole))
    }

    #[inline(always)]
    fn digits(&mut self) -> Result<(), Invalid> {
        let start = self.at;
        while let Some(chunk) = self.bytes[self.at..].first_chunk() {
            let (count, _) = leading_digits(chunk);
            self.at += count;
            if count < 8 {
                return if self.at == start { Err(self.invalid("expected a digit")) } else { Ok(()) };
            }
        }
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(self.invalid("expected a digit")) } else { Ok(()) }
    }

    /// Any value, with all that is in it. `depth` is the number of objects and arrays around it.
    #[inline]
    pub(super) fn skip_value(&mut self, depth: usize) -> Result<(), Invalid> {
        match self.peek() {
            b'"' => self.skip_string(),
            b'-' | b'0'..=b'9' if self.short_integer().is_some() => Ok(()),
            b'-' | b'0'..=b'9' => self.number().map(|_| ()),
            b'{' | b'[' => self.skip_nested(depth + 1),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => Err(self.invalid("expected a value")),
        }
    }

    #[inline]
    fn skip_string(&mut self) -> Result<(), Invalid> {
        let start = self.at;
        let text = self.string()?;
        if text.escaped {
            unescape(text.raw, None).map_err(|what| Invalid { at: start, what })?;
        }
        Ok(())
    }

    fn skip_nested(&mut self, depth: usize) -> Result<(), Invalid> {
        if depth > NESTING_MAX {
            return Err(self.invalid("nested too deeply"));
        }
        let object = self.peek() == b'{';
        let close = if object { b'}' } else { b']' };
        self.at += 1;
        self.skip_space();
        if self.peek() == close {
            self.at += 1;
            return Ok(());
        }
        loop {
            if object {
                self.skip_string()?;
                self.skip_space();
                self.expect(b':', "expected ':'")?;
                self.skip_space();
            }
            self.skip_value(depth)?;
            self.skip_space();
            if !self.goes_on(close)? {
                return Ok(());
            }
        }
    }

    /// After an element: `,` and there is another one, or the closing bracket.
    #[inline(always)]
    pub(super) fn goes_on(&mut self, close: u8) -> Result<bool, Invalid> {
        let next = self.peek();
        if next != b',' && next != close {
            return Err(self.invalid(if close == b'}' { "expected ',' or '}'" } else { "expected ',' or ']'" }));
        }
        self.at += 1;
        if next == b',' {
            self.skip_space();
        }
        Ok(next == b',')
    }
}

/// Checks the escapes of a string and, with `out`, appends the text that they stand for.
pub(super) fn unescape(raw: &[u8], mut out: Option<&mut Vec<u8>>) -> Result<(), &'static str> {
    let mut at = 0;
    while let Some(backslash) = memchr::memchr(b'\\', &raw[at..]) {
        let escape = at + backslash;
        if let Some(out) = &mut out {
            out.extend_from_slice(&raw[at..escape]);
        }
        at = escape + 2;
        let character = match raw.get(escape + 1) {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = hex4(raw, at)?;
                at += 4;
                if (0xD800..0xDC00).contains(&first) && raw.get(at..at + 2) == Some(b"\\u") {
                    let second = hex4(raw, at + 2)?;
                    at += 6;
                    let low = second.checked_sub(0xDC00).filter(|low| *low < 0x400).ok_or("half of a surrogate pair")?;
                    char::from_u32(0x10000 + ((first - 0xD800) << 10) + low).ok_or("half of a surrogate pair")?
                } else {
                    char::from_u32(first).ok_or("half of a surrogate pair")?
                }
            }
            _ => return Err("unknown escape in a string"),
        };
        if let Some(out) = &mut out {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    if let Some(out) = out {
        out.extend_from_slice(&raw[at..]);
    }
    Ok(())
}

fn hex4(raw: &[u8], at: usize) -> Result<u32, &'static str> {
    let digits = raw.get(at..at + 4).ok_or("unfinished \\u escape")?;
    digits.iter().try_fold(0, |value, digit| char::from(*digit).to_digit(16).map(|digit| value << 4 | digit)).ok_or("unfinished \\u escape")
}

/// Appends valid JSON without the white space between its tokens.
pub(super) fn compact(json: &[u8], out: &mut Vec<u8>) {
    let mut in_string = false;
    let mut escape = false;
    for byte in json {
        if !in_string && matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            continue;
        }
        if escape {
            escape = false;
        } else if in_string && *byte == b'\\' {
            escape = true;
        } else if *byte == b'"' {
            in_string = !in_string;
        }
        out.push(*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_valid(bytes: &[u8]) -> bool {
        let mut cursor = Cursor::new(bytes);
        cursor.skip_space();
        let skipped = cursor.skip_value(0);
        cursor.skip_space();
        skipped.is_ok() && cursor.at == bytes.len()
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| [b"[".repeat(depth), b"]".repeat(depth)].concat();
        assert!(is_valid(&nested(NESTING_MAX)));
        assert!(!is_valid(&nested(NESTING_MAX + 1)));
        assert!(!is_valid(&b"[".repeat(1_000_000)));
        assert!(!is_valid(&b"{\"a\":".repeat(1_000_000)));
    }

    #[test]
    fn surrogates_come_in_pairs() {
        let mut out = Vec::new();
        assert_eq!(unescape(br"a\ud83d\ude00\n\u00e9", Some(&mut out)), Ok(()));
        assert_eq!(out, "a😀\né".as_bytes());
        for wrong in [r"\ud83d", r"\ude00", r"\ud83d\u0041", r"\x", r"\u12", r"\u12g4", r"\"] {
            assert!(unescape(wrong.as_bytes(), None).is_err(), "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// serde_json is the judge of what is valid; it refuses lone surrogates as we do, and numbers beyond f64, which are
        /// valid JSON: the alphabet has too few digits for one.
        #[test]
        fn the_grammar_agrees_with_serde_json(text in r#"([\[\]{},:"0-9.eE+ \\ntrufalsn-]|null|true|false|"a"|\\u00[0-9a-f]{2}|\x01|é|😀){0,24}"#) {
            let judged = serde_json::from_str::<serde_json::Value>(&text);
            if judged.as_ref().is_err_and(|error| error.to_string().contains("number out of range")) {
                return Ok(());
            }
            prop_assert_eq!(is_valid(text.as_bytes()), judged.is_ok(), "{}", text);
        }

        #[test]
        fn bytes_that_are_not_utf8_are_refused_wherever_they_stand(prefix in "[a-z]{0,20}", suffix in "[a-z]{0,20}", wrong in 0x80u8..=0xff) {
            let bytes = [b"[\"", prefix.as_bytes(), &[wrong], suffix.as_bytes(), b"\"]"].concat();
            prop_assert!(!is_valid(&bytes));
        }
    }
}
