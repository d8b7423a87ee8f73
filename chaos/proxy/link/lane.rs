//! One direction of one connection: takes bytes, and delivers them as the toxics allow.
//!
//! ```text
//! protocol ─push─▶ queue (bounded in bytes) ─▶ deliver: wait for latency ─▶ passage ─▶ slices at a rate ─▶ socket
//! ```
//! - **Back-pressure**: `push` waits when the queue is full, so the protocol stops reading, and TCP tells the sender.
//! - **Settings are read before every slice and every wait ends when they change**, so that a healed link is fast at once, also
//!   for what was queued before.
//! - **Order is kept**, whatever the jitter.
//! - The end of the stream is a piece like any other: it is late, swallowed or stalled, too.

use super::{QUEUE_BYTES_MAX, Shared, Verdict};
use crate::toxics::{Direction, Passage, Toxics};
use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// How many bytes are read at a time.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// Pieces in a queue; the bytes are the real bound.
const QUEUE_PIECES_MAX: usize = 1024;
/// A paced direction sends this often, so that a rate is smooth.
const SLICES_PER_SECOND: u64 = 20;

/// A connection's place in its link.
#[derive(Clone)]
pub(crate) struct Wire {
    pub shared: Arc<Shared>,
    /// From one, in the order of acceptance.
    pub number: u64,
    pub connection: watch::Sender<Verdict>,
}

impl Wire {
    pub fn reset(&self) {
        self.shared.reset(&self.connection);
    }

    pub fn is_reset(&self) -> bool {
        *self.connection.borrow() == Verdict::Reset
    }

    /// Waits for the verdict that ends the connection.
    pub async fn ended(&self) {
        let mut verdict = self.connection.subscribe();
        // The sender is this wire's own.
        let _ = verdict.wait_for(|verdict| *verdict != Verdict::Lives).await;
    }

    /// Its own sequence of random choices for each direction, and one for the protocol.
    fn random(&self, direction: Direction) -> ChaCha8Rng {
        self.shared.random(self.number * 4 + 1 + direction as u64)
    }

    pub fn protocol_random(&self) -> ChaCha8Rng {
        self.shared.random(self.number * 4 + 3)
    }
}

/// The halves of a connection's two sockets.
pub(crate) struct Halves {
    pub from_client: OwnedReadHalf,
    pub to_client: OwnedWriteHalf,
    pub from_server: OwnedReadHalf,
    pub to_server: OwnedWriteHalf,
}

impl Halves {
    pub fn of(client: TcpStream, server: TcpStream) -> Halves {
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        Halves { from_client, to_client, from_server, to_server }
    }
}

struct Piece {
    /// None is the end of the stream.
    bytes: Option<Bytes>,
    arrived: Instant,
    /// From -1 to 1: where in the jitter it lies.
    noise: f64,
    _room: OwnedSemaphorePermit,
}

/// The entrance of a lane. Dropping it leaves the socket open; [`Lane::finish`] ends the stream.
pub(crate) struct Lane {
    pieces: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
    random: ChaCha8Rng,
}

/// The other end is gone.
pub(crate) struct Gone;

impl Lane {
    /// The entrance, and what delivers: to be run beside it.
    pub fn new(wire: &Wire, direction: Direction, socket: OwnedWriteHalf) -> (Lane, Delivery) {
        let (sender, receiver) = mpsc::channel(QUEUE_PIECES_MAX);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        let delivery = Delivery {
            wire: wire.clone(),
            direction,
            socket: Some(socket),
            pieces: receiver,
            settings: wire.shared.settings.subscribe(),
            carried: 0,
            has_lost: false,
        };
        (Lane { pieces: sender, room, random: wire.random(direction) }, delivery)
    }

    /// Queues bytes, waiting for room; what is larger than the queue goes in as it is, alone.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Gone> {
        let weight = bytes.len().clamp(1, QUEUE_BYTES_MAX) as u32;
        self.send(Some(bytes), weight).await
    }

    /// Waits until all that was pushed is delivered or lost.
    pub async fn flushed(&self) {
        // Never closed.
        let _ = self.room.acquire_many(QUEUE_BYTES_MAX as u32).await;
    }

    /// The stream ends behind what was pushed.
    pub async fn finish(mut self) -> Result<(), Gone> {
        self.send(None, 1).await
    }

    async fn send(&mut self, bytes: Option<Bytes>, weight: u32) -> Result<(), Gone> {
        let noise = self.random.random_range(-1.0..=1.0);
        let _room = Arc::clone(&self.room).acquire_many_owned(weight).await.map_err(|_| Gone)?;
        let piece = Piece { bytes, arrived: Instant::now(), noise, _room };
        self.pieces.send(piece).await.map_err(|_| Gone)
    }
}

/// The exit of a lane.
pub(crate) struct Delivery {
    wire: Wire,
    direction: Direction,
    /// There until the drop.
    socket: Option<OwnedWriteHalf>,
    pieces: mpsc::Receiver<Piece>,
    settings: watch::Receiver<super::Settings>,
    /// Bytes since the connection's start.
    carried: u64,
    has_lost: bool,
}

impl Delivery {
    /// Delivers until the end of the stream, or until the receiver is gone.
    pub async fn run(mut self) {
        loop {
            let piece = tokio::select! {
                piece = self.pieces.recv() => piece,
                _ = self.settings.changed() => {
                    self.look();
                    continue;
                }
            };
            let Some(piece) = piece else { return };
            self.wait_for_latency(&piece).await;
            match piece.bytes {
                None => return self.end().await,
                Some(bytes) => {
                    if let Err(Gone) = self.deliver(bytes).await {
                        return;
                    }
                }
            }
        }
    }

    async fn end(&mut self) {
        let may_pass = self.may_pass().await;
        if self.wire.is_reset() {
            // An end would be seen before the reset.
            return;
        }
        if may_pass && !self.has_lost {
            // One that is closed already is as good.
            if let Some(socket) = &mut self.socket {
                let _ = socket.shutdown().await;
            }
            return;
        }
        // The end was swallowed: half-open until the passage opens, which resets.
        self.has_lost = true;
        self.look();
        while self.settings.changed().await.is_ok() {
            self.look();
        }
    }

    fn toxics(&mut self) -> Toxics {
        self.settings.borrow_and_update().toxics(self.direction)
    }

    /// A connection that has lost bytes is reset as soon as bytes could pass again.
    fn look(&mut self) {
        if self.has_lost && self.toxics().passage == Passage::Open {
            self.wire.reset();
        }
    }

    async fn wait_for_latency(&mut self, piece: &Piece) {
        let mut has_waited = false;
        loop {
            let toxics = self.toxics();
            let base = toxics.latency.as_secs_f64() + toxics.jitter.as_secs_f64() * piece.noise;
            let due = piece.arrived + Duration::from_secs_f64(base.max(0.0));
            if due <= Instant::now() {
                break;
            }
            has_waited = true;
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                _ = self.settings.changed() => {}
            }
        }
        if has_waited {
            self.count(|flow| flow.delayed += 1);
        }
    }

    /// Waits while the passage is stalled; false when what comes now is swallowed.
    async fn may_pass(&mut self) -> bool {
        let mut is_counted = false;
        loop {
            match self.toxics().passage {
                Passage::Open => return true,
                Passage::Swallows => return false,
                Passage::Stalls => {
                    if !std::mem::replace(&mut is_counted, true) {
                        self.count(|flow| flow.stalled += 1);
                    }
                    // The sender lives in the shared state that this delivery holds.
                    let _ = self.settings.changed().await;
                }
            }
        }
    }

    async fn deliver(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        let mut is_paced = false;
        while !bytes.is_empty() {
            if !self.may_pass().await {
                let lost = bytes.len() as u64;
                self.has_lost = true;
                self.count(|flow| flow.swallowed_bytes += lost);
                return Ok(());
            }
            if self.has_lost {
                self.wire.reset();
            }
            if self.wire.is_reset() {
                return Err(Gone);
            }
            let toxics = self.toxics();
            let (most, pause) = slice(&toxics);
            let mut length = bytes.len().min(most);
            if let Some(limit) = toxics.cut_after_bytes {
                let left = limit.saturating_sub(self.carried);
                length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
                if length == 0 {
                    self.count(|flow| flow.cut += 1);
                    self.wire.reset();
                    return Err(Gone);
                }
            }
            let now = bytes.split_to(length);
            self.socket.as_mut().ok_or(Gone)?.write_all(&now).await.map_err(|_| Gone)?;
            self.carried += length as u64;
            let is_first_pause = pause.is_some() && !std::mem::replace(&mut is_paced, true);
            self.count(|flow| (flow.bytes, flow.paced) = (flow.bytes + length as u64, flow.paced + u64::from(is_first_pause)));
            if let Some(pause) = pause {
                let rest = pause(length);
                tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    _ = self.settings.changed() => {}
                }
            }
        }
        Ok(())
    }

    fn count(&self, change: impl FnOnce(&mut crate::counters::Flow)) {
        let direction = self.direction;
        self.wire.shared.counters.add(|counters| change(counters.flow_mut(direction)));
    }
}

impl Drop for Delivery {
    /// Not by itself an end of the stream: that would be seen before a reset. The socket is closed with its other half, and resets then if it is to.
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        if self.wire.is_reset() {
            // A socket that is gone already is as good.
            let _ = socket.as_ref().set_zero_linger();
        }
        socket.forget();
    }
}

type Pause = Box<dyn Fn(usize) -> Duration + Send>;

/// The largest slice, and the pause behind a slice of a length.
fn slice(toxics: &Toxics) -> (usize, Option<Pause>) {
    let rate = toxics.bytes_per_second.map(|rate| rate.max(1));
    let by_rate = rate.map_or(usize::MAX, |rate| usize::try_from(rate / SLICES_PER_SECOND).unwrap_or(usize::MAX).max(1));
    let by_drip = toxics.drip.map_or(usize::MAX, |drip| drip.bytes.max(1));
    if rate.is_none() && toxics.drip.is_none() {
        return (usize::MAX, None);
    }
    let drip_pause = toxics.drip.map_or(Duration::ZERO, |drip| drip.pause);
    let pause = move |length: usize| {
        let at_rate = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(length as f64 / rate as f64));
        at_rate.max(drip_pause)
    };
    (by_rate.min(by_drip), Some(Box::new(pause)))
}
