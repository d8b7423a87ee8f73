//! Brings regions to the end of the log: read the changelog, open the local store, replay the steps since, muted.
//!
//! ```text
//! store at epoch e₀ ──► steps of e₀+1 … E from the records, on the same input bytes ──► state of epoch E
//! ```
//! Every digest on the way is compared (E-4); every record must continue the one before (E-1, E-2). A store that is missing or damaged
//! is rebuilt from the beginning of the inputs and says so; a store that is *ahead* of the log belongs to another life of the job
//! and is refused.
//!
//! Regions without state are not replayed: their positions and watermarks are in the last record.

use crate::changelog::{self, Range};
use crate::ownership::retrying;
use crate::region::{Input, Region, RegionError, epoch_context};
use crate::runtime::EngineError;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::epoch::{EpochRecord, Step};
use streamshield_core::ids::{Epoch, Offset};
use streamshield_core::ports::log::{Log, LogReader, TakeLimit, TopicPartition, Wakeup};
use streamshield_core::ports::state::{StateBackend, WindowTableSpec};

const POLL: Duration = Duration::from_millis(10);
/// An input that gives nothing for this long during a replay: something is wrong with it.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How often a long replay says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What the local store keeps beside the groups: the record of its epoch, and from where the changelog holds what came after.
pub fn encode_stored(changelog_from: Offset, record: &[u8]) -> Vec<u8> {
    [&changelog_from.to_be_bytes()[..], record].concat()
}

fn decode_stored(stored: &[u8]) -> Option<(Offset, EpochRecord)> {
    let (offset, record) = stored.split_first_chunk::<8>()?;
    Some((Offset::from_be_bytes(*offset), EpochRecord::decode(record).ok()?))
}

/// What a recovery did.
pub struct Recovered {
    /// Where each region's changelog ended.
    pub changelog_ends: Vec<Offset>,
    pub epochs_replayed: u64,
}

/// Brings regions to the ends of their changelogs. They are fresh (epoch 0); their state is opened here.
pub fn recover(
    regions: &mut [Region],
    tables: &[Vec<WindowTableSpec>],
    log: &dyn Log,
    state: &dyn StateBackend,
    reader: &mut dyn LogReader,
    wakeup: &Arc<Wakeup>,
) -> Result<Recovered, EngineError> {
    let mut ranges = Vec::with_capacity(regions.len());
    let mut bases = Vec::with_capacity(regions.len());
    for (region, tables) in regions.iter_mut().zip(tables) {
        let end = retrying("find the end of a changelog", || changelog::stable_end(log, &region.changelog))?;
        let stored = if region.has_tables { open_store(region, state, tables)? } else { None };
        let (from, base) = stored.map_or((0, None), |(from, record)| (from, Some(record)));
        region.changelog_from = from;
        ranges.push(Range { partition: region.changelog.clone(), from, end });
        bases.push(base);
    }
    let records = read_records(regions, log, &ranges, &bases)?;
    for (region, (records, base)) in regions.iter_mut().zip(records.iter().zip(&bases)) {
        begin_at(region, records, base.as_ref())?;
        let Some(to_read) = first_read(region, records) else { continue };
        reader.assign(&to_read, region_start(region, records))?;
    }
    let mut epochs_replayed = 0;
    for (region, records) in regions.iter_mut().zip(&records) {
        if region.has_tables {
            epochs_replayed += replay(region, records, reader, wakeup)?;
            if let Some(partition) = first_read(region, records) {
                reader.unassign(&partition)?;
            }
        }
    }
    for (region, range) in regions.iter_mut().zip(&ranges) {
        region.changelog_from = range.end;
    }
    Ok(Recovered { changelog_ends: ranges.into_iter().map(|range| range.end).collect(), epochs_replayed })
}

/// Takes a region to its stored epoch, or, without state, to its last one.
fn begin_at(region: &mut Region, records: &[EpochRecord], base: Option<&EpochRecord>) -> Result<(), EngineError> {
    let Some(last) = records.last().or(base) else { return Ok(()) };
    check_plan(region, last)?;
    match base {
        Some(base) => adopt(region, base),
        None if !region.has_tables => adopt(region, last),
        None => {}
    }
    Ok(())
}

/// The exchange partition that a replay of these records reads.
fn first_read(region: &Region, records: &[EpochRecord]) -> Option<TopicPartition> {
    let reads = region.has_tables && records.iter().any(|record| record.steps.iter().any(|step| matches!(step, Step::Read { .. })));
    match &region.input {
        Input::Exchange(exchange) if reads => Some(exchange.partition.clone()),
        _ => None,
    }
}

fn region_start(region: &Region, records: &[EpochRecord]) -> Offset {
    match records.first() {
        Some(genesis) if genesis.epoch == Epoch::GENESIS => genesis.positions.first().copied().unwrap_or(region.position),
        _ => region.position,
    }
}

/// Opens the region's store; what it holds, if it can be used.
fn open_store(
    region: &mut Region,
    state: &dyn StateBackend,
    tables: &[WindowTableSpec],
) -> Result<Option<(Offset, EpochRecord)>, EngineError> {
    let open = || state.open(region.id, tables).map_err(|error| EngineError { message: format!("{}: {error}", region.id), hint: None });
    let mut opened = open()?;
    let mut rebuilt = opened.rebuilt.take();
    let stored = match &opened.record {
        Some(bytes) => match decode_stored(bytes) {
            Some((_, record)) if record.region != region.id => {
                rebuilt = Some(format!("it belongs to region {}", record.region));
                None
            }
            Some(stored) => {
                // Refused before anything is deleted: the old plan can still go on with it.
                check_plan(region, &stored.1)?;
                Some(stored)
            }
            None => {
                rebuilt = Some("its epoch record can't be read".into());
                None
            }
        },
        None => None,
    };
    if stored.is_none() && opened.record.is_some() {
        drop(opened);
        state.delete(region.id).map_err(|error| EngineError { message: error.message, hint: None })?;
        opened = open()?;
    }
    if let Some(reason) = rebuilt {
        tracing::warn!(region = %region.id, reason, "the local state can't be used; it is rebuilt from the inputs");
    }
    region.state = opened.state;
    Ok(stored)
}

/// Per region the records after its base, each continuing the one before (E-1, E-2). Regions without state keep the last one only.
fn read_records(
    regions: &[Region],
    log: &dyn Log,
    ranges: &[Range],
    bases: &[Option<EpochRecord>],
) -> Result<Vec<Vec<EpochRecord>>, EngineError> {
    let mut all: Vec<Vec<EpochRecord>> = vec![Vec::new(); regions.len()];
    // A store is a prefix of this log only if the log holds the record of its epoch.
    let mut proven: Vec<bool> = bases.iter().map(Option::is_none).collect();
    let mut broken = None;
    let mut visit = |index: usize, record: EpochRecord| {
        let (records, base) = (&mut all[index], bases[index].as_ref());
        proven[index] |= base.is_some_and(|base| *base == record);
        if base.is_some_and(|base| record.epoch <= base.epoch) || broken.is_some() {
            return;
        }
        let check = match records.last().or(base) {
            Some(previous) => previous.check_successor(&record),
            None if record.epoch == Epoch::GENESIS => Ok(()),
            None => Err(format!("E-1: {} begins with epoch {}", record.region, record.epoch)),
        };
        broken = check.err();
        if !regions[index].has_tables {
            records.clear();
        }
        records.push(record);
    };
    changelog::read(log, ranges, &mut visit)?;
    if let Some(index) = proven.iter().position(|proven| !proven) {
        let (region, partition) = (regions[index].id, &ranges[index].partition);
        let message = format!("{region}: the local store is of an epoch that {partition} does not hold");
        return Err(EngineError {
            message,
            hint: Some("was the changelog topic recreated, or is this another job's state_dir? Then delete it".into()),
        });
    }
    match broken {
        Some(message) => Err(EngineError {
            message,
            hint: Some("the changelog topic was changed by somebody else, or trimmed; the job does not guess".into()),
        }),
        None => Ok(all),
    }
}

fn check_plan(region: &Region, last: &EpochRecord) -> Result<(), EngineError> {
    if last.plan == region.settings.plan {
        return Ok(());
    }
    Err(EngineError {
        message: format!(
            "the job's plan has changed: its epochs were written by plan {}, this is plan {}",
            last.plan, region.settings.plan
        ),
        hint: Some("give the changed job another name, or go back to the SQL that wrote this state".into()),
    })
}

/// Takes positions and watermarks from a record.
fn adopt(region: &mut Region, record: &EpochRecord) {
    region.epoch = record.epoch;
    region.now_ms = record.now_ms;
    region.position = record.positions.first().copied().unwrap_or(region.position);
    region.upstreams.clone_from(&record.upstreams);
    region.combined = streamshield_core::watermark::combine(record.upstreams.iter().copied());
    region.output_watermark = record.watermark;
    region.finished = record.finished;
    if region.has_tables {
        region.pending_emit = region.chain.has_closed(region.combined, region.state.as_mut());
    }
    if let Input::Source(source) = &mut region.input {
        source.finished =
            record.upstreams.first().is_some_and(|upstream| upstream.watermark == streamshield_core::watermark::Watermark::MAX);
    }
}

/// Runs the steps of the records, muted. The exchange partition is assigned already.
fn replay(region: &mut Region, records: &[EpochRecord], reader: &mut dyn LogReader, wakeup: &Arc<Wakeup>) -> Result<u64, EngineError> {
    if !matches!(region.input, Input::Exchange(_)) {
        return Err(EngineError { message: format!("{}: a stage with state reads a source directly", region.id), hint: None });
    }
    let mut reported = Instant::now();
    let mut replayed = 0;
    for record in records {
        if record.epoch == Epoch::GENESIS {
            adopt(region, record);
            continue;
        }
        replay_epoch(region, record, reader, wakeup).map_err(|error| match error {
            RegionError::Retry(message) | RegionError::Stop(message) => {
                EngineError { message: format!("{} can't replay epoch {}: {message}", region.id, record.epoch), hint: None }
            }
        })?;
        replayed += 1;
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            tracing::info!(region = %region.id, epoch = record.epoch.0, of = records.last().map_or(0, |last| last.epoch.0), "replaying");
        }
    }
    Ok(replayed)
}

fn replay_epoch(region: &mut Region, record: &EpochRecord, reader: &mut dyn LogReader, wakeup: &Arc<Wakeup>) -> Result<(), RegionError> {
    let mut context = epoch_context(region.id, record.epoch, record.now_ms);
    let mut muted = crate::operators::ChainOutput::default();
    for step in &record.steps {
        match step {
            Step::Read { to, .. } => replay_read(region, *to, &mut context, &mut muted, reader, wakeup)?,
            Step::Emit => region.emit(&mut context, &mut muted)?,
            Step::Tick => {}
        }
        muted.batches.clear();
    }
    region.chain.seal(&mut context, region.state.as_mut(), &mut muted)?;
    region.epoch = record.epoch;
    region.now_ms = record.now_ms;
    region.finished = record.finished;
    if region.upstreams != record.upstreams || region.output_watermark != record.watermark {
        return Err(RegionError::Stop(format!(
            "E-4: the replay's watermarks differ from the record's ({} against {})",
            region.output_watermark, record.watermark
        )));
    }
    let stop = |error: streamshield_core::ports::state::StateError| RegionError::Stop(error.message);
    if let Some(expected) = record.digest {
        let flush = region.state.seal_flush().map_err(stop)?;
        if flush.digest != expected {
            return Err(RegionError::Stop(format!("E-4: the replayed state's digest is {}, the record's {expected}", flush.digest)));
        }
        region.state.apply_flush(flush, &encode_stored(region.changelog_from, &record.encode())).map_err(stop)?;
        if region.state.bytes().total > region.settings.state_bytes_max {
            region.state.evict(region.settings.state_bytes_max / 2).map_err(stop)?;
        }
    }
    Ok(())
}

/// Takes exactly the messages up to `to`, in as many portions as come, and applies them as one step.
fn replay_read(
    region: &mut Region,
    to: Offset,
    context: &mut crate::operators::EpochContext,
    muted: &mut crate::operators::ChainOutput,
    reader: &mut dyn LogReader,
    wakeup: &Arc<Wakeup>,
) -> Result<(), RegionError> {
    let limit = TakeLimit { messages: usize::MAX, bytes: usize::MAX, end: Some(to) };
    let mut frames = Vec::new();
    let mut heard = Instant::now();
    while region.position < to {
        match region.take_frames(reader, &limit) {
            Ok(Some(taken)) => {
                region.position = taken.next;
                frames.extend(taken.frames);
                heard = Instant::now();
            }
            Ok(None) | Err(RegionError::Retry(_)) => wakeup.wait(POLL),
            Err(stop) => return Err(stop),
        }
        if heard.elapsed() > SILENCE_MAX {
            return Err(RegionError::Stop(format!("the input gives nothing up to offset {to}")));
        }
    }
    region.apply_frames(frames, context, muted).map(|_| ())
}
