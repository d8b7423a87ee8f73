//! The trace: every call and its outcome, as a hash that two runs of a seed must share, and as lines for people.

use std::collections::VecDeque;
use std::fmt::Write;
use xxhash_rust::xxh3::Xxh3;

/// Lines that are kept for a report.
const KEPT_LINES: usize = 4_096;

/// See the module text.
pub struct Trace {
    hash: Xxh3,
    calls: u64,
    tail: VecDeque<String>,
    line: String,
    is_echoed: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Trace { hash: Xxh3::new(), calls: 0, tail: VecDeque::with_capacity(KEPT_LINES), line: String::new(), is_echoed: false }
    }
}

impl Trace {
    /// Adds one line: when, who, what, and how it ended.
    pub fn add(&mut self, now_ms: i64, who: &str, what: std::fmt::Arguments<'_>) {
        self.line.clear();
        write!(self.line, "{now_ms} {who} {what}").expect("a string takes everything");
        self.hash.update(self.line.as_bytes());
        self.hash.update(b"\n");
        self.calls += 1;
        if self.is_echoed {
            println!("{}", self.line);
        }
        // The oldest line's memory holds the newest one: there are ten thousands of them per run.
        let mut kept = if self.tail.len() == KEPT_LINES { self.tail.pop_front().unwrap_or_default() } else { String::new() };
        kept.clone_from(&self.line);
        self.tail.push_back(kept);
    }

    /// Prints every line from now on.
    pub fn echo(&mut self) {
        self.is_echoed = true;
    }

    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// How many lines there were.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The last lines, the oldest first.
    pub fn tail(&self, lines: usize) -> impl Iterator<Item = &str> {
        self.tail.iter().skip(self.tail.len().saturating_sub(lines)).map(String::as_str)
    }
}
