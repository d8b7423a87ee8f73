//! How soon the two allocators of this process give memory back.
//!
//! Rust allocates with mimalloc, RocksDB and librdkafka with the C library. Both keep what was freed, to be fast for a program that will want it
//! again: mimalloc for a second, the C library for ever, in up to eight arenas per processor. Here large buffers come and go within milliseconds
//! (sorting a window's groups, encoding a flush, messages on their way), so a process with a budget of 512 MiB had 150 to 300 MiB of freed memory
//! resident at its peak, and processor time does not get less by it (measured with ten million keys in one window).
//!
//! Who sets `MIMALLOC_PURGE_DELAY` or `MALLOC_ARENA_MAX` knows better, and is obeyed.

use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay` in mimalloc.h.
const PURGE_DELAY: c_int = 15;
const PURGE_DELAY_MS: c_long = 10;
/// `M_ARENA_MAX` in malloc.h.
#[cfg(target_env = "gnu")]
const ARENA_MAX: c_int = -8;
#[cfg(target_env = "gnu")]
const ARENAS: c_int = 2;

unsafe extern "C" {
    fn mi_option_set_default(option: c_int, value: c_long);
    #[cfg(target_env = "gnu")]
    fn mallopt(parameter: c_int, value: c_int) -> c_int;
}

/// To be called before the process has a second thread, which would get an arena of its own.
pub fn tune() {
    // SAFETY: sets a number, unless the environment has set it.
    unsafe { mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) };
    #[cfg(target_env = "gnu")]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: sets a number; where the C library refuses, all is as it was.
        unsafe { mallopt(ARENA_MAX, ARENAS) };
    }
}
