//! Runs any chain in many ways and compares what comes out (the idea is that of Hazelcast Jet's `TestSupport`).
//!
//! Whatever the batch cuts, wherever epochs are sealed and however often a region is rebuilt from its state, the same rows must come out, as
//! many must be late, and the same must be rejected. Order does not count; floats are compared with a tolerance.
#![allow(clippy::unwrap_used)]

use crate::exchange::{FrameEncoder, decode};
use crate::operators::scan::Scan;
use crate::operators::{Chain, ChainOutput, EpochContext, InputWatermarks};
use crate::plan::{Operator, SourceScan};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::display::array_value_to_string;
use arrow_row::{RowConverter, SortField};
use datafusion_common::ScalarValue;
use std::collections::{BTreeMap, BTreeSet};
use streamshield_core::ids::{Epoch, RegionId, StageId};
use streamshield_core::ports::state::*;
use streamshield_core::watermark::{UpstreamWatermark, Watermark};

/// How a run cuts its rows into steps and epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    AllAtOnce,
    ItemByItem,
    /// Random batches, a seal now and then.
    RandomCuts(u64),
    /// Random batches, a seal after each.
    SealAfterEachBatch(u64),
    /// As before, and after each seal the chains are built anew and the state is copied.
    RestoreAfterEachBatch(u64),
}

pub const MODES: [Mode; 7] = [
    Mode::AllAtOnce,
    Mode::ItemByItem,
    Mode::RandomCuts(1),
    Mode::RandomCuts(2),
    Mode::SealAfterEachBatch(3),
    Mode::RestoreAfterEachBatch(4),
    Mode::RestoreAfterEachBatch(5),
];

/// A source stage, and behind an exchange a second stage if there is one.
#[derive(Clone)]
pub struct Job {
    pub scan: Option<SourceScan>,
    pub source: Vec<Operator>,
    pub behind_exchange: Option<Vec<Operator>>,
}

/// What came out of a run, in an order of its own.
#[derive(Debug, Default)]
pub struct Outcome {
    pub rows: Vec<Vec<Cell>>,
    pub late_rows: u64,
    pub late_json: Vec<String>,
    /// Indices in the whole input.
    pub rejected: BTreeSet<usize>,
    /// Rows that went through the exchange.
    pub exchanged: usize,
}

#[derive(Clone, Debug)]
pub enum Cell {
    Text(String),
    Float(f64),
}

impl PartialEq for Cell {
    fn eq(&self, other: &Cell) -> bool {
        match (self, other) {
            (Cell::Text(one), Cell::Text(other)) => one == other,
            (Cell::Float(one), Cell::Float(other)) => one == other || (one - other).abs() <= 1e-9 * one.abs().max(other.abs()),
            _ => false,
        }
    }
}

/// Runs a job in all modes; all must give what the first gives, which is returned.
pub fn same_in_all_modes(job: &Job, rows: &RecordBatch) -> Outcome {
    let expected = run(job, rows, MODES[0]);
    for mode in &MODES[1..] {
        let outcome = run(job, rows, *mode);
        if let Some((row, other)) = outcome.rows.iter().zip(&expected.rows).find(|(row, other)| row != other) {
            panic!("in mode {mode:?} {row:?}, else {other:?}");
        }
        assert_eq!(outcome.rows.len(), expected.rows.len(), "number of rows in mode {mode:?}");
        assert_eq!(outcome.late_rows, expected.late_rows, "late rows in mode {mode:?}");
        assert_eq!(outcome.late_json, expected.late_json, "late JSON in mode {mode:?}");
        assert_eq!(outcome.rejected, expected.rejected, "rejected rows in mode {mode:?}");
    }
    expected
}

pub fn run(job: &Job, rows: &RecordBatch, mode: Mode) -> Outcome {
    let mut runner = Runner::new(job, rows);
    let mut random = Random(match mode {
        Mode::AllAtOnce | Mode::ItemByItem => 0,
        Mode::RandomCuts(seed) | Mode::SealAfterEachBatch(seed) | Mode::RestoreAfterEachBatch(seed) => seed,
    });
    let mut offset = 0;
    while offset < rows.num_rows() {
        let length = match mode {
            Mode::AllAtOnce => rows.num_rows(),
            Mode::ItemByItem => 1,
            _ => 1 + random.below(1 + rows.num_rows() / 4),
        };
        let length = length.min(rows.num_rows() - offset);
        runner.step(&rows.slice(offset, length), offset);
        offset += length;
        match mode {
            Mode::AllAtOnce | Mode::ItemByItem => {}
            Mode::RandomCuts(_) => {
                if random.below(3) == 0 {
                    runner.seal();
                }
            }
            Mode::SealAfterEachBatch(_) => runner.seal(),
            Mode::RestoreAfterEachBatch(_) => {
                runner.seal();
                runner.restore(job, rows);
            }
        }
    }
    runner.finish()
}

/// A small generator of its own, so that a mode is replayed by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 += 1;
        (crate::operators::expression::mix(self.0) % bound.max(1) as u64) as usize
    }
}

struct Stage {
    chain: Chain,
    state: MemoryState,
}

struct Runner {
    scan: Option<Scan>,
    running: Watermark,
    source: Stage,
    behind: Option<(Stage, Watermark)>,
    epoch: Epoch,
    context: EpochContext,
    /// Given out by the source stage, for the seal.
    open: Vec<RecordBatch>,
    outcome: Outcome,
}

impl Stage {
    fn new(operators: &[Operator], schema: arrow_schema::SchemaRef) -> Stage {
        let chain = Chain::new(operators, schema).unwrap();
        Stage { state: MemoryState::new(&chain.tables()), chain }
    }
}

impl Runner {
    fn new(job: &Job, rows: &RecordBatch) -> Runner {
        let scan = job.scan.as_ref().map(|scan| Scan::new(scan).unwrap());
        let source = Stage::new(&job.source, scan.as_ref().map_or(rows.schema(), Scan::schema));
        let behind = job.behind_exchange.as_ref().map(|operators| (Stage::new(operators, source.chain.schema()), Watermark::MIN));
        let context = EpochContext { now_ms: 1_000_000, seed: 7, seed_next: 0 };
        Runner { scan, running: Watermark::MIN, source, behind, epoch: Epoch(1), context, open: Vec::new(), outcome: Outcome::default() }
    }

    fn restore(&mut self, job: &Job, rows: &RecordBatch) {
        let mut fresh = Runner::new(job, rows);
        fresh.source.state = self.source.state.clone();
        if let (Some((fresh, _)), Some((stage, _))) = (&mut fresh.behind, &self.behind) {
            fresh.state = stage.state.clone();
        }
        self.scan = fresh.scan;
        self.source = fresh.source;
        self.behind = fresh.behind.map(|(stage, _)| stage).zip(self.behind.as_ref().map(|(_, watermark)| *watermark));
    }

    fn step(&mut self, rows: &RecordBatch, offset: usize) {
        let mut origin: Vec<usize> = (0..rows.num_rows()).collect();
        let mut rows = rows.clone();
        if let Some(scan) = &mut self.scan {
            let scanned = scan.process(&rows, self.running, &mut self.context).unwrap();
            self.running = scanned.watermark;
            self.outcome.rejected.extend(scanned.rejected.iter().map(|rejected| offset + rejected.row));
            if let Some(kept) = scanned.kept {
                origin = kept.into_iter().map(|row| row as usize).collect();
            }
            rows = scanned.rows;
        }
        let mut out = ChainOutput::default();
        self.source.chain.process(rows, InputWatermarks::START, &mut self.context, &mut self.source.state, &mut out).unwrap();
        self.outcome.rejected.extend(out.rejected.iter().map(|rejected| offset + origin[rejected.row]));
        self.open.extend(out.batches.into_iter().map(|(rows, _)| rows));
    }

    fn seal(&mut self) {
        let mut out = ChainOutput::default();
        self.source.chain.seal(&mut self.context, &mut self.source.state, &mut out).unwrap();
        assert!(self.source.chain.open_bytes() < 1 << 20, "a seal leaves nothing open");
        self.open.extend(out.batches.into_iter().map(|(rows, _)| rows));
        let batches = std::mem::take(&mut self.open);
        self.epoch = self.epoch.next();
        self.context = EpochContext { now_ms: 1_000_000, seed: self.epoch.0, seed_next: 0 };
        if self.behind.is_none() {
            batches.iter().for_each(|batch| self.outcome.add(batch));
            return;
        }
        for batch in self.through_exchange(&batches) {
            let (stage, combined) = self.behind.as_mut().unwrap();
            let mut out = ChainOutput::default();
            let input = InputWatermarks { others: Watermark::MAX, combined: *combined };
            stage.chain.process(batch, input, &mut self.context, &mut stage.state, &mut out).unwrap();
            self.outcome.take(out);
        }
        self.advance(self.running);
    }

    fn through_exchange(&mut self, batches: &[RecordBatch]) -> Vec<RecordBatch> {
        let schema = self.source.chain.schema();
        let mut encoder = FrameEncoder::new(schema.clone());
        let mut bytes = Vec::new();
        let upstream = RegionId { stage: StageId(0), partition: 0 };
        let watermark = UpstreamWatermark { watermark: self.running, idle: false };
        for batch in batches {
            encoder.encode(upstream, self.epoch, watermark, Some(batch), &mut bytes).unwrap();
            self.outcome.exchanged += batch.num_rows();
        }
        decode(&bytes, &schema).unwrap().into_iter().filter_map(|frame| frame.rows).collect()
    }

    fn advance(&mut self, to: Watermark) {
        let Some((stage, combined)) = &mut self.behind else { return };
        combined.advance(to);
        let mut out = ChainOutput::default();
        while stage.chain.advance(*combined, 3, &mut self.context, &mut stage.state, &mut out).unwrap() {
            assert!(stage.chain.has_closed(*combined, &mut stage.state), "more was said to come");
        }
        assert!(!stage.chain.has_closed(*combined, &mut stage.state));
        stage.chain.seal(&mut self.context, &mut stage.state, &mut out).unwrap();
        self.outcome.take(out);
    }

    fn finish(mut self) -> Outcome {
        self.seal();
        self.advance(Watermark::MAX);
        self.outcome.rows.sort_by_key(|row| format!("{row:?}"));
        self.outcome.late_json.sort();
        if let Some((stage, _)) = &self.behind {
            assert!(stage.state.tables.values().all(|table| table.windows.is_empty()), "all windows are emitted in the end");
        }
        self.outcome
    }
}

impl Outcome {
    fn take(&mut self, out: ChainOutput) {
        out.batches.iter().for_each(|(batch, _)| self.add(batch));
        self.late_rows += out.late.rows;
        self.late_json.extend(out.late.json.into_iter().map(|json| String::from_utf8(json).unwrap()));
        assert!(out.rejected.is_empty(), "{:?}", out.rejected);
    }

    fn add(&mut self, batch: &RecordBatch) {
        for row in 0..batch.num_rows() {
            self.rows.push(batch.columns().iter().map(|column| cell(column, row)).collect());
        }
    }

    /// Rows as text, columns separated by a blank.
    pub fn texts(&self) -> Vec<String> {
        let text = |cell: &Cell| match cell {
            Cell::Text(text) => text.clone(),
            Cell::Float(float) => float.to_string(),
        };
        self.rows.iter().map(|row| row.iter().map(text).collect::<Vec<_>>().join(" ")).collect()
    }
}

fn cell(column: &ArrayRef, row: usize) -> Cell {
    match ScalarValue::try_from_array(column, row).unwrap() {
        ScalarValue::Float64(Some(float)) => Cell::Float(float),
        value if value.is_null() => Cell::Text("NULL".into()),
        _ => Cell::Text(array_value_to_string(column, row).unwrap()),
    }
}

/// Region state as a model: ordered maps of single values.
#[derive(Clone, Default)]
pub struct MemoryState {
    pub tables: BTreeMap<u16, MemoryTable>,
}

#[derive(Clone)]
pub struct MemoryTable {
    spec: WindowTableSpec,
    pub windows: BTreeMap<Window, BTreeMap<Vec<u8>, Group>>,
}

#[derive(Clone)]
pub struct Group {
    keys: Vec<ScalarValue>,
    states: Vec<ScalarValue>,
}

impl MemoryState {
    pub fn new(specs: &[WindowTableSpec]) -> MemoryState {
        let table = |spec: &WindowTableSpec| (spec.operator, MemoryTable { spec: spec.clone(), windows: BTreeMap::new() });
        MemoryState { tables: specs.iter().map(table).collect() }
    }
}

impl RegionState for MemoryState {
    fn table(&mut self, operator: u16) -> &mut dyn WindowTable {
        self.tables.get_mut(&operator).unwrap()
    }
    fn bytes(&self) -> StateBytes {
        StateBytes::default()
    }
    fn seal_flush(&mut self) -> Result<Flush, StateError> {
        Ok(Flush { digest: Default::default(), bytes: 0, content: Box::new(()) })
    }
    fn apply_flush(&mut self, _flush: Flush, _record: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
    fn seal_delta(&mut self) -> Result<streamshield_core::ports::state::Delta, StateError> {
        Ok(streamshield_core::ports::state::Delta { digest: Default::default(), bytes: Vec::new() })
    }
    fn is_clean(&self) -> bool {
        true
    }
    fn apply_delta(&mut self, _delta: &[u8], _record: &[u8]) -> Result<streamshield_core::ids::Digest, StateError> {
        unreachable!("the operators never apply a delta")
    }
    fn copier(&self) -> Option<Box<dyn streamshield_core::ports::state::StoreCopier>> {
        None
    }
    fn evict(&mut self, _target_bytes: usize) -> Result<(), StateError> {
        Ok(())
    }
}

impl WindowTable for MemoryTable {
    fn merge(&mut self, window: Window, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<(), StateError> {
        let fields: Vec<_> = self.spec.aggregates.iter().flat_map(|aggregate| aggregate.fields.clone()).collect();
        assert!(
            states.iter().map(|state| state.data_type()).eq(fields.iter().map(|field| field.data_type())),
            "state columns are as the spec says"
        );
        let encoded = RowConverter::new(self.spec.keys.iter().map(|field| SortField::new(field.data_type().clone())).collect())
            .unwrap()
            .convert_columns(keys)
            .ok();
        let groups = self.windows.entry(window).or_default();
        let value =
            |columns: &[ArrayRef], row| columns.iter().map(|column| ScalarValue::try_from_array(column, row).unwrap()).collect::<Vec<_>>();
        for row in 0..states.first().or(keys.first()).unwrap().len() {
            let key = encoded.as_ref().filter(|_| !keys.is_empty()).map_or(Vec::new(), |encoded| encoded.row(row).as_ref().to_vec());
            let incoming = value(states, row);
            match groups.get_mut(&key) {
                None => {
                    groups.insert(key, Group { keys: value(keys, row), states: incoming });
                }
                Some(group) => group.merge(&self.spec, &incoming)?,
            }
        }
        Ok(())
    }

    fn first_closed(&self, watermark: Watermark) -> Option<Window> {
        self.windows.keys().next().copied().filter(|window| watermark.closes(window.end_ms))
    }

    fn drain(&mut self, window: Window, max_rows: usize) -> Result<Drained, StateError> {
        let groups = self.windows.get_mut(&window).unwrap();
        let drained: Vec<Group> = (0..max_rows).map_while(|_| groups.pop_first().map(|(_, group)| group)).collect();
        let finished = groups.is_empty();
        if finished {
            self.windows.remove(&window);
        }
        let column = |values: Vec<ScalarValue>| ScalarValue::iter_to_array(values).unwrap();
        let keys = (0..self.spec.keys.len()).map(|n| column(drained.iter().map(|group| group.keys[n].clone()).collect())).collect();
        let count = drained[0].states.len();
        let states = (0..count).map(|n| column(drained.iter().map(|group| group.states[n].clone()).collect())).collect();
        Ok(Drained { keys, states, finished })
    }

    fn groups(&self) -> usize {
        self.windows.values().map(BTreeMap::len).sum()
    }
}

impl Group {
    fn merge(&mut self, spec: &WindowTableSpec, incoming: &[ScalarValue]) -> Result<(), StateError> {
        let mut at = 0;
        for aggregate in &spec.aggregates {
            let range = at..at + aggregate.fields.len();
            at = range.end;
            if let Merge::Other(merger) = &aggregate.merge {
                let column = |values: &[ScalarValue]| values.iter().map(|value| value.to_array().unwrap()).collect::<Vec<_>>();
                let merged = merger.merge(&column(&self.states[range.clone()]), &column(&incoming[range.clone()]), &[0])?;
                self.states.splice(range, value_of(&merged));
                continue;
            }
            for n in range {
                let (stored, new) = (&self.states[n], &incoming[n]);
                self.states[n] = match (&aggregate.merge, stored.is_null(), new.is_null()) {
                    (_, _, true) => continue,
                    (_, true, _) => new.clone(),
                    (Merge::Sum, ..) => stored.add(new).unwrap(),
                    (Merge::Min, ..) if new < stored => new.clone(),
                    (Merge::Max, ..) if new > stored => new.clone(),
                    _ => continue,
                };
            }
        }
        Ok(())
    }
}

fn value_of(columns: &[ArrayRef]) -> Vec<ScalarValue> {
    columns.iter().map(|column| ScalarValue::try_from_array(column, 0).unwrap()).collect()
}
