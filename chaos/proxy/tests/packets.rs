//! Lost packets, where the host can lose them.

use crate::support::*;
use std::process::Stdio;
use std::time::Duration;
use streamshield_proxy::packets::{LossyNetwork, PacketsError, are_lossable};
use streamshield_proxy::{Options, TcpProxy};

/// A program inside of the namespace connects to a proxy on the host's end, while every other packet is lost.
#[test]
fn packets_of_a_namespace_are_lost_or_the_host_says_why_not() {
    if let Err(PacketsError::NotPossibleHere(why)) = are_lossable() {
        assert!(!why.is_empty());
        println!("LEFT OUT: packets can't be lost here: {why}");
        return;
    }
    let network = LossyNetwork::create("sstest1", 77).expect("create");
    let echo = Echo::start();
    let listen = (network.host_address(), 0).into();
    let proxy = TcpProxy::start(Options::new("lossy", echo.address).listen(listen)).expect("start");
    network.set_loss(30).expect("set the loss");
    let (host, port) = (proxy.address().ip(), proxy.address().port());
    let script =
        format!("exec 3<>/dev/tcp/{host}/{port}; for n in $(seq 8); do echo $n >&3; read -u 3 back; [ \"$back\" = $n ] || exit 1; done");
    let mut inside = network.command("bash").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("start");
    let ended = std::time::Instant::now();
    let status = loop {
        if let Some(status) = inside.try_wait().expect("wait") {
            break status;
        }
        assert!(ended.elapsed() < Duration::from_secs(60), "TCP gets through a loss of 30 %");
        std::thread::sleep(Duration::from_millis(20));
    };
    let dropped = network.dropped().expect("count");
    println!("{dropped} packets dropped in {:?}", ended.elapsed());
    assert!(status.success() && dropped > 0);
    network.set_loss(0).expect("end the loss");
    assert_eq!(network.dropped().expect("count"), 0);
    let undo = network.undo_script();
    drop(network);
    assert!(undo.contains("sstest1"));
    assert!(LossyNetwork::create("sstest1", 77).is_ok(), "nothing was left behind");
}
