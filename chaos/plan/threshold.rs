//! Conditions on what was measured, as k6 has them: `p99 < 500 during healthy`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// What is measured. What each one means is said once, in [`ByMetric`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    LatencyMs,
    ThroughputRatio,
    FailoverMs,
    CheckpointSuccess,
    CatchUpS,
    RssMib,
    EventsPerCpuS,
}

/// Conditions by metric, for the schema: a map by an enum would lose its descriptions there.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "the fields are described to schemars, which reads them at compile time")]
pub struct ByMetric {
    /// From the scheduled send time of a record to its committed row, milliseconds, of the slower of the two outputs that tell (row by row, and windows): p50, p90, p99, max; by phase.
    latency_ms: Option<Vec<Threshold>>,
    /// Records that the job took, of those that were sent: value; by phase.
    throughput_ratio: Option<Vec<Threshold>>,
    /// Longest time without output of any partition after a worker was killed while nothing else was broken, milliseconds: p50, p90, p99, max.
    failover_ms: Option<Vec<Threshold>>,
    /// Share of the checkpoints that were begun and reached the store: value.
    checkpoint_success: Option<Vec<Threshold>>,
    /// From the moment everything was undone until nothing is left to take, seconds: value.
    catch_up_s: Option<Vec<Threshold>>,
    /// Resident memory of a worker, MiB: max.
    rss_mib: Option<Vec<Threshold>>,
    /// Records per second of one processor, all workers together: value.
    events_per_cpu_s: Option<Vec<Threshold>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    P50,
    P90,
    P99,
    Max,
    /// The only one of metrics that are one number.
    Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is broken, and the last fault has been over for long enough.
    Healthy,
    /// A fault is active, or was a moment ago.
    Fault,
    /// The load is multiplied.
    Peak,
    /// Everything was undone, until the load ends.
    After,
    /// The whole method.
    All,
}

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    pub aggregate: Aggregate,
    pub comparison: Comparison,
    pub limit: f64,
    pub phase: Phase,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Metric::LatencyMs => "latency_ms",
            Metric::ThroughputRatio => "throughput_ratio",
            Metric::FailoverMs => "failover_ms",
            Metric::CheckpointSuccess => "checkpoint_success",
            Metric::CatchUpS => "catch_up_s",
            Metric::RssMib => "rss_mib",
            Metric::EventsPerCpuS => "events_per_cpu_s",
        }
    }

    /// The aggregates that it has.
    pub fn aggregates(self) -> &'static [Aggregate] {
        match self {
            Metric::LatencyMs | Metric::FailoverMs => &[Aggregate::P50, Aggregate::P90, Aggregate::P99, Aggregate::Max],
            Metric::RssMib => &[Aggregate::Max],
            _ => &[Aggregate::Value],
        }
    }

    /// Whether it is measured by phase.
    pub fn has_phases(self) -> bool {
        matches!(self, Metric::LatencyMs | Metric::ThroughputRatio)
    }
}

impl Aggregate {
    pub fn name(self) -> &'static str {
        match self {
            Aggregate::P50 => "p50",
            Aggregate::P90 => "p90",
            Aggregate::P99 => "p99",
            Aggregate::Max => "max",
            Aggregate::Value => "value",
        }
    }

    /// None for those that are no quantiles.
    pub fn quantile(self) -> Option<f64> {
        match self {
            Aggregate::P50 => Some(0.5),
            Aggregate::P90 => Some(0.9),
            Aggregate::P99 => Some(0.99),
            Aggregate::Max => Some(1.0),
            Aggregate::Value => None,
        }
    }
}

impl Phase {
    pub const EACH: [Phase; 5] = [Phase::Healthy, Phase::Fault, Phase::Peak, Phase::After, Phase::All];

    pub fn name(self) -> &'static str {
        match self {
            Phase::Healthy => "healthy",
            Phase::Fault => "fault",
            Phase::Peak => "peak",
            Phase::After => "after",
            Phase::All => "all",
        }
    }
}

impl Threshold {
    pub fn holds(&self, value: f64) -> bool {
        match self.comparison {
            Comparison::Less => value < self.limit,
            Comparison::LessOrEqual => value <= self.limit,
            Comparison::Greater => value > self.limit,
            Comparison::GreaterOrEqual => value >= self.limit,
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.comparison {
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        };
        write!(f, "{} {sign} {}", self.aggregate.name(), self.limit)?;
        if self.phase == Phase::All { Ok(()) } else { write!(f, " during {}", self.phase.name()) }
    }
}

impl FromStr for Threshold {
    type Err = String;

    /// `AGGREGATE COMPARISON NUMBER [during PHASE]`; an aggregate may be written as k6 does, `p(99)`.
    fn from_str(text: &str) -> Result<Threshold, String> {
        let wrong = || format!("`{text}` is not a condition such as `p99 < 500 during healthy`");
        let at = text.find(['<', '>']).ok_or_else(wrong)?;
        let (aggregate, rest) = text.split_at(at);
        let (comparison, rest) = match rest.as_bytes() {
            [b'<', b'=', ..] => (Comparison::LessOrEqual, &rest[2..]),
            [b'<', ..] => (Comparison::Less, &rest[1..]),
            [b'>', b'=', ..] => (Comparison::GreaterOrEqual, &rest[2..]),
            _ => (Comparison::Greater, &rest[1..]),
        };
        let (limit, phase) = match rest.split_once("during") {
            Some((limit, phase)) => (limit.trim(), Some(phase.trim())),
            None => (rest.trim(), None),
        };
        let aggregate = aggregate.trim().replace(['(', ')'], "");
        let aggregate = [Aggregate::P50, Aggregate::P90, Aggregate::P99, Aggregate::Max, Aggregate::Value]
            .into_iter()
            .find(|known| known.name() == aggregate)
            .ok_or_else(|| format!("`{aggregate}` is none of p50, p90, p99, max, value"))?;
        let phase = match phase {
            None => Phase::All,
            Some(name) => Phase::EACH
                .into_iter()
                .find(|phase| phase.name() == name)
                .ok_or_else(|| format!("`{name}` is none of healthy, fault, peak, after, all"))?,
        };
        let limit: f64 = limit.replace('_', "").parse().ok().filter(|limit: &f64| limit.is_finite()).ok_or_else(wrong)?;
        Ok(Threshold { aggregate, comparison, limit, phase })
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Threshold, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Threshold {
    fn schema_name() -> Cow<'static, str> {
        "Threshold".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A condition: `p99 < 500 during healthy`. Aggregates: p50, p90, p99, max, value. Phases: healthy, fault, peak, after; without one, the whole run.",
            "type": "string"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_k6_and_as_people_write_them() {
        let parsed: Threshold = "p(99)<500 during healthy".parse().expect("a condition");
        assert_eq!(parsed, Threshold { aggregate: Aggregate::P99, comparison: Comparison::Less, limit: 500.0, phase: Phase::Healthy });
        let parsed: Threshold = "value >= 0.95".parse().expect("a condition");
        assert_eq!((parsed.comparison, parsed.limit, parsed.phase), (Comparison::GreaterOrEqual, 0.95, Phase::All));
        assert!(parsed.holds(0.95) && !parsed.holds(0.94));
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }

    #[test]
    fn a_condition_that_says_nothing_is_refused() {
        for wrong in ["p99", "p99 <", "p98 < 5", "p99 < x", "p99 < 5 during lunch", "< 5"] {
            assert!(wrong.parse::<Threshold>().is_err(), "{wrong}");
        }
    }
}
