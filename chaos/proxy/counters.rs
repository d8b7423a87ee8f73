//! What happened on a link, counted: a fault that left no count did not take place.

use crate::toxics::Direction;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// One direction since the link's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Handed to the receiver's kernel.
    pub bytes: u64,
    /// Kafka frames or HTTP messages that began.
    pub frames: u64,
    /// Pieces that waited for latency, and those that waited for a rate or in a drip.
    pub delayed: u64,
    pub paced: u64,
    pub swallowed_bytes: u64,
    /// Times that a connection found its passage stalled.
    pub stalled: u64,
    /// Connections that were cut after a number of bytes.
    pub cut: u64,
}

/// One link since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub accepted: u64,
    pub open: u64,
    /// Living connections that were reset: by the door, by a share per second, by a call, after lost bytes, by a rule.
    pub reset: u64,
    /// Connections that were accepted and reset at once.
    pub turned_away: u64,
    /// Times that the door was shut; while it is, the kernel refuses, which can't be counted.
    pub shut: u64,
    /// The server could not be reached.
    pub upstream_failed: u64,
    pub requests: Flow,
    pub responses: Flow,
    /// Answers whose addresses were rewritten, and those that could not be read for it.
    pub rewritten: u64,
    pub not_rewritten: u64,
    /// Frames that passed unread because of their size, although a rule was there for them.
    pub too_large: u64,
}

impl Counters {
    pub fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::Requests => &self.requests,
            Direction::Responses => &self.responses,
        }
    }

    pub(crate) fn flow_mut(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::Requests => &mut self.requests,
            Direction::Responses => &mut self.responses,
        }
    }
}

/// One rule since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCounters {
    /// Requests that the rule was for, whether or not its share or its number of times was reached.
    pub matched: u64,
    pub fired: u64,
    /// Bytes of the requests on which it fired.
    pub bytes: u64,
    /// Uploads that were cut before their end.
    pub torn: u64,
    /// Being held now, and released so far.
    pub held: u64,
    pub released: u64,
    /// Released frames that went to the server.
    pub delivered: u64,
    /// Held frames whose own connection to the server ended before they were released.
    pub lost: u64,
}

/// Counters that can be waited for.
#[derive(Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T: Copy> Watched<T> {
    pub fn get(&self) -> T {
        *self.value.lock()
    }

    pub fn add(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.value.lock());
        self.changed.notify_all();
    }

    /// Waits until they are as wanted; false when the time is over first.
    pub fn wait_for(&self, timeout: Duration, wanted: impl Fn(&T) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut value = self.value.lock();
        loop {
            if wanted(&value) {
                return true;
            }
            if self.changed.wait_until(&mut value, deadline).timed_out() {
                return wanted(&value);
            }
        }
    }
}
