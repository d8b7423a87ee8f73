//! One client connection: frames in, frames out, in order.

use std::rc::Rc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Front, REQUEST_BYTES_MAX, dispatch};

const READ_BYTES_MIN: usize = 64 << 10;
/// A request is at least its key, version and correlation id.
const REQUEST_BYTES_MIN: usize = 8;

/// Serves until the client closes, sends what is no request, or the broker stops.
pub async fn serve(front: Rc<Front>, stream: TcpStream) {
    let peer = stream.peer_addr().ok();
    if let Err(error) = serve_requests(&front, stream).await {
        tracing::debug!(?peer, %error, "a connection was closed");
    }
    front.connections.set(front.connections.get() - 1);
}

async fn serve_requests(front: &Front, mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = BytesMut::with_capacity(READ_BYTES_MIN);
    let mut answer = BytesMut::new();
    loop {
        if !read_until(&mut stream, &mut received, 4).await? {
            return Ok(());
        }
        let length = (&received[..4]).get_i32();
        let length = usize::try_from(length).ok().filter(|length| (REQUEST_BYTES_MIN..=REQUEST_BYTES_MAX).contains(length));
        let length = length.ok_or_else(|| anyhow::anyhow!("a frame of an impossible length"))?;
        if !read_until(&mut stream, &mut received, 4 + length).await? {
            return Ok(());
        }
        received.advance(4);
        let request = received.split_to(length).freeze();
        answer.clear();
        if dispatch::answer(front, request, &mut answer).await? {
            stream.write_all(&answer).await?;
        }
        if answer.capacity() > REQUEST_BYTES_MAX {
            answer = BytesMut::new();
        }
    }
}

/// Reads until `wanted` bytes are there; false when the client has closed.
async fn read_until(stream: &mut TcpStream, received: &mut BytesMut, wanted: usize) -> std::io::Result<bool> {
    while received.len() < wanted {
        received.reserve((wanted - received.len()).max(READ_BYTES_MIN));
        if stream.read_buf(received).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}
