//! Heads and bodies of HTTP/1.1, as far as a proxy must know where they end.

use crate::link::reader::Reader;
use bytes::Bytes;

/// The largest head (M-1).
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Headers in a head.
const HEADERS_MAX: usize = 128;
/// The longest line between chunks.
const LINE_BYTES_MAX: usize = 8 << 10;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    /// With the connection.
    ToTheEnd,
}

/// A head as it came, and what of it the proxy goes by.
pub(super) struct Head {
    pub bytes: Bytes,
    /// Of a request.
    pub method: String,
    pub path: String,
    /// Of an answer.
    pub status: u16,
    pub framing: Framing,
    pub closes: bool,
    pub expects_continue: bool,
}

/// Why no message follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The sender has ended, or what it sends is no HTTP.
    Sender,
    /// Nobody takes it.
    Receiver,
}

impl From<crate::link::lane::Gone> for Over {
    fn from(_: crate::link::lane::Gone) -> Over {
        Over::Receiver
    }
}

/// Reads a request's head.
pub(super) async fn request_head(reader: &mut Reader) -> Result<Head, Over> {
    let bytes = head_bytes(reader).await?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&bytes).map_err(|_| Over::Sender)?;
    let method = request.method.unwrap_or_default().to_string();
    let path = request.path.unwrap_or_default().to_string();
    let (framing, closes, expects_continue) = by_headers(request.headers, Framing::Length(0));
    let closes = closes || request.version == Some(0);
    Ok(Head { bytes: bytes.clone(), method, path, status: 0, framing, closes, expects_continue })
}

/// Reads an answer's head; whether it has a body depends on the request's method.
pub(super) async fn response_head(reader: &mut Reader, method: &str) -> Result<Head, Over> {
    let bytes = head_bytes(reader).await?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(&bytes).map_err(|_| Over::Sender)?;
    let status = response.code.unwrap_or_default();
    let (mut framing, closes, _) = by_headers(response.headers, Framing::ToTheEnd);
    if method == "HEAD" || status == 204 || status == 304 || (100..200).contains(&status) {
        framing = Framing::Length(0);
    }
    let closes = closes || framing == Framing::ToTheEnd || response.version == Some(0);
    Ok(Head { bytes: bytes.clone(), method: String::new(), path: String::new(), status, framing, closes, expects_continue: false })
}

async fn head_bytes(reader: &mut Reader) -> Result<Bytes, Over> {
    let mut searched = 0usize;
    loop {
        let from = searched.saturating_sub(3);
        if let Some(at) = reader.buffer[from..].windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(reader.take(from + at + 4));
        }
        searched = reader.buffer.len();
        if searched > HEAD_BYTES_MAX || !reader.more().await {
            return Err(Over::Sender);
        }
    }
}

fn by_headers(headers: &[httparse::Header<'_>], without: Framing) -> (Framing, bool, bool) {
    let (mut framing, mut closes, mut expects_continue) = (without, false, false);
    for header in headers {
        let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" if framing != Framing::Chunked => framing = value.trim().parse().map_or(framing, Framing::Length),
            "transfer-encoding" if value.contains("chunked") => framing = Framing::Chunked,
            "connection" => closes = value.contains("close"),
            "expect" => expects_continue = value.contains("100-continue"),
            _ => {}
        }
    }
    (framing, closes, expects_continue)
}

/// A head with another `Content-Length`.
pub(super) fn with_length(head: &Bytes, length: u64) -> Bytes {
    let text = String::from_utf8_lossy(head);
    let is_length = |line: &str| line.to_ascii_lowercase().starts_with("content-length:");
    let lines = text.split("\r\n").map(|line| if is_length(line) { format!("Content-Length: {length}") } else { line.to_string() });
    Bytes::from(lines.collect::<Vec<_>>().join("\r\n"))
}

/// A body on its way.
pub(super) struct Body {
    framing: Framing,
    /// Bytes of the body, or of the chunk, to come.
    left: u64,
    place: Place,
}

/// Where in a chunked body.
#[derive(PartialEq, Eq)]
enum Place {
    Size,
    Data,
    Trailer,
    Done,
}

impl Body {
    pub fn new(framing: Framing) -> Body {
        let left = if let Framing::Length(length) = framing { length } else { 0 };
        Body { framing, left, place: Place::Size }
    }

    /// Whether its end has passed. One that goes on to the connection's end is never over.
    pub fn is_over(&self) -> bool {
        match self.framing {
            Framing::Length(_) => self.left == 0,
            Framing::Chunked => self.place == Place::Done,
            Framing::ToTheEnd => false,
        }
    }

    /// The next bytes as they are on the wire, and whether they are content; none at the end of the body.
    pub async fn piece(&mut self, reader: &mut Reader, most: u64) -> Result<Option<(Bytes, bool)>, Over> {
        match self.framing {
            Framing::Length(_) if self.left == 0 => Ok(None),
            Framing::Length(_) => {
                let bytes = reader.some(self.left.min(most)).await.ok_or(Over::Sender)?;
                self.left -= bytes.len() as u64;
                Ok(Some((bytes, true)))
            }
            Framing::ToTheEnd => Ok(reader.some(most).await.map(|bytes| (bytes, true))),
            Framing::Chunked => self.chunk_piece(reader, most).await,
        }
    }

    async fn chunk_piece(&mut self, reader: &mut Reader, most: u64) -> Result<Option<(Bytes, bool)>, Over> {
        match self.place {
            Place::Done => Ok(None),
            Place::Data => {
                let bytes = reader.some(self.left.min(most)).await.ok_or(Over::Sender)?;
                self.left -= bytes.len() as u64;
                if self.left == 0 {
                    self.place = Place::Size;
                }
                Ok(Some((bytes, true)))
            }
            Place::Size => {
                let line = line(reader).await?;
                let text = String::from_utf8_lossy(&line);
                let size = text.split(';').next().unwrap_or_default().trim();
                // The line's end behind a chunk's data.
                if !size.is_empty() {
                    self.left = u64::from_str_radix(size, 16).map_err(|_| Over::Sender)?;
                    self.place = if self.left == 0 { Place::Trailer } else { Place::Data };
                }
                Ok(Some((line, false)))
            }
            Place::Trailer => {
                let line = line(reader).await?;
                if &line[..] == b"\r\n" {
                    self.place = Place::Done;
                }
                Ok(Some((line, false)))
            }
        }
    }
}

async fn line(reader: &mut Reader) -> Result<Bytes, Over> {
    loop {
        if let Some(at) = reader.buffer.windows(2).position(|window| window == b"\r\n") {
            return Ok(reader.take(at + 2));
        }
        if reader.buffer.len() > LINE_BYTES_MAX || !reader.more().await {
            return Err(Over::Sender);
        }
    }
}
