//! A small HTTP proxy on loopback that misbehaves as a test wants: answers 503, hangs after the headers, cuts connections, loses answers, cuts
//! bodies short.
//!
//! One request per connection: it reads a request, decides, forwards it, reads the whole answer, and gives that back with `connection: close`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Forward,
    /// This status with this body; the request is not forwarded.
    Status(u16, String),
    /// Forwarded; the client gets this status all the same.
    ForwardThenStatus(u16),
    /// Forwarded; the client's connection is closed without an answer.
    ForwardThenCut,
    /// Closed at once.
    Cut,
    /// The headers of the answer and nothing more.
    HangAfterHeaders,
    /// Headers with the whole length, half of the body, end of connection.
    HalfBody,
    /// A complete answer with half of the body, and a length that agrees.
    HalfBodyThatAgrees,
}

type Plan = dyn FnMut(&str, &str) -> Answer + Send;

pub struct Proxy {
    pub endpoint: String,
    plan: Arc<Mutex<Box<Plan>>>,
    _runtime: Runtime,
}

/// A message of HTTP/1.1: its head with the empty line, and its body.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Proxy {
    /// `plan` is asked with the method and the path of each request.
    pub fn start(upstream: &str, plan: impl FnMut(&str, &str) -> Answer + Send + 'static) -> Proxy {
        let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().unwrap();
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let plan: Arc<Mutex<Box<Plan>>> = Arc::new(Mutex::new(Box::new(plan)));
        let shared = plan.clone();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let plan = shared.clone();
                tokio::spawn(async move {
                    // A cut connection is what some tests want.
                    let _ = serve(client, upstream, &plan).await;
                });
            }
        });
        Proxy { endpoint, plan, _runtime: runtime }
    }

    pub fn set(&self, plan: impl FnMut(&str, &str) -> Answer + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, plan: &Mutex<Box<Plan>>) -> std::io::Result<()> {
    let request = read_message(&mut client, false).await?;
    let mut line = request.head.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (line.next().unwrap_or_default().to_owned(), line.next().unwrap_or_default().to_owned());
    let answer = (plan.lock().unwrap())(&method, &path);
    match &answer {
        Answer::Cut => return Ok(()),
        Answer::Status(status, body) => return respond(&mut client, *status, body).await,
        _ => {}
    }
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(with_header(&request.head, "connection", "close").as_bytes()).await?;
    server.write_all(&request.body).await?;
    let response = read_message(&mut server, method == "HEAD").await?;
    let head = with_header(&response.head, "connection", "close");
    let half = response.body.len() / 2;
    match answer {
        Answer::ForwardThenStatus(status) => return respond(&mut client, status, "").await,
        Answer::ForwardThenCut => return Ok(()),
        Answer::HangAfterHeaders => {
            client.write_all(head.as_bytes()).await?;
            client.flush().await?;
            std::future::pending::<()>().await;
        }
        Answer::HalfBody => {
            client.write_all(head.as_bytes()).await?;
            client.write_all(&response.body[..half]).await?;
        }
        Answer::HalfBodyThatAgrees => {
            client.write_all(with_header(&head, "content-length", &half.to_string()).as_bytes()).await?;
            client.write_all(&response.body[..half]).await?;
        }
        _ => {
            client.write_all(head.as_bytes()).await?;
            client.write_all(&response.body).await?;
        }
    }
    client.shutdown().await
}

async fn respond(client: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} Injected\r\ncontent-type: application/xml\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await
}

/// The head with a header replaced or added.
fn with_header(head: &str, name: &str, value: &str) -> String {
    let is_other = |line: &&str| !line.to_ascii_lowercase().starts_with(&format!("{name}:")) && !line.is_empty();
    let mut lines: Vec<String> = head.split("\r\n").filter(is_other).map(str::to_owned).collect();
    lines.push(format!("{name}: {value}"));
    lines.join("\r\n") + "\r\n\r\n"
}

async fn read_message(stream: &mut TcpStream, has_no_body: bool) -> std::io::Result<Message> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(head_end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    if head.to_ascii_lowercase().contains("expect: 100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let length = if has_no_body { 0 } else { length.unwrap_or(0) };
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Message { head, body })
}
