//! Free ports and small questions over HTTP, all on loopback.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Below the range from which the system gives out client ports: a port that is chosen here is not taken by a connection before it is used.
const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

/// The S3 server of the stage checks no signatures, but lets nobody read who has none. Workers don't look at it.
const AUTHORIZATION: &str =
    "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A port on which nobody listens, and which is not given out again soon.
pub(crate) fn free_port() -> Result<u16> {
    // Processes start at different places, so that stages that are started at the same time don't look at the same ports.
    let _ = NEXT.compare_exchange(0, std::process::id().wrapping_mul(613) % COUNT + 1, Ordering::Relaxed, Ordering::Relaxed);
    for _ in 0..COUNT {
        let port = (FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) as u16;
        if TcpListener::bind(loopback(port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port between {FIRST} and {} is free", FIRST + COUNT)
}

/// The same with loopback's address.
pub fn free_address() -> Result<SocketAddr> {
    free_port().map(loopback)
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One request in HTTP/1.0, so that the answer ends with the connection and comes in one piece.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, body: &[u8], timeout: Duration) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\n{AUTHORIZATION}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("an HTTP answer has a head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an HTTP answer has a code")?;
    Ok(Answer { code, head, body: bytes.split_off(end + 4) })
}

/// One question on loopback.
pub fn get(address: SocketAddr, path: &str, timeout: Duration) -> Result<Answer> {
    ask(address, "GET", path, &[], timeout)
}
