//! What was seen live against what is there at the end: aborted reads, unseen rows, offsets with two values.

use super::Row;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use crate::observer::{BLOCK_OFFSETS, Block, Flow, Observation};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Compares one output.
pub struct SeenCheck<'a> {
    flow: Flow,
    topic: String,
    seen: &'a Observation,
    there: BTreeMap<i32, Vec<Block>>,
}

impl<'a> SeenCheck<'a> {
    pub fn new(flow: Flow, topic: &str, seen: &'a Observation) -> SeenCheck<'a> {
        SeenCheck { flow, topic: topic.to_string(), seen, there: BTreeMap::new() }
    }

    pub fn take(&mut self, row: &Row<'_>) {
        // What lies behind the last row that was seen may have been committed after the observer had stopped.
        let Some(seen) = self.seen.partition(self.flow, row.partition).filter(|seen| row.offset < seen.next) else { return };
        let blocks = self.there.entry(row.partition).or_insert_with(|| vec![Block::default(); seen.blocks.len()]);
        blocks[(row.offset / BLOCK_OFFSETS) as usize].add(row.offset, row.key, Some(row.payload));
    }

    pub fn finish(self) -> Findings {
        let mut findings = Findings::default();
        for (partition, seen) in self.seen.partitions_of(self.flow) {
            let there = self.there.get(&partition).map_or(&[][..], Vec::as_slice);
            for (index, seen) in seen.blocks.iter().enumerate() {
                let there = there.get(index).copied().unwrap_or_default();
                let (kind, count) = match seen.rows.cmp(&there.rows) {
                    Ordering::Greater => (AnomalyKind::AbortedRead, seen.rows - there.rows),
                    Ordering::Less => (AnomalyKind::Unseen, there.rows - seen.rows),
                    Ordering::Equal if seen.sum != there.sum => (AnomalyKind::InconsistentOffsets, 1),
                    Ordering::Equal => continue,
                };
                let from = index as i64 * BLOCK_OFFSETS;
                let detail =
                    format!("of offsets {from} to {} a reader saw {} rows, there are {}", from + BLOCK_OFFSETS - 1, seen.rows, there.rows);
                let anomaly = Anomaly::new(kind, Invariant::E3, detail).at(&self.topic, partition, from);
                findings.add_many(anomaly, u64::from(count));
            }
        }
        findings
    }
}
