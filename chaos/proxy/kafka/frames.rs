//! Reads the frames of one connection, lets the rules act on requests, and pairs answers with requests.
//!
//! ```text
//! client ─▶ requests ─▶ rule? ─▶ lane ─▶ broker
//!               │ (what shall become of the answer)
//!               ▼ pending, in order
//! client ◀─ lane ◀─ responses ◀──────── broker
//! ```
//! Kafka answers in order on a connection; requests without an answer (Produce with acks=0) are skipped by their correlation.
//! A frame is only read whole if a rule is for its name or its addresses are to be rewritten; all others stream through.

use super::FRAME_BYTES_MAX;
use super::KafkaState;
use super::request::{Head, LENGTH_BYTES, Request};
use super::rules::{Action, Kafka};
use crate::link::lane::{Gone, Halves, Lane, Wire};
use crate::link::reader::Reader;
use crate::link::tcp;
use crate::rules::Placed;
use crate::toxics::Direction;
use bytes::Bytes;
use kafka_protocol::messages::ApiKey;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Requests of a connection that wait for an answer (M-1); the oldest is forgotten, since only those without an answer pile up.
const PENDING_MAX: usize = 4096;
/// Correlation of an answer behind its length.
const CORRELATION_BYTES: usize = 4;

/// What shall become of an answer.
enum Fate {
    Passes,
    IsSwallowed,
    IsLate(Duration),
    IsHeld(Arc<Placed<Kafka>>),
    Cuts,
}

struct Pending {
    head: Head,
    fate: Fate,
}

#[derive(Default)]
struct Answers {
    pending: Mutex<VecDeque<Pending>>,
}

impl Answers {
    fn expect(&self, head: Head, fate: Fate) {
        let mut pending = self.pending.lock();
        if pending.len() >= PENDING_MAX {
            pending.pop_front();
        }
        pending.push_back(Pending { head, fate });
    }

    fn find(&self, correlation: i32) -> Option<Pending> {
        let mut pending = self.pending.lock();
        let at = pending.iter().position(|pending| pending.head.correlation == correlation)?;
        pending.drain(..at);
        pending.pop_front()
    }
}

pub(crate) async fn serve(wire: Wire, state: Arc<KafkaState>, halves: Halves) {
    let Halves { from_client, to_client, from_server, to_server } = halves;
    let (onward, delivers_requests) = Lane::new(&wire, Direction::Requests, to_server);
    let (back, delivers_responses) = Lane::new(&wire, Direction::Responses, to_client);
    let answers = Answers::default();
    let mut requests = Stream { wire: &wire, state: &state, answers: &answers, reader: Reader::new(from_client), lane: onward };
    let mut responses = Stream { wire: &wire, state: &state, answers: &answers, reader: Reader::new(from_server), lane: back };
    let requests = async {
        while requests.request().await.is_ok() {}
        requests.end().await;
    };
    let responses = async {
        while responses.response().await.is_ok() {}
        responses.end().await;
    };
    tcp::run(&wire, requests, delivers_requests, responses, delivers_responses).await;
}

/// One direction.
struct Stream<'a> {
    wire: &'a Wire,
    state: &'a KafkaState,
    answers: &'a Answers,
    reader: Reader,
    lane: Lane,
}

/// No frame follows: the sender has ended, or nobody takes it.
struct Over;

impl From<Gone> for Over {
    fn from(_: Gone) -> Over {
        Over
    }
}

impl Stream<'_> {
    /// Passes on what is left of a broken frame, then the end; or takes what nobody wants.
    async fn end(mut self) {
        let rest = self.reader.buffer.split().freeze();
        if !rest.is_empty() && self.lane.push(rest).await.is_err() {
            return self.reader.drain().await;
        }
        // With a receiver that is gone, only the sender's own end ends this.
        if self.lane.finish().await.is_err() {
            self.reader.drain().await;
        }
    }

    /// The next request.
    async fn request(&mut self) -> Result<(), Over> {
        let length = self.length(Head::BYTES, Direction::Requests).await?;
        let head = Head::read(&self.reader.buffer[LENGTH_BYTES..]);
        let api = ApiKey::try_from(head.api_key).ok().filter(|api| self.state.rules.are_for(*api));
        let Some(api) = api.filter(|_| self.is_readable(length)) else {
            self.answers.expect(head, Fate::Passes);
            return self.stream(length).await;
        };
        if !self.reader.fill(length).await {
            return Err(Over);
        }
        let frame = self.reader.take(length);
        let request = Request::read(&frame, head, api, self.wire.number);
        match self.state.rules.decide(&request, frame.len()) {
            None => self.send(head, Fate::Passes, frame).await,
            Some(rule) => self.act(rule, head, frame).await,
        }
    }

    async fn send(&mut self, head: Head, fate: Fate, frame: Bytes) -> Result<(), Over> {
        self.answers.expect(head, fate);
        Ok(self.lane.push(frame).await?)
    }

    async fn act(&mut self, rule: Arc<Placed<Kafka>>, head: Head, frame: Bytes) -> Result<(), Over> {
        match rule.action() {
            Action::Observe => self.send(head, Fate::Passes, frame).await,
            Action::Delay(pause) => {
                tokio::time::sleep(pause).await;
                self.send(head, Fate::Passes, frame).await
            }
            Action::DelayResponse(pause) => self.send(head, Fate::IsLate(pause), frame).await,
            Action::Hold => {
                rule.held().await;
                self.send(head, Fate::Passes, frame).await?;
                rule.counters.add(|counters| counters.delivered += 1);
                Ok(())
            }
            Action::HoldResponse => self.send(head, Fate::IsHeld(rule), frame).await,
            Action::Duplicate => {
                self.send(head, Fate::Passes, frame.clone()).await?;
                self.send(head, Fate::IsSwallowed, frame).await
            }
            Action::DropRequest => Ok(()),
            Action::DropResponse => self.send(head, Fate::IsSwallowed, frame).await,
            Action::CutRequest => {
                self.wire.reset();
                Err(Over)
            }
            Action::CutResponse => self.send(head, Fate::Cuts, frame).await,
        }
    }

    /// The next answer.
    async fn response(&mut self) -> Result<(), Over> {
        let length = self.length(CORRELATION_BYTES, Direction::Responses).await?;
        let correlation = &self.reader.buffer[LENGTH_BYTES..LENGTH_BYTES + CORRELATION_BYTES];
        let correlation = i32::from_be_bytes(correlation.try_into().expect("four bytes"));
        let Some(Pending { head, fate }) = self.answers.find(correlation) else { return self.stream(length).await };
        match fate {
            Fate::Passes => {}
            Fate::IsSwallowed => return self.swallow(length).await,
            Fate::IsLate(pause) => tokio::time::sleep(pause).await,
            Fate::IsHeld(rule) => {
                rule.held().await;
                rule.counters.add(|counters| counters.delivered += 1);
            }
            Fate::Cuts => {
                self.wire.reset();
                return Err(Over);
            }
        }
        if !self.state.addresses.read().is_in(head.api_key) || !self.is_readable(length) {
            return self.stream(length).await;
        }
        if !self.reader.fill(length).await {
            return Err(Over);
        }
        let frame = self.reader.take(length);
        let rewritten = self.state.addresses.read().rewrite(&frame, head.api_key, head.version);
        self.wire.shared.counters.add(|counters| match &rewritten {
            Ok(_) => counters.rewritten += 1,
            Err(_) => counters.not_rewritten += 1,
        });
        let frame = rewritten.unwrap_or_else(|error| {
            tracing::warn!(link = self.wire.shared.name, api_key = head.api_key, version = head.version, %error, "addresses stay as they are");
            frame
        });
        Ok(self.lane.push(frame).await?)
    }

    /// Waits for the start of a frame; its length, with the bytes that say so.
    async fn length(&mut self, start_bytes: usize, direction: Direction) -> Result<usize, Over> {
        if !self.reader.fill(LENGTH_BYTES + start_bytes).await {
            return Err(Over);
        }
        let length = i32::from_be_bytes(self.reader.buffer[..LENGTH_BYTES].try_into().expect("four bytes"));
        match usize::try_from(length) {
            Ok(length) if length >= start_bytes => {
                self.wire.shared.counters.add(|counters| counters.flow_mut(direction).frames += 1);
                Ok(LENGTH_BYTES + length)
            }
            _ => {
                tracing::warn!(link = self.wire.shared.name, length, "this is not Kafka's protocol in the clear; the connection is reset");
                self.wire.reset();
                Err(Over)
            }
        }
    }

    fn is_readable(&self, length: usize) -> bool {
        if length > FRAME_BYTES_MAX {
            self.wire.shared.counters.add(|counters| counters.too_large += 1);
        }
        length <= FRAME_BYTES_MAX
    }

    async fn stream(&mut self, length: usize) -> Result<(), Over> {
        let mut left = length as u64;
        while left > 0 {
            let bytes = self.reader.some(left).await.ok_or(Over)?;
            left -= bytes.len() as u64;
            self.lane.push(bytes).await?;
        }
        Ok(())
    }

    async fn swallow(&mut self, length: usize) -> Result<(), Over> {
        let mut left = length as u64;
        while left > 0 {
            left -= self.reader.some(left).await.ok_or(Over)?.len() as u64;
        }
        self.wire.shared.counters.add(|counters| counters.responses.swallowed_bytes += length as u64);
        Ok(())
    }
}
