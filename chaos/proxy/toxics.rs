//! What a link can suffer from, as values: set, read back, compared.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One way of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the client to the server.
    Requests,
    /// From the server to the client.
    Responses,
}

/// Whether bytes get through. Of several at once the last in this order is felt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passage {
    #[default]
    Open,
    /// Bytes are read and vanish, also the end of a connection; nobody gets a reset. A connection that has lost bytes is reset
    /// when the passage opens: what would follow makes no sense to the receiver.
    Swallows,
    /// Bytes wait and arrive when the passage opens, as TCP has it after a partition.
    Stalls,
}

/// A few bytes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drip {
    pub bytes: usize,
    pub pause: Duration,
}

/// What one direction suffers from. The default: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Toxics {
    pub latency: Duration,
    /// Latency varies by up to this much in both ways, evenly; the order of bytes is kept.
    pub jitter: Duration,
    pub bytes_per_second: Option<u64>,
    pub passage: Passage,
    pub drip: Option<Drip>,
    /// A connection is reset once it has carried this many bytes this way, counted from its start: cuts frames in the middle.
    pub cut_after_bytes: Option<u64>,
}

impl Toxics {
    /// The half-open connection.
    pub fn swallowing() -> Toxics {
        Toxics { passage: Passage::Swallows, ..Toxics::default() }
    }

    /// The partition that heals.
    pub fn stalling() -> Toxics {
        Toxics { passage: Passage::Stalls, ..Toxics::default() }
    }

    /// A link that is far away.
    pub fn latency(latency: Duration) -> Toxics {
        Toxics { latency, ..Toxics::default() }
    }

    /// Both at once: times add up, of bounds the tighter one holds, and the narrower passage.
    pub fn and(self, other: Toxics) -> Toxics {
        let least = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        let drip = match (self.drip, other.drip) {
            (Some(one), Some(other)) => Some(Drip { bytes: one.bytes.min(other.bytes), pause: one.pause.max(other.pause) }),
            (one, other) => one.or(other),
        };
        Toxics {
            latency: self.latency + other.latency,
            jitter: self.jitter + other.jitter,
            bytes_per_second: least(self.bytes_per_second, other.bytes_per_second),
            passage: self.passage.max(other.passage),
            drip,
            cut_after_bytes: least(self.cut_after_bytes, other.cut_after_bytes),
        }
    }
}

/// What happens to those who connect. Of several at once the last in this order is felt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    #[default]
    Open,
    /// New connections are accepted and reset at once; living ones are reset, too.
    ResetAtOnce,
    /// Nobody listens, as after a crash: living connections are reset, new ones refused. The port stays the proxy's.
    Refuse,
}

/// Up and down by turns; down is [`Door::Refuse`]. It begins with down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flapping {
    pub down: Duration,
    pub up: Duration,
}

impl Flapping {
    /// Whether the link is down so long after the start, and for how long it stays as it is.
    pub(crate) fn phase(&self, since: Duration) -> (bool, Duration) {
        let period = (self.down + self.up).as_nanos().max(1);
        let at = since.as_nanos() % period;
        let (down, left) = match self.down.as_nanos() {
            down if at < down => (true, down - at),
            _ => (false, period - at),
        };
        (down, Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)))
    }
}

/// All that a link suffers from for one reason. The default: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Strain {
    pub requests: Toxics,
    pub responses: Toxics,
    pub door: Door,
    pub flapping: Option<Flapping>,
    /// The share of the living connections that is reset within each second, from 0 to 1.
    pub reset_share: f64,
}

impl Strain {
    /// The same in all of these directions.
    pub fn of(directions: &[Direction], toxics: Toxics) -> Strain {
        let mut strain = Strain::default();
        directions.iter().for_each(|direction| *strain.toxics_mut(*direction) = toxics);
        strain
    }

    pub(crate) fn toxics(&self, direction: Direction) -> Toxics {
        match direction {
            Direction::Requests => self.requests,
            Direction::Responses => self.responses,
        }
    }

    pub(crate) fn toxics_mut(&mut self, direction: Direction) -> &mut Toxics {
        match direction {
            Direction::Requests => &mut self.requests,
            Direction::Responses => &mut self.responses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_toxics_at_once_times_add_up_and_the_tighter_bound_holds() {
        let ms = Duration::from_millis;
        let one = Toxics {
            latency: ms(100),
            jitter: ms(20),
            bytes_per_second: Some(1_000),
            passage: Passage::Stalls,
            drip: Some(Drip { bytes: 3, pause: ms(1) }),
            cut_after_bytes: None,
        };
        let other = Toxics {
            latency: ms(50),
            jitter: ms(5),
            bytes_per_second: Some(200),
            passage: Passage::Swallows,
            drip: Some(Drip { bytes: 64, pause: ms(5) }),
            cut_after_bytes: Some(9),
        };
        let both = Toxics {
            latency: ms(150),
            jitter: ms(25),
            bytes_per_second: Some(200),
            passage: Passage::Stalls,
            drip: Some(Drip { bytes: 3, pause: ms(5) }),
            cut_after_bytes: Some(9),
        };
        assert_eq!((one.and(other), other.and(one)), (both, both));
        assert_eq!(one.and(Toxics::default()), one);
    }

    #[test]
    fn a_flapping_link_begins_with_down() {
        let (second, flapping) = (Duration::from_secs(1), Flapping { down: Duration::from_secs(2), up: Duration::from_secs(3) });
        assert_eq!(flapping.phase(Duration::ZERO), (true, 2 * second));
        assert_eq!(flapping.phase(2 * second), (false, 3 * second));
        assert_eq!(flapping.phase(4 * second), (false, second));
        assert_eq!(flapping.phase(6 * second), (true, second));
        assert!(!Flapping { down: Duration::ZERO, up: Duration::ZERO }.phase(second).0);
    }
}
