//! What the generating sources (`nexmark`, `datagen`) share: splits, pacing, positions.
//!
//! **A position is a row's ordinal in its split**, and a row is a function of `(options, split, ordinal)` alone. So any position
//! can be generated directly, and `[from, to)` gives the same rows on any worker, at any time, in batches of any size.
//! Nothing of the wall clock goes into a row, also not with `start` = 'now': there the clock decides, once in the job's
//! life, at which ordinal the split starts, and ordinals have fixed event times ([`EventClock`]).
//!
//! Pacing says only when a row may be taken, and a replay (a take with an exact end) is not paced.

pub(crate) mod random;

use crate::options::OptionReader;
use arrow_array::RecordBatch;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{TakeLimit, Wakeup};
use streamshield_core::ports::source::{
    Origin, RowOrigins, Source, SourceBatch, SourceError, SourceErrorKind, SourceReader, Split, SplitId, SplitState,
};

/// 2026-01-01 00:00:00 UTC: event time starts here unless the table says otherwise.
pub(crate) const DEFAULT_START_MS: i64 = 1_767_225_600_000;
/// A generator that is behind its pace (its slot was busy) catches up by at most this much at once.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Makes rows.
pub(crate) trait Generator: Send + Sync + 'static {
    /// Rows `[from, from + count)` of a split.
    fn rows(&self, split: SplitId, from: Offset, count: usize) -> RecordBatch;
    /// The first row of a split that stands at or after this event number (see [`EventClock`]).
    fn row_at_event(&self, split: SplitId, event: i64) -> Offset;
    /// The event number of a row.
    fn event_of_row(&self, split: SplitId, row: Offset) -> i64;
    /// About how many bytes a row takes, for limits.
    fn row_bytes(&self) -> usize;
}

/// Event time as a function of an event's number: `base + number × interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventClock {
    base_ms: i64,
    pub interval_ns: i64,
    /// The base is 1970, splits start at the number of the moment, and a row may be taken when its time has come.
    pub follows_wall_clock: bool,
}

impl EventClock {
    pub(crate) fn new(base_ms: i64, interval_ns: i64) -> Self {
        EventClock { base_ms, interval_ns: interval_ns.max(1), follows_wall_clock: false }
    }

    pub(crate) fn from_now(interval_ns: i64) -> Self {
        EventClock { base_ms: 0, interval_ns: interval_ns.max(1), follows_wall_clock: true }
    }

    pub(crate) fn time_ms(&self, event: i64) -> i64 {
        self.base_ms + (i128::from(event) * i128::from(self.interval_ns) / 1_000_000) as i64
    }

    pub(crate) fn event_at(&self, time_ns: i128) -> i64 {
        ((time_ns - i128::from(self.base_ms) * 1_000_000) / i128::from(self.interval_ns)) as i64
    }
}

/// The options that generators share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub splits: u32,
    pub seed: u64,
    /// Over all splits; None is as fast as possible.
    pub rows_per_second: Option<f64>,
    /// Over all splits; None is unbounded.
    pub number_of_rows: Option<u64>,
}

impl Shape {
    pub(crate) fn read(options: &mut OptionReader<'_>, default_rows_per_second: Option<f64>) -> Self {
        let splits = options.number::<u32>("splits", "a number of splits from 1 to 4096");
        if splits.is_some_and(|splits| splits == 0 || splits > 4096) {
            options.error("splits", "'splits' must be from 1 to 4096".into(), None);
        }
        let rate = options.number::<f64>("rows-per-second", "a number of rows").map_or(default_rows_per_second, Some);
        if rate.is_some_and(|rate| !rate.is_finite() || rate < 0.0) {
            options.error("rows-per-second", "'rows-per-second' must be 0 (no limit) or more".into(), None);
        }
        Shape {
            splits: splits.unwrap_or(1).clamp(1, 4096),
            seed: options.number("seed", "a whole number from 0 on").unwrap_or(0),
            rows_per_second: rate.filter(|rate| rate.is_finite() && *rate > 0.0),
            number_of_rows: options.number("number-of-rows", "a number of rows"),
        }
    }

    /// Rows of one split: the total dealt out one by one.
    pub(crate) fn rows_of_split(&self, split: SplitId) -> Option<i64> {
        let splits = u64::from(self.splits);
        self.number_of_rows.map(|rows| i64::try_from(rows / splits + u64::from(u64::from(split) < rows % splits)).unwrap_or(i64::MAX))
    }
}

/// An instant of event time: `yyyy-MM-dd HH:mm:ss[.SSS]` in UTC, or milliseconds since 1970, or `now`.
pub(crate) enum StartTime {
    At(i64),
    Now,
}

pub(crate) fn start_time(options: &mut OptionReader<'_>, key: &str) -> StartTime {
    let Some(text) = options.text(key).map(str::trim) else { return StartTime::At(DEFAULT_START_MS) };
    if text.eq_ignore_ascii_case("now") {
        return StartTime::Now;
    }
    let parsed = text.parse().ok().or_else(|| crate::formats::timestamp_ms(text));
    if parsed.is_none() {
        options.error(
            key,
            format!("'{key}' = '{text}' is no time"),
            Some("write '2026-01-01 00:00:00' (UTC), milliseconds since 1970, or 'now'".into()),
        );
    }
    StartTime::At(parsed.unwrap_or(DEFAULT_START_MS))
}

/// A table whose rows are made.
pub(crate) struct GeneratorSource<G> {
    pub container: String,
    pub generator: Arc<G>,
    pub shape: Shape,
    pub clock: EventClock,
    pub keep_origins: bool,
}

impl<G: Generator> Source for GeneratorSource<G> {
    fn discover(&self) -> Result<Vec<Split>, SourceError> {
        let now = self.clock.event_at(wall_clock_ns());
        let split = |id| {
            let start = if self.clock.follows_wall_clock { self.generator.row_at_event(id, now) } else { 0 };
            Split { id, start, end: self.shape.rows_of_split(id).map(|rows| start.saturating_add(rows)) }
        };
        Ok((0..self.shape.splits).map(split).collect())
    }

    fn reader(&self, _wakeup: Arc<Wakeup>) -> Result<Box<dyn SourceReader>, SourceError> {
        Ok(Box::new(GeneratorReader {
            container: self.container.clone(),
            generator: self.generator.clone(),
            clock: self.clock,
            rows_per_second: self.shape.rows_per_second.map(|rate| rate / f64::from(self.shape.splits)),
            keep_origins: self.keep_origins,
            cursors: BTreeMap::new(),
        }))
    }
}

struct GeneratorReader<G> {
    container: String,
    generator: Arc<G>,
    clock: EventClock,
    /// Of one split.
    rows_per_second: Option<f64>,
    keep_origins: bool,
    cursors: BTreeMap<SplitId, SplitCursor>,
}

struct SplitCursor {
    position: Offset,
    end: Option<Offset>,
    /// From when and where the pace counts; set by the first take that is no replay.
    anchor: Option<(Instant, Offset)>,
}

impl<G: Generator> GeneratorReader<G> {
    /// Rows that may be taken by now, as the position after them.
    fn due(&mut self, split: SplitId) -> Offset {
        if self.clock.follows_wall_clock {
            return self.generator.row_at_event(split, self.clock.event_at(wall_clock_ns()) + 1);
        }
        let (Some(rate), Some(cursor)) = (self.rows_per_second, self.cursors.get_mut(&split)) else { return Offset::MAX };
        let (since, from) = cursor.anchor.get_or_insert((Instant::now(), cursor.position));
        let elapsed = since.elapsed();
        let due = from.saturating_add((elapsed.as_secs_f64() * rate) as Offset).saturating_add(1);
        if (due - cursor.position) as f64 > rate * CATCH_UP.as_secs_f64() + 1.0 {
            // Too far behind to be made up for: count anew from what one catch-up gives.
            let caught_up = cursor.position.saturating_add((rate * CATCH_UP.as_secs_f64()) as Offset);
            cursor.anchor = Some((Instant::now(), caught_up));
            return caught_up.saturating_add(1);
        }
        due
    }

    /// When the row at this position may be taken.
    fn due_in(&self, split: SplitId, cursor: &SplitCursor) -> Duration {
        if self.clock.follows_wall_clock {
            let at_ns = i128::from(self.generator.event_of_row(split, cursor.position)) * i128::from(self.clock.interval_ns);
            return Duration::from_nanos(u64::try_from(at_ns - wall_clock_ns()).unwrap_or(0));
        }
        match (self.rows_per_second, cursor.anchor) {
            (Some(rate), Some((since, from))) => time_of(cursor.position - from, rate).saturating_sub(since.elapsed()),
            _ => Duration::ZERO,
        }
    }

    /// When the last row before the position was due, for latency metrics; None without a pace.
    fn due_at_ms(&self, split: SplitId, position: Offset) -> Option<i64> {
        if self.clock.follows_wall_clock {
            return Some(self.clock.time_ms(self.generator.event_of_row(split, position - 1)));
        }
        let (since, from) = self.cursors.get(&split)?.anchor?;
        let due = time_of(position - 1 - from, self.rows_per_second?);
        let ago = since.elapsed().saturating_sub(due);
        Some((wall_clock_ns() / 1_000_000) as i64 - ago.as_millis() as i64)
    }
}

impl<G: Generator> SourceReader for GeneratorReader<G> {
    fn add_split(&mut self, split: &Split, from: Offset) -> Result<(), SourceError> {
        self.cursors.insert(split.id, SplitCursor { position: from, end: split.end, anchor: None });
        Ok(())
    }

    fn remove_split(&mut self, split: SplitId) {
        self.cursors.remove(&split);
    }

    fn take(&mut self, split: SplitId, limit: &TakeLimit) -> Result<SourceBatch, SourceError> {
        let due = if limit.end.is_some() { Offset::MAX } else { self.due(split) };
        let Some(cursor) = self.cursors.get_mut(&split) else {
            return Err(SourceError { kind: SourceErrorKind::Stop, message: format!("split {split} of {} was not added", self.container) });
        };
        let from = cursor.position;
        let end = cursor.end.unwrap_or(Offset::MAX);
        let stop = end.min(due).min(limit.end.unwrap_or(Offset::MAX));
        let rows_max = limit.messages.min((limit.bytes / self.generator.row_bytes().max(1)).max(1));
        let count = usize::try_from(stop.saturating_sub(from)).unwrap_or(0).min(rows_max);
        cursor.position += count as Offset;
        let to = cursor.position;
        let state = match () {
            () if to >= end => SplitState::Finished,
            () if to >= due => SplitState::Idle,
            () => SplitState::More,
        };
        let rows = self.generator.rows(split, from, count);
        let origins: Option<Box<dyn RowOrigins>> =
            (self.keep_origins && count > 0).then(|| Box::new(GeneratedRows { container: self.container.clone(), split, from }) as _);
        let newest_timestamp_ms = if count > 0 { self.due_at_ms(split, to) } else { None };
        Ok(SourceBatch {
            bytes: rows.get_array_memory_size(),
            rows,
            to,
            records: count,
            bad: Vec::new(),
            newest_timestamp_ms,
            origins,
            state,
        })
    }

    fn ready_in(&self) -> Option<Duration> {
        let open = self.cursors.iter().filter(|(_, cursor)| cursor.end.is_none_or(|end| cursor.position < end));
        open.map(|(split, cursor)| self.due_in(*split, cursor)).min()
    }
}

/// How long so many rows take at a pace; one that is next to nothing has no end.
fn time_of(rows: Offset, rows_per_second: f64) -> Duration {
    Duration::try_from_secs_f64((rows as f64 / rows_per_second).max(0.0)).unwrap_or(Duration::MAX)
}

fn wall_clock_ns() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128)
}

/// Generated rows have no bytes to keep: split and ordinal say everything.
struct GeneratedRows {
    container: String,
    split: SplitId,
    from: Offset,
}

impl RowOrigins for GeneratedRows {
    fn origin(&self, row: usize) -> Origin {
        Origin {
            container: self.container.clone(),
            split: self.split,
            offset: self.from + row as Offset,
            timestamp_ms: None,
            key: None,
            payload: None,
            headers: Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const ALL: TakeLimit = TakeLimit { messages: 1_000_000, bytes: usize::MAX, end: None };

    /// Reads `[from, to)` of a split in takes of at most `messages` rows.
    pub(crate) fn read(source: &dyn Source, split: &Split, from: Offset, to: Offset, messages: usize) -> Vec<RecordBatch> {
        let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
        reader.add_split(split, from).unwrap();
        let mut batches = Vec::new();
        let mut at = from;
        while at < to {
            let batch = reader.take(split.id, &TakeLimit { messages, bytes: usize::MAX, end: Some(to) }).unwrap();
            assert_eq!(batch.to, at + batch.rows.num_rows() as Offset);
            assert!(batch.to > at);
            at = batch.to;
            batches.push(batch.rows);
        }
        batches
    }

    struct Ordinals;
    impl Generator for Ordinals {
        fn rows(&self, _split: SplitId, _from: Offset, count: usize) -> RecordBatch {
            let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(count));
            RecordBatch::try_new_with_options(Arc::new(arrow_schema::Schema::empty()), vec![], &options).unwrap()
        }
        fn row_at_event(&self, _split: SplitId, event: i64) -> Offset {
            event
        }
        fn event_of_row(&self, _split: SplitId, row: Offset) -> i64 {
            row
        }
        fn row_bytes(&self) -> usize {
            8
        }
    }

    fn source(shape: Shape, clock: EventClock) -> GeneratorSource<Ordinals> {
        GeneratorSource { container: "ordinals".into(), generator: Arc::new(Ordinals), shape, clock, keep_origins: true }
    }

    #[test]
    fn rows_are_dealt_out_to_the_splits() {
        let shape = Shape { splits: 3, seed: 0, rows_per_second: None, number_of_rows: Some(10) };
        let splits = source(shape, EventClock::new(0, 1)).discover().unwrap();
        assert_eq!(splits.iter().map(|split| split.end.unwrap()).collect::<Vec<_>>(), [4, 3, 3]);
        let mut reader = source(shape, EventClock::new(0, 1)).reader(Arc::new(Wakeup::default())).unwrap();
        reader.add_split(&splits[0], 1).unwrap();
        let batch = reader.take(0, &ALL).unwrap();
        assert_eq!((batch.records, batch.to, batch.state), (3, 4, SplitState::Finished));
        assert_eq!(batch.origins.unwrap().origin(2).offset, 3);
    }

    #[test]
    fn a_paced_split_is_idle_until_its_next_row_is_due_and_a_replay_is_not_paced() {
        let shape = Shape { splits: 1, seed: 0, rows_per_second: Some(0.001), number_of_rows: None };
        let source = source(shape, EventClock::new(0, 1));
        let splits = source.discover().unwrap();
        let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
        reader.add_split(&splits[0], 0).unwrap();
        let replayed = reader.take(0, &TakeLimit { end: Some(500), ..ALL }).unwrap();
        assert_eq!((replayed.to, replayed.state), (500, SplitState::More));
        let first = reader.take(0, &ALL).unwrap();
        assert_eq!((first.to, first.state), (501, SplitState::Idle));
        assert_eq!(reader.take(0, &ALL).unwrap().records, 0);
        assert!(reader.ready_in().unwrap() > Duration::from_secs(900));
    }

    #[test]
    fn a_split_that_follows_the_wall_clock_starts_now_and_has_its_backlog_after_a_pause() {
        let shape = Shape { splits: 1, seed: 0, rows_per_second: None, number_of_rows: None };
        let source = source(shape, EventClock::from_now(1_000_000));
        let split = &source.discover().unwrap()[0];
        let now_ms = (wall_clock_ns() / 1_000_000) as i64;
        assert!((split.start - now_ms).abs() < 10_000);
        let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
        reader.add_split(split, split.start - 5_000).unwrap();
        let batch = reader.take(0, &ALL).unwrap();
        assert!(batch.records >= 5_000, "{}", batch.records);
        assert_eq!(batch.newest_timestamp_ms, Some(batch.to - 1));
        assert!(reader.ready_in().unwrap() < Duration::from_secs(1));
    }

    #[test]
    fn a_pace_next_to_nothing_waits_without_end_and_rows_without_number_have_no_end_before_their_start() {
        let shape = Shape { splits: 1, seed: 0, rows_per_second: Some(1e-20), number_of_rows: Some(u64::MAX) };
        let paced = source(shape, EventClock::new(0, 1));
        let split = &paced.discover().unwrap()[0];
        let mut reader = paced.reader(Arc::new(Wakeup::default())).unwrap();
        reader.add_split(split, 0).unwrap();
        assert_eq!(reader.take(0, &ALL).unwrap().to, 1);
        assert!(reader.ready_in().unwrap() > Duration::from_secs(1 << 40));
        let split = &source(shape, EventClock::from_now(1_000_000)).discover().unwrap()[0];
        assert_eq!(split.end, Some(Offset::MAX));
    }
}
