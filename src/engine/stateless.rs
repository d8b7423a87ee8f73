//! The state of a region that has none.

use streamshield_core::ids::Digest;
use streamshield_core::ports::state::{Delta, Flush, RegionState, StateBytes, StateError, StateErrorKind, StoreCopier, WindowTable};

/// Holds nothing; asking it for a table is a bug.
pub struct NoState;

impl RegionState for NoState {
    fn table(&mut self, operator: u16) -> &mut dyn WindowTable {
        unreachable!("operator {operator} of a stage without state asks for a table")
    }
    fn bytes(&self) -> StateBytes {
        StateBytes::default()
    }
    fn seal_flush(&mut self) -> Result<Flush, StateError> {
        Err(nothing_to_flush())
    }
    fn apply_flush(&mut self, _flush: Flush, _record: &[u8]) -> Result<(), StateError> {
        Err(nothing_to_flush())
    }
    fn seal_delta(&mut self) -> Result<Delta, StateError> {
        Err(nothing_to_flush())
    }
    fn is_clean(&self) -> bool {
        true
    }
    fn apply_delta(&mut self, _delta: &[u8], _record: &[u8]) -> Result<Digest, StateError> {
        Err(nothing_to_flush())
    }
    fn copier(&self) -> Option<Box<dyn StoreCopier>> {
        None
    }
    fn evict(&mut self, _target_bytes: usize) -> Result<(), StateError> {
        Ok(())
    }
}

fn nothing_to_flush() -> StateError {
    StateError { kind: StateErrorKind::Internal, message: "a stage without state has nothing to flush".into() }
}
