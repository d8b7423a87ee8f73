//! Bytes only: for protocols that no proxy here reads, such as HDFS's RPC, and how any connection comes to its end.
//!
//! ```text
//! the server ends  ─▶ what it sent is delivered, then the client's side is closed
//! the client ends  ─▶ what it sent is delivered (a held frame included), then the server's side is closed;
//!                     answers are taken until the server ends as well, for at most LINGER
//! ```

use super::lane::{Delivery, Gone, Halves, Lane, Wire};
use super::reader::Reader;
use super::{Link, Options, Protocol};
use crate::runtime::ProxyError;
use crate::toxics::Direction;
use std::future::Future;
use std::ops::Deref;
use std::time::Duration;
use tokio::net::tcp::OwnedReadHalf;

/// How long a server may take to end a connection whose client has ended.
const LINGER: Duration = Duration::from_secs(10);

/// A proxy that passes bytes.
#[derive(Debug)]
pub struct TcpProxy {
    link: Link,
}

impl TcpProxy {
    pub fn start(options: Options) -> Result<TcpProxy, ProxyError> {
        Ok(TcpProxy { link: Link::start(options, Protocol::Bytes)? })
    }
}

impl Deref for TcpProxy {
    type Target = Link;
    fn deref(&self) -> &Link {
        &self.link
    }
}

pub(super) async fn serve(wire: Wire, halves: Halves) {
    let Halves { from_client, to_client, from_server, to_server } = halves;
    let (onward, delivers_requests) = Lane::new(&wire, Direction::Requests, to_server);
    let (back, delivers_responses) = Lane::new(&wire, Direction::Responses, to_client);
    let requests = copy(from_client, onward);
    let responses = copy(from_server, back);
    run(&wire, requests, delivers_requests, responses, delivers_responses).await;
}

/// Passes on what is read; the end of the reading is the end of the stream.
async fn copy(from: OwnedReadHalf, mut lane: Lane) {
    let mut reader = Reader::new(from);
    loop {
        let passed = match reader.some(u64::MAX).await {
            // A receiver that is gone needs no end.
            None => return drop(lane.finish().await),
            Some(bytes) => lane.push(bytes).await,
        };
        if let Err(Gone) = passed {
            return reader.drain().await;
        }
    }
}

/// Runs both directions of a connection to their end, or to its reset.
pub(crate) async fn run(
    wire: &Wire,
    requests: impl Future<Output = ()>,
    delivers_requests: Delivery,
    responses: impl Future<Output = ()>,
    delivers_responses: Delivery,
) {
    let both = async {
        let onward = async { tokio::join!(requests, delivers_requests.run()) };
        let back = async { tokio::join!(responses, delivers_responses.run()) };
        tokio::pin!(onward, back);
        tokio::select! {
            // The server has ended, and what it sent is delivered or nobody's.
            _ = &mut back => {}
            // The client has ended, and what it sent is delivered.
            _ = &mut onward => {
                let _ = tokio::time::timeout(LINGER, back).await;
            }
        }
    };
    tokio::select! {
        () = both => {}
        () = wire.ended() => {}
    }
}
