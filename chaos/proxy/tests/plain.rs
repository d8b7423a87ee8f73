//! What a link does without any fault, and how it begins and ends.

use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use streamshield_proxy::{Options, TcpProxy};

#[test]
fn bytes_pass_both_ways_unchanged_and_are_counted() {
    let echo = Echo::start();
    let proxy = TcpProxy::start(Options::new("plain", echo.address)).expect("start");
    let mut client = connect(proxy.address());
    let bytes: Vec<u8> = (0..1 << 20).map(|number| (number % 251) as u8).collect();
    let mut sending = client.try_clone().expect("clone");
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || sending.write_all(&sent).expect("send"));
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).expect("receive");
    sender.join().expect("no panic");
    assert!(back == bytes, "bytes were changed on the way");
    let counters = proxy.counters();
    assert_eq!((counters.accepted, counters.open, counters.requests.bytes, counters.responses.bytes), (1, 1, 1 << 20, 1 << 20));
}

#[test]
fn the_end_of_a_client_reaches_the_server_and_back() {
    let echo = Echo::start();
    let proxy = TcpProxy::start(Options::new("end", echo.address)).expect("start");
    let mut client = connect(proxy.address());
    round_trip(&mut client, b"hello").expect("round trip");
    client.shutdown(std::net::Shutdown::Write).expect("half close");
    assert_eq!(look(&mut client, PATIENCE), Sees::End);
    eventually("the server saw the end, not a reset", || *echo.ends.lock().expect("lock") == [false]);
    assert!(proxy.wait_for(PATIENCE, |counters| counters.open == 0));
}

#[test]
fn a_server_that_is_not_there_resets_the_client_and_is_counted() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let proxy = TcpProxy::start(Options::new("nobody", nobody)).expect("start");
    let mut client = connect(proxy.address());
    assert_eq!(look(&mut client, PATIENCE), Sees::Reset);
    assert_eq!(proxy.counters().upstream_failed, 1);
}

#[test]
fn a_proxy_that_is_dropped_resets_its_connections_and_gives_its_port_back() {
    let echo = Echo::start();
    let proxy = TcpProxy::start(Options::new("dropped", echo.address)).expect("start");
    let address = proxy.address();
    let mut client = connect(address);
    round_trip(&mut client, b"hello").expect("round trip");
    drop(proxy);
    assert_eq!(look(&mut client, PATIENCE), Sees::Reset);
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    let again = TcpProxy::start(Options::new("again", echo.address).listen(address)).expect("the port is free");
    round_trip(&mut connect(again.address()), b"hello").expect("round trip");
}

#[test]
fn a_port_that_is_taken_is_an_error_with_the_link_in_it() {
    let echo = Echo::start();
    let error = TcpProxy::start(Options::new("taken", echo.address).listen(echo.address)).expect_err("taken");
    assert!(error.to_string().contains("taken") && error.to_string().contains(&echo.address.to_string()), "{error}");
}
