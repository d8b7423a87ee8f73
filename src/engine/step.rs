//! The steps of a region: take rows of the input, go on emitting, tick.
//!
//! A step that is taken live and a step that is replayed run the same code: [`Region::apply_frames`] and [`Region::emit`] know
//! nothing of whether they are watched.

use crate::crash_points;
use crate::exchange::frame::{self, Frame};
use crate::flight::Notes;
use crate::operators::scan::Scan;
use crate::operators::{ChainOutput, EpochContext, InputWatermarks};
use crate::plan::WatermarkPlan;
use crate::region::{Input, OpenEpoch, Region, RegionError, SourceInput};
use std::collections::BTreeMap;
use streamshield_core::epoch::Step;
use streamshield_core::ids::{Offset, StageId};
use streamshield_core::ports::log::{LogError, LogErrorKind, LogReader, TakeLimit};
use streamshield_core::ports::source::{SourceBatch, SourceError, SourceErrorKind, SourceReader, SplitState};
use streamshield_core::watermark::{UpstreamWatermark, Watermark, hear};

/// Records of one step of a source: large enough to work columnar, small enough for the cache.
const STEP_RECORDS_MAX: usize = 8_192;
const STEP_BYTES_MAX: usize = 4 << 20;
/// Messages of one step of an exchange; each holds many rows.
const STEP_MESSAGES_MAX: usize = 64;
/// Groups emitted in one portion. Part of the semantics: portions are replayed as they were taken.
pub const EMIT_ROWS_MAX: usize = 65_536;
/// A split without any row holds nothing back after this many ms, also where the table sets no idle time-out.
const EMPTY_SPLIT_IDLE_MS: i64 = 2_000;

/// A region makes an epoch only to pass what is unseen in its input this many ms after its last one at the earliest: where rows come, they take it along.
const UNSEEN_PASSED_AFTER_MS: i64 = 5_000;

/// One step of whatever there is to do. False: there was nothing.
pub fn step(
    region: &mut Region,
    sources: &mut BTreeMap<StageId, Box<dyn SourceReader>>,
    exchange: &mut dyn LogReader,
    notes: &mut Notes,
) -> Result<bool, RegionError> {
    crash_points::pass_step_of(region.id);
    fail::fail_point!("engine::step", |_| Err(RegionError::Failed("fail point engine::step".into())));
    if region.pending_emit {
        notes.at(region.place());
        region.step_emit()?;
        region.watch_memory();
        return Ok(true);
    }
    let moved = match &region.input {
        Input::Source(_) => {
            let reader = sources.get_mut(&region.id.stage).expect("a slot has a reader for each source stage of its regions");
            let took = region.step_source(reader.as_mut(), notes)?;
            took || region.tick(reader.as_ref()) || region.pass_unseen(reader.as_ref())
        }
        Input::Exchange(_) => region.step_exchange(exchange, notes)?,
    };
    region.watch_memory();
    Ok(moved)
}

/// Where the region's input ends, if everything before that has been taken.
pub fn met_end(region: &Region, sources: &BTreeMap<StageId, Box<dyn SourceReader>>) -> Option<Offset> {
    match &region.input {
        Input::Source(source) => sources.get(&region.id.stage)?.met_end(source.split.id),
        Input::Exchange(exchange) => exchange.met_end,
    }
}

impl Region {
    /// Asks for a flush when the state outgrows its budget: only what is flushed can be evicted.
    fn watch_memory(&mut self) {
        let bytes_max = self.settings.state_bytes_max;
        if !self.has_tables || self.state.total_bytes() <= bytes_max {
            return;
        }
        if self.state.bytes().dirty > bytes_max / 4 {
            self.flush_wanted = true;
        } else if !self.flush_in_flight
            && let Err(error) = self.state.evict(bytes_max / 2)
        {
            tracing::warn!(region = %self.id, %error, "could not evict");
        }
    }

    /// Takes a step of a source split. False: there was nothing to take.
    pub fn step_source(&mut self, reader: &mut dyn SourceReader, notes: &mut Notes) -> Result<bool, RegionError> {
        let Input::Source(source) = &self.input else { unreachable!("a source step on an exchange") };
        // A bounded split knows its end itself; `end` is for exact replays, which sources need none of.
        let limit = TakeLimit { messages: STEP_RECORDS_MAX, bytes: STEP_BYTES_MAX, end: None };
        // Who dies of parsing these rows has not died of the region before.
        notes.nothing();
        let batch = reader.take(source.split.id, &limit)?;
        let state = batch.state;
        let took = batch.to > self.position;
        if took {
            // Not before: most turns take nothing, and a note is a write.
            notes.at(self.place());
            crash_points::pass_rows_of(self.id);
            self.open();
            let mut open = self.open.take().expect("opened above");
            let result = self.apply_source(&mut open, batch);
            self.open = Some(open);
            result?;
        }
        if state == SplitState::Finished {
            self.open();
            self.upstreams[0] = UpstreamWatermark { watermark: Watermark::MAX, idle: false };
            self.combined = Watermark::MAX;
            self.output_watermark = Watermark::MAX;
            let Input::Source(source) = &mut self.input else { unreachable!("checked above") };
            source.finished = true;
        }
        Ok(took || state == SplitState::More)
    }

    fn apply_source(&mut self, open: &mut OpenEpoch, batch: SourceBatch) -> Result<(), RegionError> {
        let now_ms = open.context.now_ms;
        open.counts.records_in += batch.records as u64;
        open.counts.newest_timestamp_ms =
            open.counts.newest_timestamp_ms.max(batch.newest_timestamp_ms.or(Some(self.settings.clock.wall_ms())));
        open.steps.push(Step::Read { input: 0, from: self.position, to: batch.to });
        self.position = batch.to;
        for bad in batch.bad {
            self.refuse(open, Some(bad.origin), None, &bad.reason)?;
        }
        let Input::Source(source) = &mut self.input else { unreachable!("a source step on an exchange") };
        source.last_rows_ms = now_ms;
        let scanned = source.scan.process(&batch.rows, self.upstreams[0].watermark, &mut open.context)?;
        self.upstreams[0].idle = false;
        match &source.watermark {
            Some(WatermarkPlan::EventTime { .. }) => {
                self.upstreams[0].watermark.advance(scanned.watermark);
            }
            Some(WatermarkPlan::ProcessingTime { .. }) => {
                self.upstreams[0].watermark.advance(Scan::processing_time(now_ms));
            }
            None => {}
        }
        self.combined.advance(self.upstreams[0].watermark);
        self.output_watermark.advance(self.combined);
        let origins = batch.origins;
        for rejected in scanned.rejected {
            let origin = origins.as_ref().map(|origins| origins.origin(rejected.row));
            self.refuse(open, origin, None, &rejected.reason)?;
        }
        let mut out = ChainOutput::default();
        let inputs = InputWatermarks { others: Watermark::MAX, combined: Watermark::MIN };
        self.chain.process(scanned.rows, inputs, &mut open.context, self.state.as_mut(), &mut out)?;
        let kept = scanned.kept;
        self.route(open, out, &mut |row| {
            let row = kept.as_ref().map_or(Some(row), |kept| kept.get(row).map(|row| *row as usize))?;
            origins.as_ref().map(|origins| origins.origin(row))
        })
    }

    /// Takes a step of an exchange partition. False: there was nothing to take.
    pub fn step_exchange(&mut self, reader: &mut dyn LogReader, notes: &mut Notes) -> Result<bool, RegionError> {
        let limit = TakeLimit { messages: STEP_MESSAGES_MAX, bytes: STEP_BYTES_MAX, end: None };
        let Some(taken) = self.take_frames(reader, &limit, notes)? else { return Ok(false) };
        crash_points::pass_rows_of(self.id);
        self.open();
        let mut open = self.open.take().expect("opened above");
        open.steps.push(Step::Read { input: 0, from: self.position, to: taken.next });
        open.counts.newest_timestamp_ms = open.counts.newest_timestamp_ms.max(taken.newest_timestamp_ms);
        self.position = taken.next;
        let result = self.apply_and_route(&mut open, taken.frames);
        self.open = Some(open);
        result.map(|()| true)
    }

    fn apply_and_route(&mut self, open: &mut OpenEpoch, frames: Vec<Frame>) -> Result<(), RegionError> {
        let mut out = ChainOutput::default();
        open.counts.records_in += self.apply_frames(frames, &mut open.context, &mut out)?;
        self.route(open, out, &mut |_| None)
    }

    /// What is there now on the exchange partition, decoded.
    pub fn take_frames(
        &mut self,
        reader: &mut dyn LogReader,
        limit: &TakeLimit,
        notes: &mut Notes,
    ) -> Result<Option<TakenFrames>, RegionError> {
        let place = self.place();
        let Input::Exchange(exchange) = &mut self.input else { unreachable!("an exchange step on a source") };
        let schema = exchange.schema.clone();
        let mut frames = Vec::new();
        let mut damaged = None;
        let mut newest_timestamp_ms = None;
        let taken = reader.take(&exchange.partition, limit, &mut |messages| {
            notes.at(place);
            for message in messages {
                newest_timestamp_ms = newest_timestamp_ms.max((message.timestamp_ms >= 0).then_some(message.timestamp_ms));
                match frame::decode(message.payload.unwrap_or_default(), &schema) {
                    Ok(decoded) => frames.extend(decoded),
                    Err(error) => damaged = Some(format!("offset {}: {error}", message.offset)),
                }
            }
        })?;
        exchange.met_end = taken.at_end;
        if let Some(damaged) = damaged {
            return Err(RegionError::Stop(format!("{} holds a message that is none of ours, {damaged}", exchange.partition)));
        }
        Ok((taken.messages > 0).then_some(TakenFrames { frames, next: taken.next, newest_timestamp_ms }))
    }

    /// Merges frames in order, then emits the first portion of what their watermarks closed. Returns the rows taken.
    ///
    /// The watermark moves after each frame, and not after each step: how many frames a step holds decides nothing (E-5).
    pub fn apply_frames(&mut self, frames: Vec<Frame>, context: &mut EpochContext, out: &mut ChainOutput) -> Result<u64, RegionError> {
        let mut rows_in = 0;
        for frame in frames {
            let Input::Exchange(exchange) = &self.input else { unreachable!("frames on a source") };
            let Some(&upstream) = exchange.upstream_index.get(&frame.upstream) else {
                return Err(RegionError::Stop(format!("{} holds rows of {}, which is no upstream", exchange.partition, frame.upstream)));
            };
            if let Some(rows) = frame.rows {
                rows_in += rows.num_rows() as u64;
                let inputs = InputWatermarks { others: self.others(upstream), combined: self.combined };
                self.chain.process(rows, inputs, context, self.state.as_mut(), out)?;
            }
            hear(&mut self.upstreams, upstream, frame.watermark, &mut self.combined);
        }
        self.emit(context, out)?;
        Ok(rows_in)
    }

    /// Combined watermark of all upstreams but one; MAX when the others are idle or there are none.
    fn others(&self, upstream: usize) -> Watermark {
        let others = self.upstreams.iter().enumerate().filter(|(index, other)| *index != upstream && !other.idle);
        others.map(|(_, other)| other.watermark).min().unwrap_or(Watermark::MAX)
    }

    /// Emits one portion of the closed windows.
    pub fn emit(&mut self, context: &mut EpochContext, out: &mut ChainOutput) -> Result<(), RegionError> {
        self.pending_emit = self.has_tables && self.chain.advance(self.combined, EMIT_ROWS_MAX, context, self.state.as_mut(), out)?;
        if !self.pending_emit {
            // Downstream hears of a watermark only when all rows before it are out.
            self.output_watermark.advance(self.combined);
        }
        Ok(())
    }

    /// A further portion, as a step of its own.
    pub fn step_emit(&mut self) -> Result<(), RegionError> {
        self.open();
        let mut open = self.open.take().expect("opened above");
        open.steps.push(Step::Emit);
        let mut out = ChainOutput::default();
        let result = self.emit(&mut open.context, &mut out).and_then(|()| self.route(&mut open, out, &mut |_| None));
        self.open = Some(open);
        result
    }

    /// Judges idleness and moves processing time on. True: something changed, and an epoch is open that says so.
    pub fn tick(&mut self, reader: &dyn SourceReader) -> bool {
        let Input::Source(source) = &self.input else { return false };
        if source.finished || self.leaving || self.failed.is_some() {
            return false;
        }
        let now_ms = self.open.as_ref().map_or_else(|| self.now_ms.max(self.settings.clock.wall_ms()), |open| open.context.now_ms);
        let next = match &source.watermark {
            Some(WatermarkPlan::EventTime { idle_timeout_ms, .. }) => {
                let idle = !self.upstreams[0].idle
                    && self.is_quiet(source, *idle_timeout_ms, now_ms)
                    && reader.stands_at_end(source.split.id, self.position);
                UpstreamWatermark { idle: idle || self.upstreams[0].idle, ..self.upstreams[0] }
            }
            Some(WatermarkPlan::ProcessingTime { granularity_ms }) => {
                let passed = Scan::processing_time(now_ms);
                let step = (*granularity_ms).max(1) as i64;
                let told = self.upstreams[0].watermark;
                let crossed = told == Watermark::MIN || passed.0.div_euclid(step) > told.0.div_euclid(step);
                UpstreamWatermark { watermark: if crossed { passed } else { told }, idle: false }
            }
            None => return false,
        };
        if next == self.upstreams[0] {
            return false;
        }
        self.open().steps.push(Step::Tick);
        self.upstreams[0] = next;
        self.combined.advance(next.watermark);
        self.output_watermark.advance(self.combined);
        true
    }

    /// Moves to the end that the reader has met. Only what it never sees lies before: commit markers, aborted records. They expire like any record, and a
    /// region that stood before them could not be brought up again. It is no row: idleness and watermarks stay as they are. True: moved, in the open epoch or
    /// in one of its own.
    fn pass_unseen(&mut self, reader: &dyn SourceReader) -> bool {
        let Input::Source(source) = &self.input else { return false };
        let Some(end) = reader.met_end(source.split.id).filter(|_| !source.finished) else { return false };
        let (from, to) = (self.position, source.split.end.map_or(end, |last| end.min(last)));
        if to <= from {
            return false;
        }
        if self.open.is_none() && self.settings.clock.wall_ms().saturating_sub(self.now_ms) < UNSEEN_PASSED_AFTER_MS {
            return false;
        }
        self.open().steps.push(Step::Read { input: 0, from, to });
        self.position = to;
        true
    }

    /// No rows for the idle time-out; a split that never had a row is judged after [`EMPTY_SPLIT_IDLE_MS`].
    fn is_quiet(&self, source: &SourceInput, idle_timeout_ms: Option<u64>, now_ms: i64) -> bool {
        let empty = self.upstreams[0].watermark == Watermark::MIN;
        let timeout_ms = match idle_timeout_ms {
            Some(timeout) => timeout as i64,
            None if empty => EMPTY_SPLIT_IDLE_MS,
            None => return false,
        };
        now_ms - source.last_rows_ms >= timeout_ms
    }
}

/// Frames of some messages of an exchange partition.
pub struct TakenFrames {
    pub frames: Vec<Frame>,
    pub next: Offset,
    pub newest_timestamp_ms: Option<i64>,
}

impl From<SourceError> for RegionError {
    fn from(error: SourceError) -> Self {
        match error.kind {
            SourceErrorKind::Retry => RegionError::Retry(error.message),
            SourceErrorKind::Failed => RegionError::Failed(error.message),
            SourceErrorKind::Stop => RegionError::Stop(error.message),
        }
    }
}

impl From<LogError> for RegionError {
    fn from(error: LogError) -> Self {
        match error.kind {
            LogErrorKind::Retry | LogErrorKind::Missing => RegionError::Retry(error.message),
            // Damaged here, or on the way: fetched anew it may be good.
            LogErrorKind::Invalid => RegionError::Failed(error.message),
            _ => RegionError::Stop(error.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_damaged_on_its_way_is_read_anew_and_a_position_that_is_gone_stops_the_region() {
        let error = |kind| RegionError::from(LogError::new(kind, ""));
        assert!(matches!(error(LogErrorKind::Invalid), RegionError::Failed(_)));
        assert!(matches!(error(LogErrorKind::OutOfRange), RegionError::Stop(_)));
        let error = SourceError { kind: SourceErrorKind::Failed, message: String::new() };
        assert!(matches!(RegionError::from(error), RegionError::Failed(_)));
    }
}
