//! The link under every proxy: a port, its connections, and the settings that all of them look at.
//!
//! ```text
//! settings (watch) ──▶ accept loop: listens, or holds the port without listening; resets the living when it shuts
//!                 └──▶ lanes: one per direction and connection, each looks again before every slice
//! ```
//! The port is kept by a second socket that is bound but never listens: while the door is shut the kernel refuses
//! connections as it does for a dead process, and nobody else gets the port.
//!
//! On failure: a server that can't be reached is counted, and its client is reset. A panic in a connection's task ends that connection.

pub(crate) mod accept;
pub(crate) mod lane;
pub(crate) mod reader;
pub(crate) mod tcp;

use crate::counters::{Counters, Watched};
use crate::http::rules::Http;
use crate::kafka::KafkaState;
use crate::rules::Rules;
use crate::runtime::{ProxyError, handle};
use crate::toxics::{Direction, Door, Flapping, Strain, Toxics};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::sync::watch;

/// Connections of one link (M-1).
pub const CONNECTIONS_MAX: usize = 256;
/// Bytes that a connection buffers per direction (M-1). With latency it bounds the rate: so many bytes per latency.
pub const QUEUE_BYTES_MAX: usize = 4 << 20;
/// How long ending a proxy waits for its tasks.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How a proxy is started.
#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    pub upstream: SocketAddr,
    /// Port 0 takes a free one, on loopback by default.
    pub listen: SocketAddr,
    pub seed: u64,
}

impl Options {
    pub fn new(name: impl Into<String>, upstream: SocketAddr) -> Options {
        Options { name: name.into(), upstream, listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), seed: 0 }
    }

    pub fn listen(self, listen: SocketAddr) -> Options {
        Options { listen, ..self }
    }

    pub fn seed(self, seed: u64) -> Options {
        Options { seed, ..self }
    }
}

/// What is said on the link.
#[derive(Clone)]
pub(crate) enum Protocol {
    Bytes,
    Kafka(Arc<KafkaState>),
    Http(Arc<Rules<Http>>),
}

/// The number of the strain that the link's own calls set.
const OWN: u64 = 0;

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// All that the link suffers from, by number, and since when it flaps.
    pub strains: BTreeMap<u64, (Strain, Instant)>,
    pub upstream: SocketAddr,
    pub ends: bool,
}

impl Settings {
    pub fn toxics(&self, direction: Direction) -> Toxics {
        self.strains.values().fold(Toxics::default(), |all, (strain, _)| all.and(strain.toxics(direction)))
    }

    /// Share of the connections that is reset within a second.
    pub fn reset_share(&self) -> f64 {
        1.0 - self.strains.values().map(|(strain, _)| 1.0 - strain.reset_share).product::<f64>()
    }

    /// The door as it is now, and when that changes by itself.
    pub fn door_at(&self, now: Instant) -> (Door, Option<Instant>) {
        let (mut door, mut changes_at) = (Door::Open, None);
        for (strain, since) in self.strains.values() {
            door = door.max(strain.door);
            if let Some(flapping) = &strain.flapping {
                let (is_down, left) = flapping.phase(now.saturating_duration_since(*since));
                door = if is_down { Door::Refuse } else { door };
                changes_at = [changes_at, now.checked_add(left)].into_iter().flatten().min();
            }
        }
        (door, changes_at)
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Lives,
    Reset,
}

/// What all tasks of a link share.
pub(crate) struct Shared {
    pub name: String,
    pub seed: u64,
    pub settings: watch::Sender<Settings>,
    pub counters: Watched<Counters>,
    pub connections: Mutex<BTreeMap<u64, watch::Sender<Verdict>>>,
}

impl Shared {
    /// Resets one connection, at most once; false when it was over.
    pub fn reset(&self, connection: &watch::Sender<Verdict>) -> bool {
        let is_first = connection.send_if_modified(|verdict| std::mem::replace(verdict, Verdict::Reset) == Verdict::Lives);
        if is_first {
            self.counters.add(|counters| counters.reset += 1);
        }
        is_first
    }

    pub fn reset_all(&self) -> usize {
        self.connections.lock().values().filter(|connection| self.reset(connection)).count()
    }

    /// Its own sequence of random choices for each purpose.
    pub fn random(&self, purpose: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(purpose);
        random
    }
}

/// A port in front of a server. What the proxies have in common; made by them.
pub struct Link {
    address: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    has_ended: AtomicBool,
    /// Behind a lock, so that threads may share a link.
    end: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Link {
    pub(crate) fn start(options: Options, protocol: Protocol) -> Result<Link, ProxyError> {
        let runtime = handle()?;
        let failed = |source| ProxyError::Listen { name: options.name.clone(), address: options.listen, source };
        let _inside = runtime.enter();
        let keeper = bind(options.listen).map_err(failed)?;
        let address = keeper.local_addr().map_err(failed)?;
        let listener = accept::listen(address).map_err(failed)?;
        let settings = Settings { strains: BTreeMap::new(), upstream: options.upstream, ends: false };
        let shared = Arc::new(Shared {
            name: options.name,
            seed: options.seed,
            settings: watch::Sender::new(settings),
            counters: Watched::default(),
            connections: Mutex::default(),
        });
        let (ended, end) = std::sync::mpsc::sync_channel(1);
        let serving = Arc::clone(&shared);
        runtime.spawn(async move {
            accept::serve(serving, protocol, address, listener).await;
            drop(keeper);
            // Nobody may wait for it any more.
            let _ = ended.send(());
        });
        Ok(Link { address, shared, has_ended: AtomicBool::new(false), end: std::sync::Mutex::new(end) })
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        self.shared.settings.send_modify(change);
    }

    /// What the link's own calls set.
    fn change_own(&self, change: impl FnOnce(&mut (Strain, Instant))) {
        self.change(|settings| change(settings.strains.entry(OWN).or_insert_with(|| (Strain::default(), Instant::now()))));
    }

    /// Adds to what the link suffers from, until the handle is dropped; connections that live feel it at once. Flapping starts with down, now.
    pub fn strain(&self, strain: Strain) -> StrainHandle {
        let strain = Strain { reset_share: strain.reset_share.clamp(0.0, 1.0), ..strain };
        let mut number = OWN;
        self.change(|settings| {
            number = settings.strains.last_key_value().map_or(OWN, |(last, _)| *last) + 1;
            settings.strains.insert(number, (strain, Instant::now()));
        });
        StrainHandle { shared: Arc::clone(&self.shared), number }
    }

    /// Replaces what one direction suffers from by this link's own calls; connections that live feel it at once.
    pub fn set(&self, direction: Direction, toxics: Toxics) {
        self.change_own(|(own, _)| *own.toxics_mut(direction) = toxics);
    }

    pub fn set_both(&self, toxics: Toxics) {
        self.change_own(|(own, _)| (own.requests, own.responses) = (toxics, toxics));
    }

    /// All that one direction suffers from.
    pub fn toxics(&self, direction: Direction) -> Toxics {
        self.shared.settings.borrow().toxics(direction)
    }

    pub fn set_door(&self, door: Door) {
        self.change_own(|(own, _)| own.door = door);
    }

    /// Starts with down, now.
    pub fn set_flapping(&self, flapping: Option<Flapping>) {
        self.change_own(|(own, since)| (own.flapping, *since) = (flapping, Instant::now()));
    }

    /// The share of the living connections that is reset within each second, from 0 to 1.
    pub fn set_reset_share(&self, share: f64) {
        self.change_own(|(own, _)| own.reset_share = share.clamp(0.0, 1.0));
    }

    /// Resets every connection, once; how many.
    pub fn reset_connections(&self) -> usize {
        self.shared.reset_all()
    }

    pub fn upstream(&self) -> SocketAddr {
        self.shared.settings.borrow().upstream
    }

    /// Toxics, door, flapping and resets that were set here are over. Strains and rules go with their handles.
    pub fn heal(&self) {
        self.change(|settings| {
            settings.strains.remove(&OWN);
        });
    }

    pub fn counters(&self) -> Counters {
        self.shared.counters.get()
    }

    /// Waits until the counters are as wanted; false when the time is over first.
    pub fn wait_for(&self, timeout: Duration, wanted: impl Fn(&Counters) -> bool) -> bool {
        self.shared.counters.wait_for(timeout, wanted)
    }

    /// Resets all connections, gives the port back, and waits until that is done. Dropping does the same.
    pub fn shutdown(&self) {
        if self.has_ended.swap(true, Ordering::SeqCst) {
            return;
        }
        self.change(|settings| settings.ends = true);
        if self.end.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv_timeout(END_TIMEOUT).is_err() {
            tracing::warn!(link = self.shared.name, "a proxy's tasks did not end within {} s", END_TIMEOUT.as_secs());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("name", &self.shared.name).field("address", &self.address).field("upstream", &self.upstream()).finish()
    }
}

/// A strain that is felt. Dropping it ends it, and nothing else that the link suffers from.
#[must_use = "the strain ends when this is dropped"]
pub struct StrainHandle {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for StrainHandle {
    fn drop(&mut self) {
        self.shared.settings.send_modify(|settings| {
            settings.strains.remove(&self.number);
        });
    }
}

impl std::fmt::Debug for StrainHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StrainHandle").field("link", &self.shared.name).field("number", &self.number).finish()
    }
}

/// A socket with an address; it does not listen yet.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Several sockets may be bound to one port as long as one listens at most.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
