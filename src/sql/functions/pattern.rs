//! Java's date patterns (`yyyy-MM-dd HH:mm:ss.SSS`), for writing and reading.

use chrono::{Datelike, NaiveDate, NaiveDateTime, Timelike};
use std::fmt::Write;

/// A pattern, taken apart once and used for many rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// A letter of the pattern and how often it stands there.
    Field(char, usize),
    Text(String),
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let mut parts: Vec<Part> = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\'' if chars.peek() == Some(&'\'') => {
                    chars.next();
                    push_text(&mut parts, '\'');
                }
                '\'' => {
                    while let Some(inner) = chars.next() {
                        match inner {
                            '\'' if chars.peek() == Some(&'\'') => {
                                chars.next();
                                push_text(&mut parts, '\'');
                            }
                            '\'' => break,
                            other => push_text(&mut parts, other),
                        }
                    }
                }
                c if c.is_ascii_alphabetic() => {
                    let mut count = 1;
                    while chars.next_if_eq(&c).is_some() {
                        count += 1;
                    }
                    if !"yuMdHhkKmsSaEDQ".contains(c) {
                        return Err(format!("the date pattern '{text}' has the letter '{c}', which is not supported"));
                    }
                    parts.push(Part::Field(c, count));
                }
                other => push_text(&mut parts, other),
            }
        }
        Ok(Pattern { parts })
    }

    pub fn format(&self, time: &NaiveDateTime, out: &mut String) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(letter, count) => format_field(*letter, *count, time, out),
            }
        }
    }

    /// The time that a text says; parts that the pattern lacks are those of 1970-01-01 00:00.
    pub fn read(&self, mut text: &str) -> Option<NaiveDateTime> {
        let (mut year, mut month, mut day, mut hour, mut minute, mut second, mut nanos) = (1970i32, 1u32, 1u32, 0u32, 0u32, 0u32, 0u32);
        let mut afternoon = None;
        for (index, part) in self.parts.iter().enumerate() {
            let (letter, count) = match part {
                Part::Text(expected) => {
                    text = text.strip_prefix(expected.as_str())?;
                    continue;
                }
                Part::Field(letter, count) => (*letter, *count),
            };
            if letter == 'a' {
                let (word, rest) = text.split_at_checked(2)?;
                afternoon = Some(word.eq_ignore_ascii_case("pm"));
                text = rest;
                continue;
            }
            if letter == 'M' && count >= 3 {
                let name = MONTHS.iter().position(|name| text.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(&name[..3])))?;
                let length = if count == 3 { 3 } else { MONTHS[name].len() };
                month = name as u32 + 1;
                text = text.get(length..)?;
                continue;
            }
            // Adjacent fields are as wide as the pattern says; others take all digits.
            let is_adjacent = matches!(self.parts.get(index + 1), Some(Part::Field(..)));
            let width_max = if is_adjacent || letter == 'S' { count } else { count.max(if letter == 'y' { 9 } else { 2 }) };
            let width = text.bytes().take(width_max).take_while(u8::is_ascii_digit).count();
            let (digits, rest) = text.split_at(width);
            let number: u32 = digits.parse().ok()?;
            text = rest;
            match letter {
                'y' | 'u' => year = if count == 2 && width == 2 { 2000 + number as i32 } else { number as i32 },
                'M' => month = number,
                'd' => day = number,
                'H' => hour = number,
                'h' | 'K' => hour = number % 12,
                'k' => hour = number % 24,
                'm' => minute = number,
                's' => second = number,
                'S' => nanos = number.checked_mul(10u32.checked_pow(9u32.checked_sub(width as u32)?)?)?,
                _ => return None,
            }
        }
        if !text.is_empty() {
            return None;
        }
        if afternoon == Some(true) {
            hour += 12;
        }
        NaiveDate::from_ymd_opt(year, month, day)?.and_hms_nano_opt(hour, minute, second, nanos)
    }
}

fn push_text(parts: &mut Vec<Part>, c: char) {
    match parts.last_mut() {
        Some(Part::Text(text)) => text.push(c),
        _ => parts.push(Part::Text(c.to_string())),
    }
}

fn format_field(letter: char, count: usize, time: &NaiveDateTime, out: &mut String) {
    let number = match letter {
        'y' | 'u' if count == 2 => i64::from(time.year().rem_euclid(100)),
        'y' | 'u' => i64::from(time.year()),
        'M' if count == 3 => return out.push_str(&MONTHS[time.month0() as usize][..3]),
        'M' if count > 3 => return out.push_str(MONTHS[time.month0() as usize]),
        'M' => i64::from(time.month()),
        'd' => i64::from(time.day()),
        'D' => i64::from(time.ordinal()),
        'Q' => i64::from(time.month0() / 3 + 1),
        'E' => {
            let name = DAYS[time.weekday().num_days_from_monday() as usize];
            return out.push_str(if count > 3 { name } else { &name[..3] });
        }
        'a' => return out.push_str(if time.hour() < 12 { "AM" } else { "PM" }),
        'H' => i64::from(time.hour()),
        'h' => i64::from(time.hour12().1),
        'K' => i64::from(time.hour() % 12),
        'k' => i64::from(if time.hour() == 0 { 24 } else { time.hour() }),
        'm' => i64::from(time.minute()),
        's' => i64::from(time.second()),
        'S' => {
            let digits = format!("{:09}", time.nanosecond() % 1_000_000_000);
            return out.push_str(&digits[..count.min(9)]);
        }
        _ => return,
    };
    // Writing into a String can't fail.
    let _ = write!(out, "{number:0count$}");
}

#[cfg(test)]
mod tests {
    use super::Pattern;
    use chrono::NaiveDate;

    #[test]
    fn what_is_written_is_read_back() {
        let time = NaiveDate::from_ymd_opt(2024, 3, 9).and_then(|date| date.and_hms_milli_opt(15, 4, 5, 67)).expect("a time");
        for (pattern, text) in [
            ("yyyy-MM-dd HH:mm:ss.SSS", "2024-03-09 15:04:05.067"),
            ("yyyyMMddHHmmssSSS", "20240309150405067"),
            ("dd/MMM/yyyy 'at' hh:mm:ss.SSS a", "09/Mar/2024 at 03:04:05.067 PM"),
        ] {
            let pattern = Pattern::parse(pattern).expect("a pattern");
            let mut out = String::new();
            pattern.format(&time, &mut out);
            assert_eq!(out, text);
            assert_eq!(pattern.read(text), Some(time));
        }
    }

    #[test]
    fn texts_that_do_not_fit_are_no_time() {
        let pattern = Pattern::parse("yyyy-MM-dd").expect("a pattern");
        for text in ["2024-13-01", "2024-01-01x", "24/01/01", ""] {
            assert_eq!(pattern.read(text), None, "{text}");
        }
        assert!(Pattern::parse("yyyy-ww").is_err());
    }
}
