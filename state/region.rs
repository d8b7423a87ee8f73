//! All state of one region: its tables, the order of its flushes, its deltas, its share of memory.

use crate::changes::{ChangeSink, Changes, Encoder};
use crate::error::{internal, io};
use crate::rocks::{Copier, Store, TableFile};
use crate::tables::Table;
use arrow_array::ArrayRef;
use std::sync::Arc;
use std::time::Instant;
use streamshield_core::ids::{Digest, RegionId};
use streamshield_core::ports::state::{Delta, Drained, Flush, RegionState, StateBytes, StateError, StoreCopier, Window, WindowTable};
use streamshield_core::watermark::Watermark;

pub(crate) struct RocksRegion {
    region: RegionId,
    /// In the order of their operators, as their keys are in the store.
    tables: Vec<Table>,
    /// Names the layout of all tables: a delta fits only where it is the same.
    layout: u64,
    /// Answers for operators that have no table.
    unknown: UnknownTable,
    sealed: u64,
    applied: u64,
    /// Why a flush or delta could not be sealed or applied: none after it can be either.
    failed: Option<StateError>,
    store: Arc<Store>,
}

/// A flush between sealing and applying.
struct SealedFlush {
    sequence: u64,
    content: FlushContent,
}

enum FlushContent {
    Bytes(Vec<u8>),
    File(TableFile),
}

impl RocksRegion {
    pub fn new(region: RegionId, mut tables: Vec<Table>, layout: u64, store: Arc<Store>) -> Self {
        tables.sort_by_key(Table::operator);
        let unknown = UnknownTable { region };
        RocksRegion { region, tables, layout, unknown, sealed: 0, applied: 0, failed: None, store }
    }

    /// Adds all that changed to a flush.
    fn seal_into(&mut self, flush: &mut impl ChangeSink) -> Result<(), StateError> {
        self.tables.iter_mut().try_for_each(|table| table.seal_removals(self.sealed, flush))?;
        self.tables.iter_mut().try_for_each(|table| table.seal_groups(self.sealed, flush))
    }

    fn seal_content(&mut self) -> Result<(FlushContent, Digest), StateError> {
        let store = Arc::clone(&self.store);
        if store.is_large(self.tables.iter().map(Table::flush_bytes_about).sum()) {
            let mut writer = store.table_writer()?;
            self.seal_into(&mut writer)?;
            let (file, digest) = writer.finish()?;
            return Ok((FlushContent::File(file), digest));
        }
        let mut encoder = Encoder::of_flush();
        encoder.reserve(self.tables.iter().map(Table::flush_bytes).sum());
        self.seal_into(&mut encoder)?;
        let (bytes, digest) = encoder.finish_flush();
        Ok((FlushContent::Bytes(bytes), digest))
    }

    fn write_flush(&self, content: FlushContent, record: &[u8]) -> Result<(), StateError> {
        fail::fail_point!("state::apply_flush", |_| Err(io("fail point state::apply_flush")));
        match content {
            FlushContent::Bytes(bytes) => self.store.apply(&Changes::of_flush(&bytes)?, record)?,
            FlushContent::File(file) => self.store.take_in(file, record)?,
        }
        fail::fail_point!("state::after_flush", |_| Err(io("fail point state::after_flush")));
        Ok(())
    }

    fn write_delta(&self, changes: &Changes<'_>, record: &[u8]) -> Result<(), StateError> {
        fail::fail_point!("state::apply_delta", |_| Err(io("fail point state::apply_delta")));
        self.store.apply(changes, record)?;
        fail::fail_point!("state::after_delta", |_| Err(io("fail point state::after_delta")));
        Ok(())
    }

    /// What a delta holds that fits these tables, and its digest. Writes nothing.
    fn read_delta<'a>(&self, delta: &'a [u8]) -> Result<(Changes<'a>, Digest), StateError> {
        let mut changes = Changes::of_delta(delta, self.layout)?;
        let table = |operator: u16| self.tables.iter().find(|table| table.operator() == operator);
        let digest = changes.check(|operator| table(operator).map(Table::spec))?;
        // A range to delete costs every later read of the store; most windows come and go between two flushes of the writer.
        changes.retain_removals(|operator, window| table(operator).is_some_and(|table| table.has_window(window)));
        Ok((changes, digest))
    }

    /// Windows with groups in memory, the longest unused first: the table's position and the window.
    fn windows_by_age(&self) -> Vec<(usize, Window)> {
        let of_table = |(position, table): (usize, &Table)| {
            table.window_ages().into_iter().map(move |(age, window)| (std::cmp::Reverse(age), position, window))
        };
        let mut windows: Vec<_> = self.tables.iter().enumerate().flat_map(of_table).collect();
        windows.sort_unstable();
        windows.into_iter().map(|(_, position, window)| (position, window)).collect()
    }
}

impl RegionState for RocksRegion {
    fn table(&mut self, operator: u16) -> &mut dyn WindowTable {
        match self.tables.iter_mut().find(|table| table.operator() == operator) {
            Some(table) => table,
            None => &mut self.unknown,
        }
    }

    fn bytes(&self) -> StateBytes {
        self.tables
            .iter()
            .map(Table::bytes)
            .fold(StateBytes::default(), |sum, bytes| StateBytes { total: sum.total + bytes.total, dirty: sum.dirty + bytes.dirty })
    }

    fn total_bytes(&self) -> usize {
        self.tables.iter().map(Table::total_bytes).sum()
    }

    fn seal_flush(&mut self) -> Result<Flush, StateError> {
        self.sealed += 1;
        let (content, digest) = self.seal_content().inspect_err(|error| self.failed = Some(error.clone()))?;
        let bytes = match &content {
            FlushContent::Bytes(bytes) => bytes.capacity(),
            FlushContent::File(_) => 0,
        };
        Ok(Flush { digest, bytes, content: Box::new(SealedFlush { sequence: self.sealed, content }) })
    }

    fn apply_flush(&mut self, flush: Flush, record: &[u8]) -> Result<(), StateError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Ok(flush) = flush.content.downcast::<SealedFlush>() else {
            return Err(internal("a flush of another backend"));
        };
        if flush.sequence != self.applied + 1 {
            return Err(internal(format!("region {}: flush {} is applied after flush {}", self.region, flush.sequence, self.applied)));
        }
        let begin = Instant::now();
        let bytes = match &flush.content {
            FlushContent::Bytes(bytes) => bytes.len() as u64,
            FlushContent::File(file) => file.bytes(),
        };
        self.write_flush(flush.content, record).inspect_err(|error| self.failed = Some(error.clone()))?;
        metrics::histogram!("streamshield_state_flush_seconds").record(begin.elapsed());
        metrics::counter!("streamshield_state_flushed_bytes_total").increment(bytes);
        self.applied = flush.sequence;
        self.tables.iter_mut().for_each(|table| table.applied(flush.sequence));
        Ok(())
    }

    fn seal_delta(&mut self) -> Result<Delta, StateError> {
        let mut encoder = Encoder::of_delta();
        self.tables.iter_mut().try_for_each(|table| table.seal_delta_removals(&mut encoder))?;
        encoder.reserve(self.tables.iter().map(Table::delta_bytes).sum());
        self.tables.iter_mut().try_for_each(|table| table.seal_delta_groups(&mut encoder))?;
        Ok(encoder.finish_delta(self.layout))
    }

    fn is_clean(&self) -> bool {
        self.sealed == self.applied && self.tables.iter().all(Table::is_clean)
    }

    fn apply_delta(&mut self, delta: &[u8], record: &[u8]) -> Result<Digest, StateError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if !self.is_clean() {
            return Err(internal(format!("region {}: a delta is applied to tables with changes of their own", self.region)));
        }
        let begin = Instant::now();
        let (changes, digest) = self.read_delta(delta)?;
        let written = self.write_delta(&changes, record);
        if let Err(error) = written.and_then(|()| self.tables.iter_mut().try_for_each(|table| table.changed_in_store(&changes))) {
            self.failed = Some(error.clone());
            return Err(error);
        }
        metrics::histogram!("streamshield_state_delta_apply_seconds").record(begin.elapsed());
        metrics::counter!("streamshield_state_delta_applied_bytes_total").increment(delta.len() as u64);
        Ok(digest)
    }

    fn copier(&self) -> Option<Box<dyn StoreCopier>> {
        Some(Box::new(Copier::new(Arc::clone(&self.store))))
    }

    fn evict(&mut self, target_bytes: usize) -> Result<(), StateError> {
        if self.total_bytes() <= target_bytes {
            return Ok(());
        }
        let windows = self.windows_by_age();
        for &(position, window) in &windows {
            let wanted = self.total_bytes().saturating_sub(target_bytes);
            if wanted > 0 {
                self.tables[position].evict_window(window, wanted)?;
            }
        }
        for unused_only in [true, false] {
            for &(position, window) in &windows {
                let wanted = self.total_bytes().saturating_sub(target_bytes);
                if wanted > 0 {
                    self.tables[position].evict_groups(window, wanted, unused_only);
                }
            }
        }
        self.tables.iter_mut().for_each(Table::forget_used);
        Ok(())
    }
}

impl Drop for RocksRegion {
    /// A clean close loses nothing that was applied.
    fn drop(&mut self) {
        if let Err(error) = self.store.flush() {
            tracing::warn!(region = %self.region, reason = %error.message, "closing the state store: the youngest flushes are lost");
        }
    }
}

/// Stands in for a table that the region was not opened with.
struct UnknownTable {
    region: RegionId,
}

impl UnknownTable {
    fn error<T>(&self) -> Result<T, StateError> {
        Err(internal(format!("region {} was opened without a table for this operator", self.region)))
    }
}

impl WindowTable for UnknownTable {
    fn merge(&mut self, _: Window, _: &[ArrayRef], _: &[ArrayRef]) -> Result<(), StateError> {
        self.error()
    }

    fn first_closed(&self, _: Watermark) -> Option<Window> {
        None
    }

    fn drain(&mut self, _: Window, _: usize) -> Result<Drained, StateError> {
        self.error()
    }

    fn groups(&self) -> usize {
        0
    }
}
