//! The accept loop: opens and shuts the door, starts connections, resets a share of them.

use super::{CONNECTIONS_MAX, Protocol, Shared, Verdict, bind};
use crate::http::exchange;
use crate::kafka::frames;
use crate::link::lane::{Halves, Wire};
use crate::link::tcp;
use crate::toxics::Door;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections that wait in the kernel.
const BACKLOG: u32 = 128;
/// How often connections are drawn for a reset.
const RESET_TICK: Duration = Duration::from_millis(100);
/// How long connecting to the server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connections may take to reset their clients at the end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// The random choices of the link itself; connections are counted from one.
const RESETS: u64 = 0;

pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    bind(address)?.listen(BACKLOG)
}

/// Serves until the settings say that it ends.
pub(super) async fn serve(shared: Arc<Shared>, protocol: Protocol, address: SocketAddr, listener: TcpListener) {
    let mut settings = shared.settings.subscribe();
    let mut listener = Some(listener);
    let mut tasks = JoinSet::new();
    let (mut random, mut connections) = (shared.random(RESETS), 0);
    let mut next_draw = Instant::now() + RESET_TICK;
    let mut was_refused = false;
    loop {
        let (door, changes_at, share, ends) = {
            let now = settings.borrow_and_update();
            let (door, changes_at) = now.door_at(Instant::now());
            (door, changes_at, now.reset_share(), now.ends)
        };
        if ends {
            break;
        }
        apply(&shared, door, address, &mut listener);
        if share > 0.0 && Instant::now() >= next_draw {
            reset_some(&shared, share, &mut random);
            next_draw = Instant::now() + RESET_TICK;
        }
        // A port that could not be opened again is tried again; a share is drawn at each tick.
        let ticks = share > 0.0 || (listener.is_none() && door != Door::Refuse);
        let tick = ticks.then(|| Instant::now() + RESET_TICK);
        let wake = [changes_at, tick].into_iter().flatten().min();
        let has_room = tasks.len() < CONNECTIONS_MAX;
        tokio::select! {
            // The shared sender lives as long as this task.
            _ = settings.changed() => {}
            () = sleep_until(wake) => {}
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(link = shared.name, %error, "a connection's task failed");
                }
            }
            accepted = accept(listener.as_ref()), if has_room => {
                let client = match accepted {
                    Ok((client, _)) => client,
                    Err(error) => {
                        if !was_refused {
                            tracing::warn!(link = shared.name, %error, "a proxy can't accept a connection");
                        }
                        was_refused = true;
                        // Where descriptors are short, who waits in the queue is still there at once.
                        tokio::time::sleep(RESET_TICK).await;
                        continue;
                    }
                };
                was_refused = false;
                connections += 1;
                if door == Door::ResetAtOnce {
                    // With no linger, closing resets; one that is closed already is as good.
                    let _ = client.set_zero_linger();
                    shared.counters.add(|counters| counters.turned_away += 1);
                    continue;
                }
                let connection = watch::Sender::new(Verdict::Lives);
                shared.connections.lock().insert(connections, connection.clone());
                shared.counters.add(|counters| (counters.accepted, counters.open) = (counters.accepted + 1, counters.open + 1));
                tasks.spawn(run(Arc::clone(&shared), protocol.clone(), client, connections, connection));
            }
        }
    }
    shared.reset_all();
    drop(listener);
    // They end by themselves, and reset their clients; one that does not is ended.
    let all = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(END_TIMEOUT, all).await;
    tasks.shutdown().await;
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// Listens or not, and resets the living when the door is not open.
fn apply(shared: &Shared, door: Door, address: SocketAddr, listener: &mut Option<TcpListener>) {
    if door == Door::Refuse {
        if listener.take().is_some() {
            shared.counters.add(|counters| counters.shut += 1);
        }
    } else if listener.is_none() {
        match listen(address) {
            Ok(opened) => *listener = Some(opened),
            Err(error) => tracing::warn!(link = shared.name, %address, %error, "a proxy can't listen again yet"),
        }
    }
    if door != Door::Open {
        shared.reset_all();
    }
}

fn reset_some(shared: &Shared, share: f64, random: &mut ChaCha8Rng) {
    let chance = 1.0 - (1.0 - share).powf(RESET_TICK.as_secs_f64());
    for connection in shared.connections.lock().values() {
        if random.random_bool(chance) {
            shared.reset(connection);
        }
    }
}

/// One connection, from the client's connect to the end of both sides.
async fn run(shared: Arc<Shared>, protocol: Protocol, client: TcpStream, number: u64, connection: watch::Sender<Verdict>) {
    let _entry = Entry { shared: &shared, number };
    let upstream = shared.settings.borrow().upstream;
    let mut verdict = connection.subscribe();
    let server = tokio::select! {
        connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(upstream)) => connected,
        _ = verdict.wait_for(|verdict| *verdict != Verdict::Lives) => {
            let _ = client.set_zero_linger();
            return;
        }
    };
    let Ok(Ok(server)) = server else {
        shared.counters.add(|counters| counters.upstream_failed += 1);
        let _ = client.set_zero_linger();
        return;
    };
    for stream in [&client, &server] {
        // Small frames must not wait; a closed socket shows in the first read.
        let _ = stream.set_nodelay(true);
    }
    let wire = Wire { shared: Arc::clone(&shared), number, connection };
    let halves = Halves::of(client, server);
    match protocol {
        Protocol::Bytes => tcp::serve(wire, halves).await,
        Protocol::Kafka(state) => frames::serve(wire, state, halves).await,
        Protocol::Http(rules) => exchange::serve(wire, rules, halves).await,
    }
}

/// The connection's place in the link's books, given back also on a panic.
struct Entry<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.shared.connections.lock().remove(&self.number);
        self.shared.counters.add(|counters| counters.open -= 1);
    }
}
