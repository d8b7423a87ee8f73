//! Parameters of faults as plans write them: `30 s`, `64 MiB`, `30 %`, 3, a word of several.
//!
//! They are checked when a fault is built, long before it is injected: a plan that names a parameter that is not there, or a value that it can't have, fails
//! before anything was started.

use crate::api::{FaultSpec, Parameter, ParameterKind, Parameters, Role, Value};
use std::time::Duration;

/// What is wrong with a step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("there is no fault {name:?}{}", hint(nearest))]
    UnknownFault { name: String, nearest: Option<&'static str> },
    #[error("{fault} has no parameter {name:?}; it has {known}")]
    UnknownParameter { fault: &'static str, name: String, known: String },
    #[error("{fault} needs the parameter {name}: {about}")]
    MissingParameter { fault: &'static str, name: &'static str, about: &'static str },
    #[error("{fault}: {name}: {reason}")]
    BadValue { fault: &'static str, name: &'static str, reason: String },
    #[error("{fault} can't be aimed at {role}; it can be aimed at {known}")]
    BadTarget { fault: &'static str, role: Role, known: String },
    #[error("{fault}: target {name:?}: {reason}")]
    BadTargetName { fault: &'static str, name: String, reason: &'static str },
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// The checked parameters of one fault.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    spec: &'static FaultSpec,
    parameters: Parameters,
}

impl Given {
    /// Fills in what is not given, and refuses what does not fit.
    pub(crate) fn check(spec: &'static FaultSpec, parameters: &Parameters) -> Result<Given, BuildError> {
        if let Some(name) = parameters.keys().find(|name| spec.parameters.iter().all(|known| known.name != name.as_str())) {
            let known = spec.parameters.iter().map(|parameter| parameter.name).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".into() } else { known };
            return Err(BuildError::UnknownParameter { fault: spec.name, name: name.clone(), known });
        }
        let mut given = Parameters::new();
        for parameter in spec.parameters {
            let default = parameter.default.map(|text| Value::Text(text.into()));
            let value = parameters.get(parameter.name).cloned().or(default);
            let value = value.ok_or(BuildError::MissingParameter { fault: spec.name, name: parameter.name, about: parameter.about })?;
            check_value(parameter, &value).map_err(|reason| BuildError::BadValue { fault: spec.name, name: parameter.name, reason })?;
            given.insert(parameter.name.into(), value);
        }
        Ok(Given { spec, parameters: given })
    }

    fn value(&self, name: &str) -> &Value {
        // Every parameter of the entry was put there by `check`; faults ask only for those that their entry names.
        self.parameters.get(name).unwrap_or_else(|| panic!("{} has no parameter {name}", self.spec.name))
    }

    pub(crate) fn duration(&self, name: &str) -> Duration {
        parse_duration(self.value(name)).expect("checked when it was built")
    }

    pub(crate) fn bytes(&self, name: &str) -> u64 {
        parse_bytes(self.value(name)).expect("checked when it was built")
    }

    pub(crate) fn share(&self, name: &str) -> f64 {
        parse_share(self.value(name)).expect("checked when it was built")
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        parse_count(self.value(name)).expect("checked when it was built")
    }

    pub(crate) fn choice(&self, name: &str) -> &str {
        match self.value(name) {
            Value::Text(text) => text,
            Value::Number(_) => "",
        }
    }

    pub(crate) fn all(&self) -> &Parameters {
        &self.parameters
    }
}

/// Whether a parameter may have a value; why not, if not.
pub fn check_value(parameter: &Parameter, value: &Value) -> Result<(), String> {
    match parameter.kind {
        ParameterKind::Duration => parse_duration(value).map(drop),
        ParameterKind::DurationOf { min, max } => {
            let bound = |text: &str| parse_duration(&Value::Text(text.into()));
            match parse_duration(value)? {
                duration if (bound(min)?..=bound(max)?).contains(&duration) => Ok(()),
                duration => Err(format!("{duration:?} is not between {min} and {max}")),
            }
        }
        ParameterKind::Bytes => parse_bytes(value).map(drop),
        ParameterKind::Share => parse_share(value).map(drop),
        ParameterKind::Count { min, max } => match parse_count(value)? {
            count if (min..=max).contains(&count) => Ok(()),
            count => Err(format!("{count} is not between {min} and {max}")),
        },
        ParameterKind::Choice(words) => match value {
            Value::Text(text) if words.contains(&text.as_str()) => Ok(()),
            Value::Text(text) => Err(format!("{text:?} is none of {}", words.join(", "))),
            Value::Number(number) => Err(format!("{number} is none of {}", words.join(", "))),
        },
    }
}

/// `300 ms`, `30s`, `2 min`, `1 h`. A number without a unit is refused: nobody knows which one was meant.
fn parse_duration(value: &Value) -> Result<Duration, String> {
    let text = text_of(value, "a duration such as 30 s")?;
    let (number, unit) = split(&text)?;
    let seconds_each = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "min" | "m" => 60.0,
        "h" => 3600.0,
        _ if number == 0.0 && unit.is_empty() => 1.0,
        _ => return Err(format!("{text:?} has no unit of time: ms, s, min or h")),
    };
    Duration::try_from_secs_f64(number * seconds_each).map_err(|_| format!("{text:?} is no duration"))
}

/// `512`, `64 KiB`, `1 MB`.
fn parse_bytes(value: &Value) -> Result<u64, String> {
    let text = match value {
        Value::Number(number) if *number >= 0.0 && number.fract() == 0.0 => return Ok(*number as u64),
        value => text_of(value, "a size such as 64 MiB")?,
    };
    let (number, unit) = split(&text)?;
    let each = match unit {
        "" | "B" => 1u64,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("{text:?} has no unit of size: B, kB, KiB, MB, MiB, GB or GiB")),
    };
    if number < 0.0 { Err(format!("{text:?} is negative")) } else { Ok((number * each as f64) as u64) }
}

/// `0.3`, `30 %`.
fn parse_share(value: &Value) -> Result<f64, String> {
    let share = match value {
        Value::Number(number) => *number,
        Value::Text(text) => match split(text)? {
            (number, "%") => number / 100.0,
            (number, "") => number,
            (_, unit) => return Err(format!("{unit:?} is no unit of a share: write 30 % or 0.3")),
        },
    };
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{share} is not between 0 and 1")) }
}

fn parse_count(value: &Value) -> Result<u64, String> {
    match value {
        Value::Number(number) if *number >= 0.0 && number.fract() == 0.0 => Ok(*number as u64),
        Value::Number(number) => Err(format!("{number} is no count")),
        Value::Text(text) => text.replace('_', "").trim().parse().map_err(|_| format!("{text:?} is no count")),
    }
}

fn text_of(value: &Value, wanted: &str) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text.trim().to_string()),
        Value::Number(number) if *number == 0.0 => Ok("0".into()),
        Value::Number(number) => Err(format!("{number} is not {wanted}")),
    }
}

/// Number and unit.
fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[test]
    fn values_are_read_as_people_write_them() {
        for (written, ms) in [("300 ms", 300), ("1.5s", 1500), ("2 min", 120_000), ("1h", 3_600_000), ("0", 0)] {
            assert_eq!(parse_duration(&text(written)), Ok(Duration::from_millis(ms)), "{written}");
        }
        for (written, bytes) in [("512", 512), ("64 KiB", 65_536), ("1MB", 1_000_000), ("0.5 GiB", 1 << 29)] {
            assert_eq!(parse_bytes(&text(written)), Ok(bytes), "{written}");
        }
        for (written, share) in [("30 %", 0.3), ("0.25", 0.25), ("100%", 1.0)] {
            assert_eq!(parse_share(&text(written)), Ok(share), "{written}");
        }
        assert_eq!(parse_share(&Value::Number(0.3)), Ok(0.3));
        assert_eq!(parse_count(&text("10_000")), Ok(10_000));
    }

    #[test]
    fn a_duration_that_shows_nothing_is_refused() {
        let jump = crate::faults::find("time.jump").expect("it is in the catalogue");
        let by = |value: &str| Given::check(jump, &Parameters::from([("by".into(), text(value))])).map(|given| given.duration("by"));
        assert_eq!(by("10 s"), Ok(Duration::from_secs(10)));
        for value in ["0", "2 s", "500 ms"] {
            assert!(by(value).is_err_and(|error| error.to_string().contains("not between 10 s and")), "{value}");
        }
    }

    #[test]
    fn what_nobody_could_mean_is_refused() {
        for value in [text("30"), text("fast"), text("3 parsecs"), Value::Number(30.0)] {
            assert!(parse_duration(&value).is_err(), "{value:?}");
        }
        for value in [text("150 %"), Value::Number(1.5), text("-0.1"), text("3 s")] {
            assert!(parse_share(&value).is_err(), "{value:?}");
        }
        for value in [text("1 mile"), text("-1"), Value::Number(1.5)] {
            assert!(parse_bytes(&value).is_err(), "{value:?}");
        }
        assert!(parse_count(&Value::Number(1.5)).is_err());
    }
}
