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

/// Whether bytes get through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What happens to those who connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    #[default]
    Open,
    /// Nobody listens, as after a crash: living connections are reset, new ones refused. The port stays the proxy's.
    Refuse,
    /// New connections are accepted and reset at once; living ones are reset, too.
    ResetAtOnce,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flapping_link_begins_with_down() {
        let (second, flapping) = (Duration::from_secs(1), Flapping { down: Duration::from_secs(2), up: Duration::from_secs(3) });
        assert_eq!(flapping.phase(Duration::ZERO), (true, 2 * second));
        assert_eq!(flapping.phase(2 * second), (false, 3 * second));
        assert_eq!(flapping.phase(4 * second), (false, second));
        assert_eq!(flapping.phase(6 * second), (true, second));
        assert_eq!(Flapping { down: Duration::ZERO, up: Duration::ZERO }.phase(second).0, false);
    }
}
