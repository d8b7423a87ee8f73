//! Values of a plan that are written as text: times, sizes, shares, ranges, and moments.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use streamshield_files::units;

/// `5 s`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// `512 MiB`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size(pub u64);

/// From 0 to 1; `5 %` or `0.05`
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Fraction(pub f64);

/// How many are drawn at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub least: u32,
    pub most: u32,
}

/// When a step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Since the method began.
    Time(Duration),
    /// When so many records have been sent.
    Records(u64),
}

impl Time {
    pub const fn seconds(seconds: u64) -> Time {
        Time(Duration::from_secs(seconds))
    }

    pub const fn millis(millis: u64) -> Time {
        Time(Duration::from_millis(millis))
    }
}

impl Default for Pick {
    fn default() -> Pick {
        Pick { least: 1, most: 1 }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        match micros {
            _ if micros.is_multiple_of(3_600_000_000) && micros > 0 => write!(f, "{} h", micros / 3_600_000_000),
            _ if micros.is_multiple_of(60_000_000) && micros > 0 => write!(f, "{} min", micros / 60_000_000),
            _ if micros.is_multiple_of(1_000_000) => write!(f, "{} s", micros / 1_000_000),
            _ if micros.is_multiple_of(1_000) => write!(f, "{} ms", micros / 1_000),
            _ => write!(f, "{micros} us"),
        }
    }
}

impl FromStr for Time {
    type Err = String;
    fn from_str(text: &str) -> Result<Time, String> {
        units::duration(text).map(Time)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        units::bytes(text).map(Size)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", (self.0 * 1e6).round() / 1e4)
    }
}

impl FromStr for Fraction {
    type Err = String;
    fn from_str(text: &str) -> Result<Fraction, String> {
        units::share(text).map(Fraction)
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most { write!(f, "{}", self.least) } else { write!(f, "{}..{}", self.least, self.most) }
    }
}

impl FromStr for Pick {
    type Err = String;
    fn from_str(text: &str) -> Result<Pick, String> {
        let wrong = || format!("`{text}` is not a number or a range such as `2..4`");
        let number = |part: &str| part.trim().parse::<u32>().map_err(|_| wrong());
        let (least, most) = match text.split_once("..") {
            Some((least, most)) => (number(least)?, number(most)?),
            None => (number(text)?, number(text)?),
        };
        if most == 0 || least > most { Err(wrong()) } else { Ok(Pick { least, most }) }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Time(time) => Time(*time).fmt(f),
            Start::Records(records) => write!(f, "records>={records}"),
        }
    }
}

impl FromStr for Start {
    type Err = String;
    fn from_str(text: &str) -> Result<Start, String> {
        let Some(count) = text.trim().strip_prefix("records") else { return units::duration(text).map(Start::Time) };
        let count = count.trim().strip_prefix(">=").map(|count| count.trim().replace('_', ""));
        match count.and_then(|count| count.parse().ok()) {
            Some(count) => Ok(Start::Records(count)),
            None => Err(format!("`{text}` is neither a time nor `records>=NUMBER`")),
        }
    }
}

/// Serde by text, and the schema of that text.
macro_rules! as_text {
    ($type:ident, $name:literal, $schema:tt) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

as_text!(Time, "Duration", { "description": "A number with a unit: `100 ms`, `5 s`, `1 min`, `2 h`.", "type": "string", "format": "duration" });
as_text!(Size, "Size", { "description": "Bytes, with or without a unit: `512 MiB`, `1 GB`.", "type": ["string", "integer"], "format": "size" });
as_text!(Fraction, "Share", { "description": "`5 %` or `0.05`.", "type": ["string", "number"], "format": "share" });
as_text!(Pick, "Pick", { "description": "A number or a range: `2`, `2..4`.", "type": ["string", "integer"] });
as_text!(Start, "Start", { "description": "A time since the method began (`10 s`), or a number of records sent (`records>=20000`).", "type": "string" });

impl JsonSchema for super::Parameter {
    fn schema_name() -> Cow<'static, str> {
        "Parameter".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "A parameter of a fault: a duration, a size, a share, a count or a choice.", "type": ["string", "number", "boolean"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_a_number_of_records() {
        assert_eq!("10 s".parse(), Ok(Start::Time(Duration::from_secs(10))));
        assert_eq!("records>=20_000".parse(), Ok(Start::Records(20_000)));
        assert_eq!("records >= 5".parse(), Ok(Start::Records(5)));
        for wrong in ["records>20", "records", "soon", "10"] {
            assert!(wrong.parse::<Start>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for text in ["100 ms", "5 s", "2 min", "1 h", "0 s", "1500 us"] {
            assert_eq!(text.parse::<Time>().expect(text).to_string(), text);
        }
        for text in ["2", "2..4"] {
            assert_eq!(text.parse::<Pick>().expect(text).to_string(), text);
        }
        assert_eq!("5 %".parse::<Fraction>().expect("a share").to_string(), "5 %");
        assert!("4..2".parse::<Pick>().is_err() && "0".parse::<Pick>().is_err());
    }
}
