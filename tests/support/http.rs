//! One GET over HTTP on loopback: enough for `/ready`, `/metrics` and the status.

use anyhow::Result;
use std::net::SocketAddr;
use std::time::Duration;
use streamshield_faults::stage;
pub use streamshield_faults::stage::free_address;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Status code and body.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let answer = stage::get(address, path, TIMEOUT)?;
    Ok((answer.code, answer.text()))
}
