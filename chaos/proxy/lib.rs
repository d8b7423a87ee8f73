//! Proxies that break what passes through them: links that are slow, cut, one-way or half-open, requests held back by name.
//!
//! A test of fail-over is worth as much as the faults that it met. The kernel of a small host has no way to delay or to
//! reorder, and no kernel knows what an EndTxn is. So every link under test goes through a proxy of this crate, and the
//! fault is a setting that changes while connections live.
//!
//! ```text
//!                    ┌────────────── Link (all three) ──────────────┐
//! client ──accept──▶ │ Door ─▶ protocol ─▶ lane: latency, rate, … ──┼──▶ server
//!        ◀────────── │ ◀── lane ◀──────── protocol ◀────────────────┼───
//!                    └───────────────────────────────────────────────┘
//!   TcpProxy    bytes only (HDFS, anything)        KafkaProxy   frames: rules by API name, addresses rewritten
//!   HttpProxy   requests: status, torn uploads, lost answers, damaged bodies
//! ```
//!
//! # How it is used
//! ```no_run
//! use std::time::Duration;
//! use streamshield_proxy::{Action, ApiKey, Direction, Door, KafkaProxy, Options, Rule, Toxics};
//! # fn main() -> Result<(), streamshield_proxy::ProxyError> {
//! let broker = "127.0.0.1:9092".parse().expect("an address");
//! let link = KafkaProxy::start(Options::new("w1-b1", broker).seed(42))?;      // a free port: link.address()
//!
//! link.set_both(Toxics { latency: Duration::from_millis(50), jitter: Duration::from_millis(10), ..Toxics::default() });
//! link.set(Direction::Responses, Toxics::swallowing());                        // requests pass, answers vanish
//! link.set_door(Door::Refuse);                                                 // connections are reset, new ones refused
//! link.heal();                                                                 // all of the above is over
//!
//! // KIP-890: the commit waits in the network until it has been repeated and the next transaction is under way
//! let stray = link.add(Rule::new(ApiKey::EndTxn, Action::Hold).when(|request| request.commits == Some(true)).times(1));
//! stray.wait_held(1, Duration::from_secs(30));
//! stray.release();                                                             // delivered on its own, still open connection
//! println!("{:?} {:?}", link.counters(), stray.counters());                    // the proof that it happened
//! # Ok(())
//! # }
//! ```
//! - [`KafkaProxy`], [`HttpProxy`] and [`TcpProxy`] deref to [`Link`], which has what is common: [`Link::set`],
//!   [`Link::set_both`], [`Link::set_door`], [`Link::set_flapping`], [`Link::set_reset_share`], [`Link::reset_connections`],
//!   [`Link::heal`], [`Link::counters`], [`Link::wait_for`].
//! - Each of these calls replaces what it has set before. Who shares a link with others adds a [`Strain`] to it by [`Link::strain`]:
//!   latencies add up, the narrowest passage and door are felt, and what the others have set stays when its handle is dropped.
//! - A rule lives as long as its handle: dropping it takes the rule away and releases what it holds. Dropping a proxy ends its
//!   connections and its port. So undoing a fault is dropping its handle, also on a panic.
//! - All calls are synchronous and return at once, except those with a time-out. The tokio runtime inside is one for all proxies.
//! - Every random choice comes from the seed in [`Options`], and from the number of the connection: it does not depend on how
//!   connections are interleaved.
//!
//! # Limits
//! A connection buffers at most [`QUEUE_BYTES_MAX`] per direction; then its reader stops, and TCP tells the sender. A link
//! serves at most [`CONNECTIONS_MAX`] connections; more wait in the kernel's queue. A frame above [`FRAME_BYTES_MAX`] passes
//! without a look at its content.
//!
//! # What is not here
//! TLS: a proxy would have to be a party of it; [`TcpProxy`] carries its bytes. Lost packets: a proxy ends TCP, and only the kernel
//! below it can lose some. Which proxy stands where, and which fault is set when: that is the stage's and the plan's.

mod counters;
mod http;
mod kafka;
mod link;
mod rules;
mod runtime;
mod toxics;

pub use counters::{Counters, Flow, RuleCounters};
pub use http::HttpProxy;
pub use http::rules::{HttpAction, HttpRequest, HttpRule, HttpRuleHandle};
pub use kafka::request::Request;
pub use kafka::rules::{Action, Rule, RuleHandle};
pub use kafka::{FRAME_BYTES_MAX, KafkaProxy};
pub use kafka_protocol::messages::ApiKey;
pub use link::tcp::TcpProxy;
pub use link::{CONNECTIONS_MAX, Link, Options, QUEUE_BYTES_MAX, StrainHandle};
pub use runtime::ProxyError;
pub use toxics::{Direction, Door, Drip, Flapping, Passage, Strain, Toxics};
