//! A region at run time: one stage × one partition, the unit of epochs.
//!
//! ```text
//! input ─ step ─► scan/frames ─► chain ─► open epoch (exchange rows, sink rows, letters) ─ seal ─► SealedEpoch
//!                                  │
//!                                  └► region state (tables in memory, in place)
//! ```
//! A region does the same things in the same order when it replays its epoch records: a record holds the steps, the batch
//! cuts and the clock (E-4). Steps are in [`crate::step`], replay in [`crate::follower`]; this file has the region's
//! parts, the open epoch and the seal.
//!
//! On failure: a region that fails before the seal drops its open epoch and stops; what it sealed before stays sealed and commits.
//! Its state in memory is then no epoch's state any more, so it is dropped and brought up again from what is committed.

use crate::clock::Clock;
use crate::config::BadRecordPolicy;
use crate::content::{CHANGELOG_CHUNK_BYTES, ExchangeContent, SealedEpoch};
use crate::exchange::Partitioner;
use crate::letters::{Letters, header_bytes};
use crate::operators::scan::Scan;
use crate::operators::{Chain, ChainOutput, EpochContext, NO_SOURCE_ROW, OperatorError};
use crate::plan::WatermarkPlan;
use crate::progress::EpochCounts;
use crate::topics::EXCHANGE_ROW_BYTES_MAX;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::cluster::{DiedIn, GenesisSplit, shortened};
use streamshield_core::epoch::{DeltaHead, EpochRecord, Step};
use streamshield_core::ids::{Epoch, Incarnation, Offset, PlanFingerprint, RegionId};
use streamshield_core::ports::log::{OutMessage, TopicPartition};
use streamshield_core::ports::sink::SinkWriter;
use streamshield_core::ports::state::{Delta, Flush, RegionState, StateError};
use streamshield_core::watermark::{UpstreamWatermark, Watermark, are_idle, combine};

/// Bytes of an open epoch at which it is sealed before its time, whatever the budget says (M-1).
pub const OPEN_EPOCH_BYTES_MAX: usize = 16 << 20;
pub const OPEN_EPOCH_BYTES_MIN: usize = 256 << 10;
/// Records of an open epoch, likewise.
pub const OPEN_EPOCH_RECORDS_MAX: u64 = 500_000;
/// Steps of an open epoch (M-1): its record states each of them, and has to fit into a message.
pub const OPEN_EPOCH_STEPS_MAX: usize = 4_096;

/// Why a region does not go on.
#[derive(Debug)]
pub enum RegionError {
    /// Something outside is away; the region keeps everything and tries again.
    Retry(String),
    /// The region stops, with its offsets kept: another try would end in the same way. The text is for people.
    Stop(String),
    /// The region failed here (a disk, a bug): it is brought up again from what is committed, here or elsewhere.
    Failed(String),
}

impl From<OperatorError> for RegionError {
    fn from(error: OperatorError) -> Self {
        RegionError::Failed(error.to_string())
    }
}

impl From<StateError> for RegionError {
    fn from(error: StateError) -> Self {
        RegionError::Failed(format!("the local store: {}", error.message))
    }
}

/// A region that has stopped working in its slot.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Shortened: the control log has to take it.
    pub reason: String,
    /// Another try may go better.
    pub retry: bool,
}

impl Failure {
    pub fn new(reason: &str, retry: bool) -> Failure {
        Failure { reason: shortened(reason).to_string(), retry }
    }
}

/// Where a region's rows come from.
pub enum Input {
    Source(SourceInput),
    Exchange(ExchangeInput),
}

impl Input {
    /// The partition that is read, and the consumer group under which people see in Kafka's own tools how far. None: no topic of a cluster is read.
    pub fn group<'a>(&'a self, job: &'a str) -> Option<(&'a TopicPartition, &'a str)> {
        match self {
            Input::Source(source) => source.group.as_ref().map(|(partition, group)| (partition, group.as_str())),
            Input::Exchange(exchange) => Some((&exchange.partition, job)),
        }
    }
}

pub struct SourceInput {
    pub split: GenesisSplit,
    pub scan: Scan,
    pub watermark: Option<WatermarkPlan>,
    /// The epoch clock when rows were last taken, for idleness.
    pub last_rows_ms: i64,
    pub finished: bool,
    /// For lag tools: topic partition and group.
    pub group: Option<(TopicPartition, String)>,
}

pub struct ExchangeInput {
    pub partition: TopicPartition,
    pub schema: SchemaRef,
    pub upstream_index: BTreeMap<RegionId, usize>,
    /// Where what is committed ends, if the last take left nothing behind.
    pub met_end: Option<Offset>,
}

/// Where a region's rows go.
pub enum Output {
    Exchange(ExchangeOutput),
    Sink(Box<dyn SinkWriter>),
}

pub struct ExchangeOutput {
    pub topic: Arc<str>,
    pub schema: SchemaRef,
    pub partitioner: Partitioner,
    /// Rows of the open epoch per target partition.
    pub pending: Vec<Vec<RecordBatch>>,
    pub pending_bytes: usize,
}

/// What is the same for all regions of a process.
#[derive(Clone)]
pub struct RegionSettings {
    pub clock: Arc<dyn Clock>,
    pub plan: PlanFingerprint,
    pub incarnation: Incarnation,
    pub transactional_id: String,
    pub on_bad_record: BadRecordPolicy,
    pub commit_interval: Duration,
    pub flush_interval: Duration,
    /// Budget of this region's state in memory, in bytes (M-1).
    pub state_bytes_max: usize,
    /// Bytes of an open epoch at which it is sealed before its time (M-1).
    pub open_bytes_max: usize,
    /// The largest message that the topics for people, and the client, take.
    pub letter_bytes_max: usize,
    /// Every epoch of a region with state ships what it changed (Tier 2).
    pub ships_deltas: bool,
}

/// Content of an epoch while steps are taken.
pub struct OpenEpoch {
    /// Steady time.
    pub opened: Duration,
    pub context: EpochContext,
    pub steps: Vec<Step>,
    pub counts: EpochCounts,
    pub messages: Vec<OutMessage>,
    pub message_bytes: usize,
    /// Sink rows or exchange rows were made: worth sealing at once when the input is drained.
    pub has_output: bool,
}

pub struct Region {
    pub id: RegionId,
    /// Offset of the control record that gave the region to this slot.
    pub assignment: Offset,
    pub settings: RegionSettings,
    pub input: Input,
    pub chain: Chain,
    /// Operators with state.
    pub tables: Vec<u16>,
    pub has_tables: bool,
    pub state: Box<dyn RegionState>,
    pub output: Output,
    pub letters: Letters,
    pub changelog: TopicPartition,
    /// The last epoch that a slot wrote to the local store.
    pub flushed_epoch: Option<Epoch>,
    /// The record of the last committed epoch that was taken in a slot, and from where on the changelog holds it.
    pub last_committed: Option<EpochRecord>,
    pub changelog_from: Offset,
    /// Last sealed epoch; 0 before genesis.
    pub epoch: Epoch,
    pub now_ms: i64,
    pub position: Offset,
    pub upstreams: Vec<UpstreamWatermark>,
    /// Combined watermark of the upstreams.
    pub combined: Watermark,
    /// What the output has been told, or will be at the next seal.
    pub output_watermark: Watermark,
    pub announced: UpstreamWatermark,
    /// Closed windows remain to be emitted.
    pub pending_emit: bool,
    pub open: Option<OpenEpoch>,
    /// Steady time of the last sealed flush.
    pub flushed: Duration,
    pub flush_in_flight: bool,
    pub flush_wanted: bool,
    /// Batches of sealed epochs whose outcome is not known yet.
    pub in_flight: usize,
    /// Where its input stood at the end of the last committed epoch, since it is in a slot.
    pub committed_position: Offset,
    /// To be released: no further steps.
    pub leaving: bool,
    /// Where the changelog ended when its release was first written; it may be in the log since.
    pub released_at: Option<Offset>,
    /// The first epoch in a slot is sealed as soon as it has something: others wait for it since the region changed hands.
    pub hurry: bool,
    /// Sealed with `finished`.
    pub finished: bool,
    pub failed: Option<Failure>,
}

impl Region {
    pub fn state_groups(&mut self) -> u64 {
        self.tables.iter().map(|operator| self.state.table(*operator).groups() as u64).sum()
    }

    /// Closes the store: whoever brings the region up again opens it anew.
    pub fn drop_state(&mut self) {
        self.state = Box::new(crate::stateless::NoState);
        self.has_tables = false;
    }

    /// Whether its changelog holds an epoch: one that was committed here, or by an earlier owner.
    pub fn has_begun(&self) -> bool {
        self.last_committed.is_some() || self.changelog_from > 0
    }

    /// Where the work begins that would be done again if the process died now.
    pub fn place(&self) -> DiedIn {
        let committed = Epoch(self.epoch.0.saturating_sub(self.in_flight as u64));
        let position = matches!(self.input, Input::Source(_)).then_some(self.committed_position);
        DiedIn { region: self.id, epoch: committed.next(), position }
    }

    /// The open epoch, opened now if there is none.
    pub fn open(&mut self) -> &mut OpenEpoch {
        if self.open.is_none() {
            // Never back, whatever the local clock does.
            self.now_ms = self.now_ms.max(self.settings.clock.wall_ms());
            let opened = self.settings.clock.steady();
            self.open = Some(OpenEpoch::new(self.id, self.epoch.next(), self.now_ms, opened));
            let counts = &mut self.open.as_mut().expect("just opened").counts;
            counts.is_source = matches!(self.input, Input::Source(_));
            counts.is_sink = matches!(self.output, Output::Sink(_));
        }
        self.open.as_mut().expect("opened above")
    }

    /// Whether another step may be taken.
    pub fn may_step(&self) -> bool {
        self.failed.is_none()
            && !self.leaving
            && !self.finished
            && !self.input_finished_and_quiet()
            && !self.is_full()
            && !self.waits_for_memory()
    }

    fn input_finished_and_quiet(&self) -> bool {
        let ended = match &self.input {
            Input::Source(source) => source.finished,
            Input::Exchange(_) => self.combined == Watermark::MAX,
        };
        ended && !self.pending_emit
    }

    /// The open epoch has reached its bound: it must be sealed first.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.counts.records_in >= OPEN_EPOCH_RECORDS_MAX
                || open.steps.len() >= OPEN_EPOCH_STEPS_MAX
                || self.open_bytes() >= self.settings.open_bytes_max
        })
    }

    fn waits_for_memory(&self) -> bool {
        self.flush_in_flight && self.has_tables && self.state.total_bytes() > self.settings.state_bytes_max
    }

    pub fn open_bytes(&self) -> usize {
        let output = match &self.output {
            Output::Exchange(exchange) => exchange.pending_bytes,
            Output::Sink(writer) => writer.bytes(),
        };
        output + self.chain.open_bytes() + self.open.as_ref().map_or(0, |open| open.message_bytes)
    }

    /// Whether the open epoch is to be sealed now.
    pub fn is_due(&self, now: Duration) -> bool {
        let Some(open) = &self.open else { return false };
        self.failed.is_none()
            && (now.saturating_sub(open.opened) >= self.settings.commit_interval
                || self.leaving
                || self.hurry
                || self.is_full()
                || self.input_finished_and_quiet()
                || (self.flush_wanted && !self.flush_in_flight)
                || self.is_drained_with_output())
    }

    /// A stage fed by an exchange seals as soon as it has drained what its upstreams committed, if that made rows.
    fn is_drained_with_output(&self) -> bool {
        match &self.input {
            Input::Exchange(exchange) => {
                exchange.met_end.is_some() && !self.pending_emit && self.open.as_ref().is_some_and(|open| open.has_output)
            }
            Input::Source(_) => false,
        }
    }

    /// When the open epoch has to be sealed at the latest.
    pub fn due_at(&self) -> Option<Duration> {
        self.open.as_ref().map(|open| open.opened + self.settings.commit_interval)
    }

    /// The epoch that states where the region starts; it has no rows.
    pub fn genesis(&mut self) -> SealedEpoch {
        assert_eq!(self.epoch, Epoch(0), "E-1: {} has a genesis already", self.id);
        self.now_ms = self.now_ms.max(self.settings.clock.wall_ms());
        self.epoch = Epoch::GENESIS;
        let record = self.record(Vec::new(), self.now_ms);
        self.sealed(record, EpochCounts::default(), Vec::new(), None, None)
    }

    /// Ends the open epoch. From here on its content never changes.
    pub fn seal(&mut self, leaving: bool) -> Result<Option<SealedEpoch>, RegionError> {
        let Some(mut open) = self.open.take() else { return Ok(None) };
        let mut out = ChainOutput::default();
        self.chain.seal(&mut open.context, self.state.as_mut(), &mut out)?;
        self.route(&mut open, out, &mut |_| None)?;
        self.finished = self.input_finished_and_quiet();
        self.hurry = false;
        let flush = if self.wants_flush(leaving) {
            self.flush_in_flight = true;
            self.flush_wanted = false;
            self.flushed = self.settings.clock.steady();
            Some(self.state.seal_flush()?)
        } else {
            None
        };
        let delta = if self.settings.ships_deltas && self.has_tables { Some(self.state.seal_delta()?) } else { None };
        self.epoch = self.epoch.next();
        let mut record = self.record(std::mem::take(&mut open.steps), open.context.now_ms);
        record.digest = flush.as_ref().map(|flush| flush.digest);
        record.delta = delta.as_ref().map(delta_head);
        Ok(Some(self.sealed(record, open.counts, open.messages, flush, delta)))
    }

    fn wants_flush(&self, leaving: bool) -> bool {
        self.has_tables
            && !self.flush_in_flight
            && (leaving || self.flush_wanted || self.settings.clock.steady().saturating_sub(self.flushed) >= self.settings.flush_interval)
    }

    fn record(&self, steps: Vec<Step>, now_ms: i64) -> EpochRecord {
        // Whoever adopts the record has the combined watermark from it.
        assert_eq!(combine(self.upstreams.iter().copied()), self.combined, "E-5: {} {:?}", self.id, self.upstreams);
        EpochRecord {
            version: EpochRecord::VERSION,
            region: self.id,
            epoch: self.epoch,
            incarnation: self.settings.incarnation,
            transactional_id: self.settings.transactional_id.clone(),
            plan: self.settings.plan,
            now_ms,
            steps,
            positions: vec![self.position],
            upstreams: self.upstreams.clone(),
            watermark: self.output_watermark,
            digest: None,
            delta: None,
            finished: self.finished,
        }
    }

    fn sealed(
        &mut self,
        record: EpochRecord,
        counts: EpochCounts,
        messages: Vec<OutMessage>,
        flush: Option<Flush>,
        delta: Option<Delta>,
    ) -> SealedEpoch {
        let says = UpstreamWatermark { watermark: self.output_watermark, idle: self.is_idle() };
        let mut sealed = SealedEpoch {
            record,
            assignment: self.assignment,
            changelog: self.changelog.clone(),
            changelog_from: self.changelog_from,
            delta: delta.map(|delta| delta.bytes),
            exchange: None,
            sink: None,
            messages,
            flush,
            counts,
        };
        match &mut self.output {
            Output::Exchange(exchange) => {
                let partitions = exchange.pending.len();
                let rows = std::mem::replace(&mut exchange.pending, vec![Vec::new(); partitions]);
                exchange.pending_bytes = 0;
                let announce = says != self.announced;
                self.announced = says;
                let (topic, schema) = (exchange.topic.clone(), exchange.schema.clone());
                sealed.exchange = Some(ExchangeContent { topic, schema, rows, watermark: says, announce });
            }
            Output::Sink(writer) => sealed.sink = writer.seal(self.epoch),
        }
        sealed
    }

    /// Nothing comes of its upstreams, and nothing is left of closed windows: downstream would close them without the rest.
    fn is_idle(&self) -> bool {
        !self.pending_emit && are_idle(&self.upstreams)
    }

    /// Gives a chain's output to the exchange or the sink, and what was refused to the letters. `origin`: the record of a row given to the chain.
    pub fn route(
        &mut self,
        open: &mut OpenEpoch,
        out: ChainOutput,
        origin: &mut dyn FnMut(usize) -> Option<streamshield_core::ports::source::Origin>,
    ) -> Result<(), RegionError> {
        open.counts.late_rows += out.late.rows;
        for json in out.late.json {
            open.add_message(self.letters.late(json));
        }
        // A source row is told of once, however many rows that were made of it are refused.
        let mut told = BTreeSet::new();
        for rejected in out.rejected {
            told.insert(rejected.row);
            let origin = origin(rejected.row);
            self.refuse(open, origin, None, &rejected.reason)?;
        }
        for (batch, trail) in out.batches {
            if batch.num_rows() == 0 {
                continue;
            }
            open.has_output = true;
            for (row, reason) in self.route_batch(open, &batch)? {
                // Behind an exchange a row's number says nothing: it counts within its frame, and the record that it was is not there.
                let is_source = matches!(self.input, Input::Source(_));
                let source_row = Some(trail.source_row(row)).filter(|source_row| is_source && *source_row != NO_SOURCE_ROW);
                if source_row.is_some_and(|source_row| !told.insert(source_row)) {
                    continue;
                }
                let origin = match source_row {
                    Some(source_row) => origin(source_row),
                    None => None,
                };
                let json = if origin.is_none() { crate::letters::row_as_json(&batch, row) } else { None };
                self.refuse(open, origin, json, &reason)?;
            }
        }
        Ok(())
    }

    /// Gives a batch to the exchange or the sink. Returns the rows that it does not take, and why.
    fn route_batch(&mut self, open: &mut OpenEpoch, batch: &RecordBatch) -> Result<Vec<(usize, String)>, RegionError> {
        match &mut self.output {
            Output::Exchange(exchange) => {
                let (batch, oversized) = without_oversized(batch)?;
                // The parts are slices of what is counted here.
                exchange.pending_bytes += batch.get_array_memory_size();
                for (partition, rows) in exchange.partitioner.split(&batch).map_err(|error| RegionError::Stop(error.to_string()))? {
                    exchange.pending[partition as usize].push(rows);
                }
                open.counts.rows_out += batch.num_rows() as u64;
                Ok(oversized)
            }
            Output::Sink(writer) => {
                let refused = writer.write(batch).map_err(|error| RegionError::Failed(error.message))?;
                open.counts.rows_out += (batch.num_rows() - refused.len()) as u64;
                Ok(refused.into_iter().map(|refused| (refused.row, refused.reason)).collect())
            }
        }
    }

    /// A record or row that can't be used: as the job's policy says.
    pub fn refuse(
        &self,
        open: &mut OpenEpoch,
        origin: Option<streamshield_core::ports::source::Origin>,
        json: Option<Vec<u8>>,
        reason: &str,
    ) -> Result<(), RegionError> {
        match self.settings.on_bad_record {
            BadRecordPolicy::Fail => {
                let place = origin.map_or_else(String::new, |origin| {
                    format!(" ({} partition {} offset {})", origin.container, origin.split, origin.offset)
                });
                return Err(RegionError::Stop(format!("bad record{place}: {reason}")));
            }
            BadRecordPolicy::DeadLetter => {
                open.counts.dead_letters += 1;
                open.add_message(self.letters.dead(self.id, origin, json, reason));
            }
            BadRecordPolicy::Skip => {}
        }
        open.counts.bad_records += 1;
        Ok(())
    }
}

/// A row that no message of an exchange can hold is a bad record: once sealed, it could never be written. Gives the others, then those.
fn without_oversized(batch: &RecordBatch) -> Result<(RecordBatch, Vec<(usize, String)>), RegionError> {
    let oversized = rows_above(batch, EXCHANGE_ROW_BYTES_MAX);
    if oversized.is_empty() {
        return Ok((batch.clone(), Vec::new()));
    }
    let keep = BooleanArray::from_iter((0..batch.num_rows()).map(|row| Some(!oversized.contains(&row))));
    let kept = arrow_select::filter::filter_record_batch(batch, &keep).map_err(|error| RegionError::Stop(error.to_string()))?;
    let reason = format!("a row has more than {EXCHANGE_ROW_BYTES_MAX} bytes on its way to the next stage");
    Ok((kept, oversized.into_iter().map(|row| (row, reason.clone())).collect()))
}

/// The bytes of what an array shows. Arrow's own measure counts all values of a nested array, also those that a slice does not show.
fn shown_bytes(column: &ArrayRef) -> usize {
    let between = |offsets: &[i32]| (offsets[0] as usize, (offsets[offsets.len() - 1] - offsets[0]) as usize);
    match column.data_type() {
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let (first, count) = between(list.value_offsets());
            size_of_val(list.value_offsets()) + shown_bytes(&list.values().slice(first, count))
        }
        DataType::Map(..) => {
            let map = column.as_map();
            let (first, count) = between(map.value_offsets());
            size_of_val(map.value_offsets()) + map.entries().slice(first, count).columns().iter().map(shown_bytes).sum::<usize>()
        }
        DataType::Struct(_) => column.as_struct().columns().iter().map(shown_bytes).sum(),
        // What can't be measured counts as it lies in memory.
        _ => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    }
}

/// The rows with more than so many bytes. Only halves that are too large as a whole are looked into.
fn rows_above(batch: &RecordBatch, bytes_max: usize) -> Vec<usize> {
    let bytes = |rows: &RecordBatch| -> usize { rows.columns().iter().map(shown_bytes).sum() };
    let (mut found, mut parts) = (Vec::new(), vec![(0, batch.num_rows())]);
    while let Some((first, count)) = parts.pop() {
        if count == 0 || bytes(&batch.slice(first, count)) <= bytes_max {
            continue;
        }
        match count / 2 {
            0 => found.push(first),
            half => parts.extend([(first, half), (first + half, count - half)]),
        }
    }
    found
}

impl OpenEpoch {
    pub fn new(region: RegionId, epoch: Epoch, now_ms: i64, opened: Duration) -> OpenEpoch {
        OpenEpoch {
            opened,
            context: epoch_context(region, epoch, now_ms),
            steps: Vec::new(),
            counts: EpochCounts::default(),
            messages: Vec::new(),
            message_bytes: 0,
            has_output: false,
        }
    }

    fn add_message(&mut self, message: OutMessage) {
        let (key, payload) = (message.key.as_ref().map_or(0, Vec::len), message.payload.as_ref().map_or(0, Vec::len));
        self.message_bytes += key + payload + header_bytes(&message.headers) + 200;
        self.messages.push(message);
    }
}

/// The clock and the seed of an epoch: a pure function of its record.
pub fn epoch_context(region: RegionId, epoch: Epoch, now_ms: i64) -> EpochContext {
    let mut name = [0u8; 16];
    name[..4].copy_from_slice(&region.stage.0.to_le_bytes());
    name[4..8].copy_from_slice(&region.partition.to_le_bytes());
    name[8..].copy_from_slice(&epoch.0.to_le_bytes());
    EpochContext { now_ms, seed: xxhash_rust::xxh3::xxh3_64(&name), seed_next: 0 }
}

fn delta_head(delta: &Delta) -> DeltaHead {
    let chunks = delta.bytes.len().div_ceil(CHANGELOG_CHUNK_BYTES).max(1);
    DeltaHead { chunks: chunks as u32, bytes: delta.bytes.len() as u64, digest: delta.digest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::builder::{ListBuilder, StringBuilder};
    use arrow_array::{Int64Array, StringArray};
    use streamshield_core::ids::StageId;

    #[test]
    fn headers_of_a_letter_count_among_the_bytes_of_an_open_epoch() {
        let region = RegionId { stage: StageId(1), partition: 0 };
        let mut open = OpenEpoch::new(region, Epoch(1), 0, Duration::ZERO);
        let headers = vec![("trace".to_string(), vec![b'x'; 20_000])];
        open.add_message(OutMessage {
            topic: "t".into(),
            partition: None,
            key: None,
            payload: Some(vec![0; 100]),
            headers,
            timestamp_ms: None,
        });
        assert!(open.message_bytes > 20_100, "{}", open.message_bytes);
    }

    #[test]
    fn only_rows_that_are_too_large_by_themselves_are_found() {
        let texts: Vec<String> = (0..1_000).map(|row| "x".repeat(if [3, 500, 999].contains(&row) { 5_000 } else { 10 })).collect();
        let columns: [(&str, ArrayRef); 2] =
            [("n", Arc::new(Int64Array::from_iter_values(0..1_000))), ("text", Arc::new(StringArray::from(texts)))];
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let mut found = rows_above(&batch, 4_000);
        found.sort_unstable();
        assert_eq!(found, [3, 500, 999]);
        assert!(rows_above(&batch, 6_000).is_empty(), "many small rows are none");
        assert!(rows_above(&batch.slice(4, 400), 4_000).is_empty(), "a slice counts as what it shows");
    }

    #[test]
    fn of_a_list_only_the_rows_own_values_count() {
        let mut tags = ListBuilder::new(StringBuilder::new());
        for row in 0..1_000 {
            (0..if row == 700 { 500 } else { 5 }).for_each(|_| tags.values().append_value("0123456789"));
            tags.append(true);
        }
        let batch = RecordBatch::try_from_iter([("tags", Arc::new(tags.finish()) as ArrayRef)]).expect("one column");
        assert_eq!(rows_above(&batch, 4_000), [700]);
        assert_eq!(rows_above(&batch.slice(600, 300), 4_000), [100]);
        assert!(rows_above(&batch, 10_000).is_empty());
    }
}
