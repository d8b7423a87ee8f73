//! A server that echoes, and clients with patience.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a test waits for anything that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server that sends back what it gets, and knows what that was.
pub struct Echo {
    pub address: SocketAddr,
    pub received: Arc<AtomicU64>,
    /// How the connections ended that have: true is a reset.
    pub ends: Arc<Mutex<Vec<bool>>>,
}

impl Echo {
    pub fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let (received, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counting, ending) = (Arc::clone(&received), Arc::clone(&ends));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counting, ending) = (Arc::clone(&counting), Arc::clone(&ending));
                std::thread::spawn(move || {
                    let was_reset = echo(stream, &counting);
                    ending.lock().expect("lock").push(was_reset);
                });
            }
        });
        Echo { address, received, ends }
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }
}

fn echo(mut stream: TcpStream, received: &AtomicU64) -> bool {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                received.fetch_add(length as u64, Ordering::SeqCst);
                if stream.write_all(&buffer[..length]).is_err() {
                    return true;
                }
            }
            Err(_) => return true,
        }
    }
}

/// Connects with a time-out on every read.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Sends these and waits for them to come back; how long it took.
pub fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Duration> {
    let begin = Instant::now();
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, bytes, "bytes come back as they were");
    Ok(begin.elapsed())
}

/// What a client sees of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    Bytes(usize),
    End,
    Reset,
    Nothing,
}

/// Reads once, for so long.
pub fn look(stream: &mut TcpStream, patience: Duration) -> Sees {
    stream.set_read_timeout(Some(patience)).expect("time-out");
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) => Sees::End,
        Ok(length) => Sees::Bytes(length),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Sees::Nothing,
        Err(_) => Sees::Reset,
    }
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
