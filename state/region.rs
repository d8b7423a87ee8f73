//! All state of one region: its tables, the order of its flushes, its share of memory.

use crate::error::{internal, io};
use crate::flush::SealedFlush;
use crate::rocks::{OpenRegion, Store};
use crate::tables::Table;
use arrow_array::ArrayRef;
use std::sync::Arc;
use std::time::Instant;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::state::{Drained, Flush, RegionState, StateBytes, StateError, Window, WindowTable};
use streamshield_core::watermark::Watermark;

pub(crate) struct RocksRegion {
    region: RegionId,
    tables: Vec<Table>,
    /// Answers for operators that have no table.
    unknown: UnknownTable,
    sealed: u64,
    applied: u64,
    /// Why a flush could not be applied: none after it can be either.
    failed: Option<StateError>,
    store: Arc<Store>,
    // Last, so that the region counts as open until the store is closed.
    _claim: OpenRegion,
}

impl RocksRegion {
    pub fn new(region: RegionId, tables: Vec<Table>, store: Arc<Store>, claim: OpenRegion) -> Self {
        let unknown = UnknownTable { region };
        RocksRegion { region, tables, unknown, sealed: 0, applied: 0, failed: None, store, _claim: claim }
    }

    fn write(&self, flush: &SealedFlush, record: &[u8]) -> Result<(), StateError> {
        fail::fail_point!("state::apply_flush", |_| Err(io("fail point state::apply_flush")));
        self.store.apply(flush, record)?;
        fail::fail_point!("state::after_flush", |_| Err(io("fail point state::after_flush")));
        Ok(())
    }

    fn total_bytes(&self) -> usize {
        self.tables.iter().map(|table| table.bytes().total).sum()
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

    fn seal_flush(&mut self) -> Result<Flush, StateError> {
        self.sealed += 1;
        let mut flush = SealedFlush::new(self.sealed);
        self.tables.iter_mut().for_each(|table| table.seal(&mut flush));
        Ok(Flush { digest: flush.digest(), bytes: flush.bytes(), content: Box::new(flush) })
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
        if let Err(error) = self.write(&flush, record) {
            self.failed = Some(error.clone());
            return Err(error);
        }
        metrics::histogram!("streamshield_state_flush_seconds").record(begin.elapsed());
        metrics::counter!("streamshield_state_flushed_bytes_total").increment(flush.bytes() as u64);
        self.applied = flush.sequence;
        self.tables.iter_mut().for_each(|table| table.applied(flush.sequence));
        Ok(())
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
