//! Bounds and refusals of the broker.

use std::net::SocketAddr;

use rdkafka::Offset;
use rdkafka::producer::Producer as _;
use streamshield_embedded::{Config, EmbeddedBroker, EmbeddedError};

use crate::conformance::kit::*;

#[test]
fn at_the_memory_limit_a_producer_waits_until_records_are_trimmed() -> anyhow::Result<()> {
    let broker = EmbeddedBroker::start(Config { memory_limit_bytes: 1 << 20, ..Config::default() })?;
    let env = Env::new(&broker.bootstrap_servers(), "limits");
    env.create("t", 1, &[])?;
    let producer = env.producer(&[("enable.idempotence", "true"), ("message.timeout.ms", "60000"), ("batch.num.messages", "100")])?;
    let filler = "x".repeat(1000);
    for number in 0..3000 {
        send(&producer, "t", 0, None, format!("{number} {filler}").as_bytes())?;
    }
    let end = || Ok::<_, anyhow::Error>(producer.client().fetch_watermarks("t", 0, STEP)?.1);
    let mut read = Vec::new();
    while read.len() < 3000 {
        // as much as fits comes, and is trimmed once it was read
        wait_until("the broker takes more", || {
            producer.poll(millis(1));
            Ok(end()? > read.len() as i64)
        })?;
        let more = env.read_from("t", 0, Offset::Offset(read.len() as i64), &[])?;
        read.extend(more.into_iter().map(|record| record.value));
        let trimmed = wait(env.admin()?.delete_records(&offsets("t", &[(0, read.len() as i64)])?, &admin_options()))?;
        trimmed.elements()[0].error()?;
    }
    flush(&producer)?;
    let numbers: Vec<usize> = read.iter().map(|value| value.split(' ').next().unwrap_or_default().parse()).collect::<Result<_, _>>()?;
    assert!(numbers.iter().copied().eq(0..3000), "each record once and in order");
    broker.shutdown()?;
    Ok(())
}

#[test]
fn the_broker_serves_loopback_only() {
    let listen = SocketAddr::from(([0, 0, 0, 0], 0));
    let started = EmbeddedBroker::start(Config { listen, ..Config::default() });
    assert!(matches!(started, Err(EmbeddedError::NotLoopback { .. })), "{started:?}");
}

#[test]
fn a_port_in_use_is_reported() -> anyhow::Result<()> {
    let first = EmbeddedBroker::start(Config::default())?;
    let second = EmbeddedBroker::start(Config { listen: first.address(), ..Config::default() });
    assert!(matches!(second, Err(EmbeddedError::Listen { .. })), "{second:?}");
    first.shutdown()?;
    Ok(())
}

#[test]
fn a_client_may_send_anything_and_the_broker_goes_on() -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};
    let broker = EmbeddedBroker::start(Config::default())?;
    let env = Env::new(&broker.bootstrap_servers(), "garbage");
    env.create("t", 1, &[])?;
    let frame = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
    let produce_with_rubbish = [&[0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0][..], &[0x7f; 40]].concat();
    let attempts: [Vec<u8>; 5] =
        [vec![0xff; 64], frame(&[0; 3]), frame(&[0x7f; 100]), frame(&produce_with_rubbish), b"GET / HTTP/1.1\r\n\r\n".to_vec()];
    for attempt in attempts {
        let mut stream = std::net::TcpStream::connect(broker.address())?;
        stream.set_read_timeout(Some(STEP))?;
        stream.write_all(&attempt)?;
        let closed = stream.read(&mut [0; 16]);
        assert!(matches!(closed, Ok(0)) || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset), "{attempt:?}");
    }
    expect("it goes on", send_all(&env.producer(&[])?, "t", 0, vec!["v".into()])?, vec![(0, 0)])?;
    broker.shutdown()?;
    Ok(())
}
