//! Reads a socket by amounts that its protocol asks for.

use super::lane::READ_BYTES;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

/// A socket with what was read ahead.
pub(crate) struct Reader {
    from: OwnedReadHalf,
    pub buffer: BytesMut,
}

impl Reader {
    pub fn new(from: OwnedReadHalf) -> Reader {
        Reader { from, buffer: BytesMut::new() }
    }

    /// Reads on; false at the end of the stream. A reset is an end as well.
    pub async fn more(&mut self) -> bool {
        self.buffer.reserve(READ_BYTES);
        matches!(self.from.read_buf(&mut self.buffer).await, Ok(1..))
    }

    /// Reads until there are so many bytes; false when the stream ends before.
    pub async fn fill(&mut self, bytes: usize) -> bool {
        while self.buffer.len() < bytes {
            if !self.more().await {
                return false;
            }
        }
        true
    }

    /// The next bytes, which must be there.
    pub fn take(&mut self, bytes: usize) -> Bytes {
        self.buffer.split_to(bytes).freeze()
    }

    /// What is there of the next bytes, at least one; none when the stream ends.
    pub async fn some(&mut self, most: u64) -> Option<Bytes> {
        if self.buffer.is_empty() && !self.more().await {
            return None;
        }
        let length = self.buffer.len().min(READ_BYTES).min(usize::try_from(most).unwrap_or(usize::MAX));
        Some(self.take(length))
    }

    /// Takes what nobody wants any more, until the sender ends: ending earlier would reset it.
    pub async fn drain(mut self) {
        self.buffer.clear();
        while self.more().await {
            self.buffer.clear();
        }
    }
}
