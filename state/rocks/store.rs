//! One region's RocksDB: the few calls that are used of it, and what their errors mean.
//!
//! The write-ahead log is off, so a batch is durable once its memtable is flushed, and RocksDB flushes when it likes. That is
//! harmless: all there is lies in one column family, a batch is never torn, and each carries its epoch record. What a crash leaves
//! is the store after some flush, and says which.
//!
//! A flush larger than a memtable would hold all of it in memory twice more. It is written as table files instead, which RocksDB takes
//! in atomically, after flushing what came before.

use super::Config;
use crate::error::{damaged, internal, io};
use crate::flush::{Prefix, SealedFlush, after_prefix, parse_prefix, window_prefix};
use crate::tables::RESERVED_OPERATOR;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator, Env, ErrorKind,
    IngestExternalFileOptions, LogLevel, LruCacheOptions, Options, ReadOptions, SstFileWriter, WriteBatch, WriteBufferManager,
    WriteOptions,
};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use streamshield_core::ports::state::{StateError, Window};

const DEFAULT_FAMILY: &str = "default";
const RECORD_KEY: [u8; 3] = [(RESERVED_OPERATOR >> 8) as u8, RESERVED_OPERATOR as u8, b'r'];
const INGESTED_ENTRIES: &str = "entries.ingest";
const INGESTED_META: &str = "meta.ingest";
const FORMAT_KEY: [u8; 3] = [(RESERVED_OPERATOR >> 8) as u8, RESERVED_OPERATOR as u8, b'f'];
/// Keys of one multi-get: each pins a block and an allocation until it is read.
const MULTI_GET_KEYS: usize = 8192;

/// What the stores of all regions share.
pub(crate) struct Shared {
    pub cache: Cache,
    pub write_buffers: WriteBufferManager,
    pub env: Env,
}

impl Shared {
    pub fn new(config: &Config) -> Result<Self, StateError> {
        // Write buffers are charged to the cache: the two budgets are one pool.
        let mut cache = LruCacheOptions::default();
        cache.set_capacity(config.block_cache_bytes + config.write_buffer_bytes);
        // As many as RocksDB would make on its own have no room for a large block each.
        cache.set_num_shard_bits(3);
        let cache = Cache::new_lru_cache_opts(&cache);
        let write_buffers = WriteBufferManager::new_write_buffer_manager_with_cache(config.write_buffer_bytes, false, cache.clone());
        let mut env = Env::new().map_err(|error| io(format!("cannot start RocksDB's threads: {error}")))?;
        env.set_background_threads(config.background_threads);
        env.set_high_priority_background_threads(1);
        Ok(Shared { cache, write_buffers, env })
    }

    fn options(&self, config: &Config) -> Options {
        let mut tables = BlockBasedOptions::default();
        tables.set_block_cache(&self.cache);
        tables.set_cache_index_and_filter_blocks(true);
        tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
        tables.set_ribbon_filter(10.0);
        // In parts: the filter of a file with a million groups does not stay in the cache as a whole, and reading it
        // back for every batch took more than two thirds of all time when ten million groups were mostly evicted.
        tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        tables.set_partition_filters(true);
        tables.set_metadata_block_size(16 * 1024);
        tables.set_pin_top_level_index_and_filter(true);
        tables.set_format_version(6);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&tables);
        options.set_write_buffer_manager(&self.write_buffers);
        options.set_env(&self.env);
        options.set_atomic_flush(true);
        options.set_paranoid_checks(true);
        options.set_write_buffer_size(memtable_bytes(config));
        options.set_max_write_buffer_number(3);
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.05);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_max_open_files(config.open_files_per_region);
        options.set_max_background_jobs(config.background_threads + 1);
        options.set_log_level(LogLevel::Warn);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1024 * 1024);
        options.set_max_manifest_file_size(4 * 1024 * 1024);
        options
    }
}

fn memtable_bytes(config: &Config) -> usize {
    (config.write_buffer_bytes / 2).clamp(64 << 10, 64 << 20)
}

/// What a RocksDB error asks for.
fn classify(what: &str, error: rocksdb::Error) -> StateError {
    let kind = error.kind();
    let message = error.into_string();
    let is_missing_file = message.contains("No such file");
    let described = format!("{what}: {message}");
    match kind {
        ErrorKind::Corruption | ErrorKind::NotFound | ErrorKind::InvalidArgument | ErrorKind::NotSupported => damaged(described),
        ErrorKind::IOError if is_missing_file => damaged(described),
        _ => io(described),
    }
}

/// Whatever stops a write, what is on disk is still a valid prefix.
fn write_error(error: rocksdb::Error) -> StateError {
    io(format!("cannot write to the state store: {}", error.into_string()))
}

fn batch_of(flush: &SealedFlush, record: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::with_capacity_bytes(flush.written_bytes() + flush.written_bytes() / 8 + 1024);
    flush.removed_ranges().for_each(|(from, to)| batch.delete_range(&from[..], &to[..]));
    let put = |key: &[u8], states: &[u8]| {
        batch.put(key, states);
        Ok::<_, Infallible>(())
    };
    match flush.try_for_each_entry(put) {
        Ok(()) => {}
    }
    batch.put(RECORD_KEY, record);
    batch
}

/// Writes a flush as two table files. A range that is deleted in a file hides no entry of the same file.
fn write_tables(
    options: &Options,
    flush: &SealedFlush,
    record: &[u8],
    format: &str,
    entries: &Path,
    meta: &Path,
) -> Result<(), rocksdb::Error> {
    let mut writer = SstFileWriter::create(options);
    writer.open(entries)?;
    for (from, to) in flush.removed_ranges() {
        writer.delete_range(&from[..], &to[..])?;
    }
    flush.try_for_each_entry(|key, states| writer.put(key, states))?;
    writer.finish()?;
    // The store's own entries lie far from the groups: in one file they would make its key range overlap with every other.
    let mut writer = SstFileWriter::create(options);
    writer.open(meta)?;
    writer.put(FORMAT_KEY, format)?;
    writer.put(RECORD_KEY, record)?;
    writer.finish()
}

/// Deletes table files that a crash left behind before they were ingested.
fn remove_leftovers(directory: &Path) -> Result<(), StateError> {
    for name in [INGESTED_ENTRIES, INGESTED_META] {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io(format!("cannot delete {name} in {}: {error}", directory.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(crate) struct Store {
    db: DB,
    write_options: WriteOptions,
    options: Options,
    directory: PathBuf,
    format: String,
    // A batch goes into one memtable whole, whatever the budget says.
    batch_bytes_max: usize,
}

impl Store {
    /// Opens or creates a store. A store that another format or other tables left behind counts as damaged.
    pub fn open(path: &Path, shared: &Shared, config: &Config, format: &str) -> Result<Self, StateError> {
        let options = shared.options(config);
        let families = [ColumnFamilyDescriptor::new(DEFAULT_FAMILY, options.clone())];
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|error| classify("cannot open the state store", error))?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        remove_leftovers(path)?;
        let batch_bytes_max = config.batch_bytes_max.min(memtable_bytes(config) / 2);
        let store = Store { db, write_options, options, directory: path.to_owned(), format: format.to_owned(), batch_bytes_max };
        match store.get(&FORMAT_KEY)? {
            Some(found) if found == format.as_bytes() => {}
            Some(found) => {
                return Err(damaged(format!("the state store is of format {:?}, this is {format:?}", String::from_utf8_lossy(&found))));
            }
            None if store.is_empty()? => {
                let mut batch = WriteBatch::default();
                batch.put(FORMAT_KEY, format);
                store.write(batch)?;
            }
            None => return Err(damaged("the state store does not say its format")),
        }
        store.verify(config.verified_bytes_on_open_max)?;
        Ok(store)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.db.get(key).map_err(|error| classify("cannot read the state store", error))
    }

    /// The record of the last applied flush.
    pub fn record(&self) -> Result<Option<Vec<u8>>, StateError> {
        self.get(&RECORD_KEY)
    }

    fn is_empty(&self) -> Result<bool, StateError> {
        let mut first = self.db.raw_iterator();
        first.seek_to_first();
        check_iterator(&first)?;
        Ok(!first.valid())
    }

    /// Reads all of a small store, so that damage is found now and not in the middle of an epoch.
    fn verify(&self, bytes_max: u64) -> Result<(), StateError> {
        let files = self.db.live_files().map_err(|error| classify("cannot list the state store", error))?;
        if files.iter().map(|file| file.size as u64).sum::<u64>() > bytes_max {
            return Ok(());
        }
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_verify_checksums(true);
        let mut all = self.db.raw_iterator_opt(options);
        all.seek_to_first();
        while all.valid() {
            all.next();
        }
        check_iterator(&all)
    }

    /// Writes a flush with its record, at once or not at all.
    pub fn apply(&self, flush: &SealedFlush, record: &[u8]) -> Result<(), StateError> {
        if flush.written_bytes() > self.batch_bytes_max {
            self.ingest(flush, record)?;
        } else {
            self.write(batch_of(flush, record))?;
        }
        match self.db.property_int_value("rocksdb.background-errors") {
            Ok(Some(errors)) if errors > 0 => Err(io(format!("the state store reports {errors} errors in the background"))),
            _ => Ok(()),
        }
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StateError> {
        self.db.write_opt(batch, &self.write_options).map_err(write_error)
    }

    /// Hands a flush over as table files. RocksDB takes all of them in at once.
    fn ingest(&self, flush: &SealedFlush, record: &[u8]) -> Result<(), StateError> {
        let entries = self.directory.join(INGESTED_ENTRIES);
        let meta = self.directory.join(INGESTED_META);
        write_tables(&self.options, flush, record, &self.format, &entries, &meta).map_err(write_error)?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let ingested = self.db.ingest_external_file_opts(&options, vec![&entries, &meta]).map_err(write_error);
        // They are linked into the store, or of no use.
        remove_leftovers(&self.directory)?;
        ingested
    }

    /// Makes everything applied durable.
    pub fn flush(&self) -> Result<(), StateError> {
        self.db.flush().map_err(|error| io(format!("cannot flush the state store: {}", error.into_string())))
    }

    /// Calls `found` for every key that is there. The keys are sorted.
    pub fn get_sorted(&self, keys: &[&[u8]], mut found: impl FnMut(&[u8], &[u8]) -> Result<(), StateError>) -> Result<(), StateError> {
        let family = self.db.cf_handle(DEFAULT_FAMILY).ok_or_else(|| internal("the default column family has no handle"))?;
        for keys in keys.chunks(MULTI_GET_KEYS) {
            let values = self.db.batched_multi_get_cf(family, keys.iter().copied(), true);
            for (key, value) in keys.iter().zip(values) {
                if let Some(value) = value.map_err(|error| classify("cannot read the state store", error))? {
                    found(key, &value)?;
                }
            }
        }
        Ok(())
    }

    /// The groups of a window whose keys are greater than `after`.
    pub fn range(&self, prefix: &Prefix, after: Option<&[u8]>) -> Result<StoreRange<'_>, StateError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(after_prefix(prefix));
        options.set_readahead_size(1024 * 1024);
        let mut iterator = self.db.raw_iterator_opt(options);
        match after {
            None => iterator.seek(prefix),
            // Nothing lies between a key and the key with a zero byte appended.
            Some(last) => iterator.seek([&prefix[..], last, &[0]].concat()),
        }
        Ok(StoreRange { iterator })
    }

    /// The windows of an operator that have groups.
    pub fn windows(&self, operator: u16) -> Result<Vec<Window>, StateError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound((operator + 1).to_be_bytes());
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(operator.to_be_bytes());
        let mut windows = vec![];
        while let Some(key) = iterator.key() {
            let Some((_, window)) = parse_prefix(key) else {
                return Err(damaged("a key in the state store names no window"));
            };
            windows.push(window);
            iterator.seek(after_prefix(&window_prefix(operator, window)));
        }
        check_iterator(&iterator)?;
        Ok(windows)
    }
}

fn check_iterator(iterator: &DBRawIterator<'_>) -> Result<(), StateError> {
    iterator.status().map_err(|error| classify("cannot read the state store", error))
}

/// A cursor over groups in key order.
pub(crate) struct StoreRange<'store> {
    iterator: DBRawIterator<'store>,
}

impl StoreRange<'_> {
    /// The next key and its states.
    pub fn peek(&self) -> Result<Option<(&[u8], &[u8])>, StateError> {
        match self.iterator.item() {
            Some(item) => Ok(Some(item)),
            None => check_iterator(&self.iterator).map(|()| None),
        }
    }

    pub fn advance(&mut self) {
        self.iterator.next();
    }
}
