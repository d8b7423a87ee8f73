//! One region's RocksDB: the few calls that are used of it, and what their errors mean.
//!
//! The write-ahead log is off, so a batch is durable once its memtable is flushed, and RocksDB flushes when it likes. That is
//! harmless: all there is lies in one column family, a batch is never torn, and each carries its epoch record. What a crash leaves
//! is the store after some flush, and says which.
//!
//! A flush or delta larger than a memtable would hold all of it in memory twice more. It is written as table files instead
//! ([`TableWriter`]), which RocksDB takes in atomically, after flushing what came before.

use super::table_file::{self, TableFile, TableWriter};
use super::{Config, OpenRegion};
use crate::changes::{Changes, Prefix, after_prefix, parse_prefix, window_prefix};
use crate::error::{damaged, internal, io};
use crate::tables::RESERVED_OPERATOR;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator, Env, ErrorKind,
    IngestExternalFileOptions, LogLevel, LruCacheOptions, Options, ReadOptions, WriteBatch, WriteBufferManager, WriteOptions,
};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use streamshield_core::ports::state::{StateError, Window};

const DEFAULT_FAMILY: &str = "default";
pub(super) const RECORD_KEY: [u8; 3] = [(RESERVED_OPERATOR >> 8) as u8, RESERVED_OPERATOR as u8, b'r'];
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
pub(super) fn classify(what: &str, error: rocksdb::Error) -> StateError {
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
pub(super) fn write_error(error: rocksdb::Error) -> StateError {
    io(format!("cannot write to the state store: {}", error.into_string()))
}

fn batch_of(changes: &Changes<'_>, record: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::with_capacity_bytes(changes.written_bytes() + changes.written_bytes() / 8 + 1024);
    changes.removed_ranges().for_each(|(from, to)| batch.delete_range(&from[..], &to[..]));
    let put = |key: &[u8], states: &[u8]| {
        batch.put(key, states);
        Ok::<_, Infallible>(())
    };
    match changes.try_for_each_entry(put) {
        Ok(()) => {}
    }
    batch.put(RECORD_KEY, record);
    batch
}

/// Deletes table files that a crash left behind before they were taken in.
fn remove_leftovers(directory: &Path) -> Result<(), StateError> {
    remove_files(directory, |name| name.ends_with(table_file::SUFFIX))
}

fn remove_file(path: &Path) -> Result<(), StateError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(format!("cannot delete {}: {error}", path.display()))),
        _ => Ok(()),
    }
}

fn remove_files(directory: &Path, is_useless: impl Fn(&str) -> bool) -> Result<(), StateError> {
    let unreadable = |error| io(format!("cannot list {}: {error}", directory.display()));
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if is_useless(&entry.file_name().to_string_lossy()) {
            remove_file(&entry.path())?;
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
    // Last, so that the region counts as open until the store is closed.
    _claim: Arc<OpenRegion>,
}

impl Store {
    /// Opens or creates a store. A store that another format or other tables left behind counts as damaged.
    pub fn open(path: &Path, shared: &Shared, config: &Config, format: &str, claim: Arc<OpenRegion>) -> Result<Self, StateError> {
        let options = shared.options(config);
        let families = [ColumnFamilyDescriptor::new(DEFAULT_FAMILY, options.clone())];
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|error| classify("cannot open the state store", error))?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        remove_leftovers(path)?;
        let batch_bytes_max = config.batch_bytes_max.min(memtable_bytes(config) / 2);
        let (directory, format) = (path.to_owned(), format.to_owned());
        let store = Store { db, write_options, options, directory, format, batch_bytes_max, _claim: claim };
        match store.get(&FORMAT_KEY)? {
            Some(found) if found == store.format.as_bytes() => {}
            Some(found) => {
                return Err(damaged(format!(
                    "the state store is of format {:?}, this is {:?}",
                    String::from_utf8_lossy(&found),
                    store.format
                )));
            }
            None if store.is_empty()? => {
                let mut batch = WriteBatch::default();
                batch.put(FORMAT_KEY, &store.format);
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

    /// The record of the last applied flush or delta.
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

    /// Writes changes with their record, at once or not at all.
    pub fn apply(&self, changes: &Changes<'_>, record: &[u8]) -> Result<(), StateError> {
        if !self.is_large(changes.written_bytes()) {
            self.write(batch_of(changes, record))?;
            return self.check_background();
        }
        let mut writer = self.table_writer()?;
        for (from, to) in changes.removed_ranges() {
            writer.delete_range(&from, &to)?;
        }
        changes.try_for_each_entry(|key, states| writer.put(key, states))?;
        let (file, _) = writer.finish()?;
        self.take_in(file, record)
    }

    /// Whether so many bytes go through a table file and not through a memtable.
    pub fn is_large(&self, bytes: usize) -> bool {
        bytes > self.batch_bytes_max
    }

    /// A table file beside the store, for changes that are taken in later.
    pub fn table_writer(&self) -> Result<TableWriter<'_>, StateError> {
        TableWriter::create(&self.options, &self.directory)
    }

    /// Takes in a table file with its record, at once or not at all.
    pub fn take_in(&self, changes: TableFile, record: &[u8]) -> Result<(), StateError> {
        // The store's own entries lie far from the groups: in one file they would make its key range overlap with every other.
        let mut meta = self.table_writer()?;
        meta.put(&FORMAT_KEY, self.format.as_bytes())?;
        meta.put(&RECORD_KEY, record)?;
        let (meta, _) = meta.finish()?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db.ingest_external_file_opts(&options, vec![changes.path(), meta.path()]).map_err(write_error)?;
        self.check_background()
    }

    fn check_background(&self) -> Result<(), StateError> {
        match self.db.property_int_value("rocksdb.background-errors") {
            Ok(Some(errors)) if errors > 0 => Err(io(format!("the state store reports {errors} errors in the background"))),
            _ => Ok(()),
        }
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StateError> {
        self.db.write_opt(batch, &self.write_options).map_err(write_error)
    }

    /// Makes everything applied durable.
    pub fn flush(&self) -> Result<(), StateError> {
        self.db.flush().map_err(|error| io(format!("cannot flush the state store: {}", error.into_string())))
    }

    /// Makes a copy of all that was applied in a folder that does not exist yet: links to the table files, which never change. Flushes may be applied
    /// meanwhile; the copy has the first of them, as many as it has. Returns the record in it.
    pub fn copy_to(&self, directory: &Path) -> Result<Option<Vec<u8>>, StateError> {
        // Writes out the memtable first, the only place where something applied may be without a write-ahead log.
        let copied = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(directory));
        copied.map_err(|error| io(format!("cannot copy the state store to {}: {}", directory.display(), error.into_string())))?;
        let record = self.record_of_copy(directory)?;
        // Not part of the store: RocksDB's log of the look at it.
        remove_files(directory, |name| name.starts_with("LOG"))?;
        Ok(record)
    }

    fn record_of_copy(&self, directory: &Path) -> Result<Option<Vec<u8>>, StateError> {
        let copy = open_read_only(self.options.clone(), directory)?;
        copy.get(RECORD_KEY).map_err(|error| classify("cannot read the copy of the state store", error))
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

/// For reading alone: no file of the store is changed.
pub(super) fn open_read_only(mut options: Options, directory: &Path) -> Result<DB, StateError> {
    options.create_if_missing(false);
    options.set_skip_stats_update_on_db_open(true);
    let families = [(DEFAULT_FAMILY, options.clone())];
    DB::open_cf_with_opts_for_read_only(&options, directory, families, false)
        .map_err(|error| classify("cannot open the state store for reading", error))
}

pub(super) fn check_iterator(iterator: &DBRawIterator<'_>) -> Result<(), StateError> {
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
