//! Each toxic as a plain client sees it. A lower bound on time is what a fault promises; there are no upper ones.

use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use streamshield_proxy::{Direction, Door, Drip, Flapping, Options, Strain, TcpProxy, Toxics};

fn proxy(name: &str, echo: &Echo) -> TcpProxy {
    TcpProxy::start(Options::new(name, echo.address).seed(7)).expect("start")
}

#[test]
fn latency_is_felt_once_per_way_and_ends_when_the_link_heals() {
    let echo = Echo::start();
    let proxy = proxy("latency", &echo);
    let mut client = connect(proxy.address());
    proxy.set_both(Toxics::latency(Duration::from_millis(150)));
    assert!(round_trip(&mut client, b"slow").expect("round trip") >= Duration::from_millis(300));
    proxy.set_both(Toxics { jitter: Duration::from_millis(50), ..Toxics::latency(Duration::from_millis(100)) });
    assert!(round_trip(&mut client, b"slow").expect("round trip") >= Duration::from_millis(100));
    assert!(proxy.counters().requests.delayed >= 2 && proxy.counters().responses.delayed >= 2);

    proxy.set(Direction::Requests, Toxics::latency(Duration::from_secs(600)));
    client.write_all(b"queued").expect("send");
    assert_eq!(look(&mut client, Duration::from_millis(200)), Sees::Nothing);
    proxy.heal();
    client.set_read_timeout(Some(PATIENCE)).expect("time-out");
    client.read_exact(&mut [0; 6]).expect("what waited comes at once");
}

#[test]
fn a_rate_holds_bytes_back() {
    let echo = Echo::start();
    let proxy = proxy("rate", &echo);
    let mut client = connect(proxy.address());
    proxy.set(Direction::Responses, Toxics { bytes_per_second: Some(20_000), ..Toxics::default() });
    let took = round_trip(&mut client, &[1; 10_000]).expect("round trip");
    // The last slice's pause comes behind the last byte.
    assert!(took >= Duration::from_millis(400), "{took:?}");
    assert!(proxy.counters().responses.paced > 0 && proxy.counters().requests.paced == 0);
}

#[test]
fn a_drip_gives_a_few_bytes_at_a_time() {
    let echo = Echo::start();
    let proxy = proxy("drip", &echo);
    let mut client = connect(proxy.address());
    proxy.set(Direction::Responses, Toxics { drip: Some(Drip { bytes: 3, pause: Duration::from_millis(20) }), ..Toxics::default() });
    client.write_all(b"0123456789").expect("send");
    let mut pieces = Vec::new();
    while pieces.iter().sum::<usize>() < 10 {
        match look(&mut client, PATIENCE) {
            Sees::Bytes(length) => pieces.push(length),
            other => panic!("{other:?}"),
        }
    }
    assert!(pieces.len() > 1 && pieces.iter().any(|length| *length <= 3), "{pieces:?}");
}

#[test]
fn a_swallowing_link_is_half_open_until_it_heals_and_then_resets_those_who_lost_bytes() {
    let echo = Echo::start();
    let proxy = proxy("swallows", &echo);
    let (mut loser, mut bystander) = (connect(proxy.address()), connect(proxy.address()));
    round_trip(&mut loser, b"before").expect("round trip");
    round_trip(&mut bystander, b"before").expect("round trip");
    proxy.set_both(Toxics::swallowing());
    loser.write_all(b"lost").expect("no reset");
    assert!(proxy.wait_for(PATIENCE, |counters| counters.requests.swallowed_bytes == 4));
    assert_eq!(look(&mut loser, Duration::from_millis(200)), Sees::Nothing, "neither an answer nor an end");
    assert_eq!(echo.received(), 12);
    proxy.heal();
    assert_eq!(look(&mut loser, PATIENCE), Sees::Reset);
    round_trip(&mut bystander, b"after").expect("whoever lost nothing goes on");
    assert_eq!(proxy.counters().reset, 1);
}

#[test]
fn a_swallowing_link_hides_the_end_of_a_client_from_the_server() {
    let echo = Echo::start();
    let proxy = proxy("hidden end", &echo);
    let mut client = connect(proxy.address());
    round_trip(&mut client, b"before").expect("round trip");
    proxy.set_both(Toxics::swallowing());
    drop(client);
    std::thread::sleep(Duration::from_millis(200));
    assert!(echo.ends.lock().expect("lock").is_empty(), "the server still believes in the connection");
    proxy.heal();
    eventually("the server sees a reset", || *echo.ends.lock().expect("lock") == [true]);
}

#[test]
fn a_one_way_link_takes_requests_and_loses_answers() {
    let echo = Echo::start();
    let proxy = proxy("one way", &echo);
    let mut client = connect(proxy.address());
    proxy.set(Direction::Responses, Toxics::swallowing());
    client.write_all(b"applied").expect("send");
    assert!(proxy.wait_for(PATIENCE, |counters| counters.responses.swallowed_bytes == 7));
    assert_eq!((echo.received(), look(&mut client, Duration::from_millis(100))), (7, Sees::Nothing));
    assert_eq!(proxy.counters().requests.swallowed_bytes, 0);
}

#[test]
fn a_stalled_link_delivers_late_and_stops_its_sender() {
    let echo = Echo::start();
    let proxy = proxy("stalls", &echo);
    let mut client = connect(proxy.address());
    proxy.set(Direction::Requests, Toxics::stalling());
    client.set_write_timeout(Some(Duration::from_millis(500))).expect("time-out");
    let chunk = vec![5; 1 << 20];
    let mut accepted = 0usize;
    // Far more than a queue and the kernel's buffers hold: the sender must be stopped.
    while accepted < 64 << 20 {
        match client.write(&chunk) {
            Ok(length) => accepted += length,
            Err(_) => break,
        }
    }
    assert!(accepted < 40 << 20, "back-pressure: {accepted} bytes were taken");
    assert_eq!((echo.received(), proxy.counters().requests.stalled), (0, 1));
    let mut reading = client.try_clone().expect("clone");
    let reader = std::thread::spawn(move || {
        let mut back = vec![0; accepted];
        reading.set_read_timeout(Some(PATIENCE)).expect("time-out");
        reading.read_exact(&mut back).expect("all of it comes back");
    });
    proxy.heal();
    reader.join().expect("nothing was lost");
    assert_eq!(proxy.counters().reset, 0);
}

#[test]
fn a_connection_is_cut_after_so_many_bytes() {
    let echo = Echo::start();
    let proxy = proxy("cut", &echo);
    proxy.set(Direction::Requests, Toxics { cut_after_bytes: Some(10), ..Toxics::default() });
    let mut client = connect(proxy.address());
    client.write_all(&[9; 25]).expect("send");
    let mut seen = 0;
    let end = loop {
        match look(&mut client, PATIENCE) {
            Sees::Bytes(length) => seen += length,
            end => break end,
        }
    };
    assert!(seen <= 10 && end == Sees::Reset, "{seen} {end:?}");
    // A reset may overtake what the server has not read yet.
    assert!(echo.received() <= 10);
    assert_eq!((proxy.counters().requests.bytes, proxy.counters().requests.cut), (10, 1));
}

#[test]
fn a_shut_door_resets_and_refuses_and_keeps_the_port() {
    let echo = Echo::start();
    let proxy = proxy("door", &echo);
    let mut client = connect(proxy.address());
    round_trip(&mut client, b"before").expect("round trip");
    proxy.set_door(Door::Refuse);
    assert_eq!(look(&mut client, PATIENCE), Sees::Reset);
    eventually("connections are refused", || {
        TcpStream::connect(proxy.address()).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    proxy.heal();
    eventually("the door is open again", || TcpStream::connect(proxy.address()).is_ok());
    round_trip(&mut connect(proxy.address()), b"after").expect("round trip");
    assert_eq!(proxy.counters().shut, 1);
}

#[test]
fn a_door_that_resets_at_once_lets_nobody_through() {
    let echo = Echo::start();
    let proxy = proxy("resets", &echo);
    proxy.set_door(Door::ResetAtOnce);
    eventually("a connection is turned away", || {
        let mut client = connect(proxy.address());
        look(&mut client, PATIENCE) == Sees::Reset && proxy.counters().turned_away > 0
    });
    assert_eq!(echo.received(), 0);
}

#[test]
fn a_flapping_link_is_down_and_up_by_turns() {
    let echo = Echo::start();
    let proxy = proxy("flaps", &echo);
    let period = Duration::from_millis(150);
    proxy.set_flapping(Some(Flapping { down: period, up: period }));
    assert!(proxy.wait_for(PATIENCE, |counters| counters.shut >= 3), "it was down three times");
    eventually("and up in between", || TcpStream::connect(proxy.address()).is_ok_and(|mut client| round_trip(&mut client, b"up").is_ok()));
    proxy.heal();
    let begin = Instant::now();
    while begin.elapsed() < 3 * period {
        eventually("it stays up", || TcpStream::connect(proxy.address()).is_ok());
    }
}

#[test]
fn a_share_of_connections_is_reset_and_a_call_resets_all() {
    let echo = Echo::start();
    let proxy = proxy("storm", &echo);
    let mut clients: Vec<TcpStream> = (0..40).map(|_| connect(proxy.address())).collect();
    for client in &mut clients {
        round_trip(client, b"there").expect("round trip");
    }
    proxy.set_reset_share(0.5);
    assert!(proxy.wait_for(PATIENCE, |counters| counters.reset >= 10));
    proxy.set_reset_share(0.0);
    let living = proxy.reset_connections() as u64;
    assert!(living > 0, "not all at once");
    assert_eq!(proxy.counters().reset, 40);
    for client in &mut clients {
        assert_eq!(look(client, PATIENCE), Sees::Reset);
    }
}

const BOTH: [Direction; 2] = [Direction::Requests, Direction::Responses];

#[test]
fn two_latencies_add_up_and_each_ends_alone() {
    let echo = Echo::start();
    let proxy = proxy("adds", &echo);
    let mut client = connect(proxy.address());
    let far = Toxics::latency(Duration::from_millis(150));
    proxy.set(Direction::Requests, far);
    let farther = proxy.strain(Strain::of(&[Direction::Requests], far));
    assert!(round_trip(&mut client, b"slow").expect("round trip") >= Duration::from_millis(300));
    proxy.heal();
    assert_eq!((proxy.toxics(Direction::Requests), proxy.toxics(Direction::Responses)), (far, Toxics::default()));
    assert!(round_trip(&mut client, b"slow").expect("round trip") >= Duration::from_millis(150));
    drop(farther);
    assert_eq!(proxy.toxics(Direction::Requests), Toxics::default());
}

#[test]
fn a_stall_outlives_the_end_of_all_else_on_its_link() {
    let echo = Echo::start();
    let proxy = proxy("outlives", &echo);
    let mut client = connect(proxy.address());
    proxy.set_both(Toxics::latency(Duration::from_millis(1)));
    let stall = proxy.strain(Strain::of(&[Direction::Requests], Toxics::stalling()));
    let drips = proxy.strain(Strain::of(&BOTH, Toxics { drip: Some(Drip { bytes: 1, pause: Duration::ZERO }), ..Toxics::default() }));
    client.write_all(b"queued").expect("send");
    assert!(proxy.wait_for(PATIENCE, |counters| counters.requests.stalled == 1));
    drop(drips);
    proxy.heal();
    assert_eq!((look(&mut client, Duration::from_millis(200)), echo.received()), (Sees::Nothing, 0));
    drop(stall);
    client.set_read_timeout(Some(PATIENCE)).expect("time-out");
    client.read_exact(&mut [0; 6]).expect("what waited arrives");
    assert_eq!(proxy.counters().reset, 0);
}

#[test]
fn who_has_lost_bytes_is_reset_when_the_passage_opens_and_not_when_it_only_stalls() {
    let echo = Echo::start();
    let proxy = proxy("loses, then stalls", &echo);
    let mut client = connect(proxy.address());
    round_trip(&mut client, b"before").expect("round trip");
    let swallows = proxy.strain(Strain::of(&BOTH, Toxics::swallowing()));
    client.write_all(b"lost").expect("no reset");
    assert!(proxy.wait_for(PATIENCE, |counters| counters.requests.swallowed_bytes == 4));
    let stall = proxy.strain(Strain::of(&BOTH, Toxics::stalling()));
    drop(swallows);
    assert_eq!(look(&mut client, Duration::from_millis(200)), Sees::Nothing);
    drop(stall);
    assert_eq!(look(&mut client, PATIENCE), Sees::Reset);
}

#[test]
fn a_door_that_was_shut_twice_opens_when_both_have_gone() {
    let echo = Echo::start();
    let proxy = proxy("shut twice", &echo);
    let shut = || proxy.strain(Strain { door: Door::Refuse, ..Strain::default() });
    let is_refused = || TcpStream::connect(proxy.address()).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
    let (first, second) = (shut(), shut());
    eventually("connections are refused", is_refused);
    drop(first);
    proxy.heal();
    std::thread::sleep(Duration::from_millis(200));
    assert!(is_refused());
    drop(second);
    eventually("the door is open again", || TcpStream::connect(proxy.address()).is_ok());
    round_trip(&mut connect(proxy.address()), b"after").expect("round trip");
    assert_eq!(proxy.counters().shut, 1);
}
