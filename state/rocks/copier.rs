//! A copy of a region's store for a checkpoint, made beside the engine.
//!
//! RocksDB links the table files and copies what little else there is (`CURRENT`, the manifest, its options), so a copy costs the flush of a memtable and
//! some milliseconds, whatever the size of the state. The engine may apply flushes meanwhile. Which of them the copy has is known only from the copy:
//! so the record is read there.
//!
//! On failure: no folder is left behind.

use super::store::Store;
use crate::error::io;
use std::path::Path;
use std::sync::Arc;
use streamshield_core::ports::state::{StateError, StoreCopier};

pub(crate) struct Copier {
    store: Arc<Store>,
}

impl Copier {
    pub fn new(store: Arc<Store>) -> Self {
        Copier { store }
    }
}

impl StoreCopier for Copier {
    fn copy_to(&self, directory: &Path) -> Result<Option<Vec<u8>>, StateError> {
        if directory.symlink_metadata().is_ok() {
            return Err(io(format!("the state store cannot be copied to {}, which exists", directory.display())));
        }
        let record = self.store.copy_to(directory);
        if record.is_err() {
            // What went wrong is in the error; that something stays behind is not.
            if let Err(error) = super::directory::delete(directory) {
                tracing::warn!(reason = %error.message, "an unusable copy of a state store stays behind");
            }
        }
        record
    }
}
