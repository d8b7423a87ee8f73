//! The formats and the built-in connectors.
//!
//! | connector | source | sink |
//! |---|---|---|
//! | [`nexmark`] | the auction site of the Nexmark benchmark | |
//! | [`datagen`] | made-up rows of any schema | |
//! | [`filesystem`] | lines of files, bounded | a file per epoch, exactly once |
//! | [`print`](mod@print) | | the terminal |
//! | [`blackhole`] | | nothing |
//!
//! - [`formats`]: bytes to rows and back (`json`, `csv`, `raw`), used by every connector that carries records.
//! - [`options`]: typed reading of `WITH (…)`, used by every connector.
//!
//! Each connector's folder has the same files: `mod.rs` (what it is, and the factory), `options.rs`, `source.rs` or `sink.rs`
//! or what stands for them, and `README.md` with all options.

pub mod blackhole;
pub mod datagen;
pub mod filesystem;
pub mod formats;
mod generator;
pub mod nexmark;
pub mod options;
pub mod print;

use std::sync::Arc;
use streamshield_core::ports::Connectors;

/// Adds all connectors of this crate.
pub fn register(connectors: &mut Connectors) {
    connectors.add_source(Arc::new(nexmark::NexmarkConnector));
    connectors.add_source(Arc::new(datagen::DatagenConnector));
    connectors.add_source(Arc::new(filesystem::FilesystemConnector));
    connectors.add_sink(Arc::new(filesystem::FilesystemConnector));
    connectors.add_sink(Arc::new(print::PrintConnector));
    connectors.add_sink(Arc::new(blackhole::BlackholeConnector));
}
