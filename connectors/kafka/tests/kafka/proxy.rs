//! A proxy that understands just enough of Kafka's protocol to cut a connection at EndTxn.
//!
//! Every address of the broker in its answers (host, then port in four bytes) is rewritten to the proxy's, so that the
//! client comes back through it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

const END_TXN: i16 = 26;

/// What happens to the next EndTxn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The broker gets it, the client loses the connection in place of the answer.
    Answer,
    /// The broker never gets it.
    Request,
}

#[derive(Default)]
struct State {
    cuts_answer: AtomicBool,
    cuts_request: AtomicBool,
    end_txns: AtomicI32,
}

pub struct Proxy {
    pub address: String,
    state: Arc<State>,
}

impl Proxy {
    pub fn start(broker: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let state = Arc::new(State::default());
        let (broker, shared) = (broker.to_string(), Arc::clone(&state));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&broker) else { continue };
                connection(client, server, &broker, port, &shared);
            }
        });
        Proxy { address: format!("127.0.0.1:{port}"), state }
    }

    pub fn cut_next(&self, cut: Cut) {
        let flag = if cut == Cut::Answer { &self.state.cuts_answer } else { &self.state.cuts_request };
        flag.store(true, Ordering::SeqCst);
    }

    /// EndTxn requests so far.
    pub fn end_txns(&self) -> i32 {
        self.state.end_txns.load(Ordering::SeqCst)
    }
}

/// Serves one connection with two threads, which end with it.
fn connection(client: TcpStream, server: TcpStream, broker: &str, port: u16, state: &Arc<State>) {
    let (host, broker_port) = broker.rsplit_once(':').expect("host:port");
    let address = |port: u16| [host.as_bytes(), &i32::from(port).to_be_bytes()].concat();
    let (from, to) = (address(broker_port.parse().expect("port")), address(port));
    let swallows = Arc::new(AtomicBool::new(false));
    let close = |one: &TcpStream, other: &TcpStream| {
        for stream in [one, other] {
            // Already closed is as good.
            stream.shutdown(Shutdown::Both).ok();
        }
    };
    let (mut requests, mut onward) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
    let (state, swallowing) = (Arc::clone(state), Arc::clone(&swallows));
    std::thread::spawn(move || {
        while let Some(frame) = read_frame(&mut requests) {
            if i16::from_be_bytes([frame[4], frame[5]]) == END_TXN {
                state.end_txns.fetch_add(1, Ordering::SeqCst);
                if state.cuts_request.swap(false, Ordering::SeqCst) {
                    break;
                }
                if state.cuts_answer.swap(false, Ordering::SeqCst) {
                    swallowing.store(true, Ordering::SeqCst);
                }
            }
            if onward.write_all(&frame).is_err() {
                break;
            }
        }
        close(&requests, &onward);
    });
    let (mut answers, mut back) = (server, client);
    std::thread::spawn(move || {
        while let Some(mut frame) = read_frame(&mut answers) {
            if swallows.load(Ordering::SeqCst) {
                break;
            }
            let found: Vec<usize> = frame.windows(from.len()).enumerate().filter(|(_, window)| *window == from).map(|(at, _)| at).collect();
            for at in found {
                frame[at..at + to.len()].copy_from_slice(&to);
            }
            if back.write_all(&frame).is_err() {
                break;
            }
        }
        close(&answers, &back);
    });
}

/// One message of the protocol, with its length in front.
fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    stream.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}
