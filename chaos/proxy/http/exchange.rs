//! One connection's requests and answers, one after the other.
//!
//! ```text
//! head ─▶ rule? ─▶ upload (head, body) ─▶ lane ─▶ server        upload and answer run side by side: a server may answer
//!                  answer (head, body) ◀──────────┘             before it has read all; then the connection ends
//! ```

use super::body::{Body, Framing, Head, Over, request_head, response_head, with_length};
use super::rules::{Http, HttpAction, HttpRequest, answer};
use crate::link::lane::{Halves, Lane, Wire};
use crate::link::reader::Reader;
use crate::link::tcp;
use crate::rules::{Placed, Rules};
use crate::toxics::Direction;
use bytes::{Bytes, BytesMut};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

pub(crate) async fn serve(wire: Wire, rules: Arc<Rules<Http>>, halves: Halves) {
    let Halves { from_client, to_client, from_server, to_server } = halves;
    let (onward, delivers_requests) = Lane::new(&wire, Direction::Requests, to_server);
    let (back, delivers_responses) = Lane::new(&wire, Direction::Responses, to_client);
    let mut connection = Connection {
        wire: &wire,
        rules: &rules,
        random: wire.protocol_random(),
        client: Reader::new(from_client),
        server: Reader::new(from_server),
        onward,
        back,
    };
    let exchanges = async {
        while let Ok(Next::Request) = connection.exchange().await {}
        // What was answered last still arrives; then both sides are closed.
        connection.back.flushed().await;
        let _ = connection.back.finish().await;
        let _ = connection.onward.finish().await;
    };
    // Both ways in one: what answers also asks.
    tcp::run(&wire, std::future::pending(), delivers_requests, exchanges, delivers_responses).await;
}

/// What comes behind an exchange.
enum Next {
    Request,
    /// The connection is closed.
    Nothing,
}

struct Connection<'a> {
    wire: &'a Wire,
    rules: &'a Rules<Http>,
    random: ChaCha8Rng,
    client: Reader,
    server: Reader,
    onward: Lane,
    back: Lane,
}

/// What becomes of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Whole,
    Lost,
    HeadOnly,
    Truncated {
        after_bytes: u64,
    },
    Shortened {
        to_bytes: u64,
    },
    /// The bit of the body that is turned, drawn from all of them by this number.
    Turned {
        draw: u64,
    },
}

impl Connection<'_> {
    async fn exchange(&mut self) -> Result<Next, Over> {
        let head = tokio::select! {
            head = request_head(&mut self.client) => head?,
            // An idle server may close the connection; so does the proxy.
            is_open = self.server.more(), if self.server.buffer.is_empty() => {
                if !is_open {
                    return Ok(Next::Nothing);
                }
                // An answer without a request: there is nobody to give it to.
                self.wire.reset();
                return Err(Over::Sender);
            }
        };
        self.wire.shared.counters.add(|counters| counters.requests.frames += 1);
        let request = HttpRequest { method: head.method.clone(), path: head.path.clone(), connection: self.wire.number };
        let Some(rule) = self.rules.decide(&request, head.bytes.len()) else {
            return self.pass(head, Answer::Whole).await;
        };
        match rule.action() {
            HttpAction::Observe => self.pass(head, Answer::Whole).await,
            HttpAction::Delay(pause) => {
                tokio::time::sleep(pause).await;
                self.pass(head, Answer::Whole).await
            }
            HttpAction::Status(status) => self.refuse(head, status).await,
            HttpAction::Hang => self.hang(&rule).await,
            HttpAction::HangAfterHead => {
                self.pass(head, Answer::HeadOnly).await?;
                self.hang(&rule).await
            }
            HttpAction::Reset => self.cut(),
            HttpAction::TearUpload { after_bytes } => {
                let is_whole = upload(&mut self.client, &mut self.onward, head, after_bytes).await?;
                self.onward.flushed().await;
                rule.counters.add(|counters| counters.torn += u64::from(!is_whole));
                self.cut()
            }
            HttpAction::LoseAnswer => {
                self.pass(head, Answer::Lost).await?;
                self.cut()
            }
            HttpAction::Truncate { after_bytes } => {
                self.pass(head, Answer::Truncated { after_bytes }).await?;
                Ok(Next::Nothing)
            }
            HttpAction::Shorten { to_bytes } => {
                self.pass(head, Answer::Shortened { to_bytes }).await?;
                Ok(Next::Nothing)
            }
            HttpAction::FlipBit => {
                let draw = self.random.random();
                self.pass(head, Answer::Turned { draw }).await
            }
        }
    }

    fn cut(&self) -> Result<Next, Over> {
        self.wire.reset();
        Err(Over::Sender)
    }

    /// Silence until the rule is over or the client gives up.
    async fn hang(&mut self, rule: &Placed<Http>) -> Result<Next, Over> {
        let client_gives_up = async {
            while self.client.more().await {
                self.client.buffer.clear();
            }
        };
        tokio::select! {
            () = rule.over() => {}
            () = client_gives_up => {}
        }
        self.cut()
    }

    /// The proxy's own answer, behind the whole request: a client that is still sending would not read it.
    async fn refuse(&mut self, head: Head, status: u16) -> Result<Next, Over> {
        let asks_first = head.expects_continue;
        let mut body = Body::new(head.framing);
        while !asks_first && body.piece(&mut self.client, u64::MAX).await?.is_some() {}
        self.wire.shared.counters.add(|counters| counters.responses.frames += 1);
        let mut bytes = answer(status);
        if head.method == "HEAD"
            && let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n")
        {
            // A body would be taken for the next answer.
            bytes.truncate(at + 4);
        }
        self.back.push(bytes.into()).await?;
        Ok(if asks_first || head.closes { Next::Nothing } else { Next::Request })
    }

    async fn pass(&mut self, head: Head, what: Answer) -> Result<Next, Over> {
        let Connection { wire, client, server, onward, back, .. } = self;
        let (method, client_closes) = (head.method.clone(), head.closes);
        let upload = upload(client, onward, head, u64::MAX);
        let answer = download(wire, server, back, &method, what);
        tokio::pin!(upload, answer);
        tokio::select! {
            uploaded = &mut upload => {
                if uploaded == Err(Over::Sender) {
                    return Err(Over::Sender);
                }
                // A server that takes no more may have answered before.
                let was_taken = uploaded.is_ok();
                let closes = answer.await?;
                Ok(if closes || client_closes || !was_taken { Next::Nothing } else { Next::Request })
            }
            // The rest of the request is nobody's any more.
            answered = &mut answer => answered.map(|_| Next::Nothing),
        }
    }
}

/// Passes a request on, with so much of its body at most; whether that was all of it.
async fn upload(client: &mut Reader, onward: &mut Lane, head: Head, most: u64) -> Result<bool, Over> {
    onward.push(head.bytes).await?;
    let (mut body, mut left) = (Body::new(head.framing), most);
    while !body.is_over() && left > 0 {
        let Some((bytes, is_content)) = body.piece(client, left).await? else { break };
        left -= if is_content { bytes.len() as u64 } else { 0 };
        onward.push(bytes).await?;
    }
    Ok(body.is_over())
}

/// Passes an answer on; whether the connection ends behind it.
async fn download(wire: &Wire, server: &mut Reader, back: &mut Lane, method: &str, what: Answer) -> Result<bool, Over> {
    let head = loop {
        let head = response_head(server, method).await?;
        if !(100..200).contains(&head.status) {
            break head;
        }
        back.push(head.bytes).await?;
    };
    wire.shared.counters.add(|counters| counters.responses.frames += 1);
    let (mut body, mut position) = (Body::new(head.framing), 0u64);
    let (most, turned) = match (what, head.framing) {
        (Answer::Truncated { after_bytes }, _) => (after_bytes, None),
        (Answer::Shortened { to_bytes }, Framing::Length(length)) => (to_bytes.min(length), None),
        (Answer::Turned { draw }, Framing::Length(length @ 1..)) => (u64::MAX, Some(((draw >> 3) % length, draw & 7))),
        _ => (u64::MAX, None),
    };
    match (what, head.framing) {
        (Answer::Lost, _) => {}
        (Answer::Shortened { .. }, Framing::Length(_)) => back.push(with_length(&head.bytes, most)).await?,
        _ => back.push(head.bytes.clone()).await?,
    }
    if what == Answer::HeadOnly {
        return Ok(true);
    }
    while position < most {
        let Some((mut bytes, is_content)) = body.piece(server, most - position).await? else { break };
        if is_content {
            bytes = turn(bytes, position, turned);
            position += bytes.len() as u64;
        }
        if what == Answer::Lost {
            wire.shared.counters.add(|counters| counters.responses.swallowed_bytes += bytes.len() as u64);
        } else {
            back.push(bytes).await?;
        }
    }
    Ok(head.closes)
}

/// Turns the bit if it lies in these bytes, which begin at a position of the body.
fn turn(bytes: Bytes, position: u64, turned: Option<(u64, u64)>) -> Bytes {
    let Some((at, bit)) = turned.filter(|(at, _)| (position..position + bytes.len() as u64).contains(at)) else { return bytes };
    let mut bytes = BytesMut::from(bytes);
    bytes[(at - position) as usize] ^= 1 << bit;
    bytes.freeze()
}
