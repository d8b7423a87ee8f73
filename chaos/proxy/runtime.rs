//! The one small runtime under all proxies of a process, and what can go wrong at a start.

use std::net::SocketAddr;
use std::sync::OnceLock;
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads for all proxies: they copy bytes and sleep.
const WORKER_THREADS: usize = 2;

/// Why a proxy did not start. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Another address may be free.
    #[error("the proxy '{name}' can't listen on {address}: {source}")]
    Listen { name: String, address: SocketAddr, source: std::io::Error },
    /// The host gives no threads: nothing to do but report it.
    #[error("the proxies' runtime does not start: {0}")]
    Runtime(String),
}

/// Where the proxies run.
pub(crate) fn handle() -> Result<&'static Handle, ProxyError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || Builder::new_multi_thread().worker_threads(WORKER_THREADS).thread_name("proxy").enable_all().build();
    match RUNTIME.get_or_init(|| start().map_err(|error| error.to_string())) {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(ProxyError::Runtime(error.clone())),
    }
}
