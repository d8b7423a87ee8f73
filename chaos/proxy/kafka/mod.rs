//! The Kafka proxy: reads frames, knows requests by name, and pairs each answer with its request.
//!
//! One proxy stands before one broker. Clients learn addresses from brokers, so either the broker advertises the proxy's port
//! (a listener of its own per client), or [`KafkaProxy::advertise`] rewrites the addresses in the answers.
//!
//! A rule acts on whole frames, in the order of the connection: what is held or delayed also holds up what comes behind it on
//! the same connection, as a slow network does. The connection to the broker stays open for what is held, whatever the
//! client does meanwhile.

pub(crate) mod addresses;
pub(crate) mod frames;
pub(crate) mod request;
pub(crate) mod rules;

use crate::link::{Link, Options, Protocol};
use crate::rules::Rules;
use crate::runtime::ProxyError;
use addresses::Addresses;
use kafka_protocol::messages::ApiKey;
use parking_lot::RwLock;
use request::Request;
use rules::{Action, Kafka, Rule, RuleHandle};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

/// Frames up to here are read whole for rules and rewriting; larger ones pass (M-1).
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// What the connections of a Kafka proxy share.
pub(crate) struct KafkaState {
    pub rules: Arc<Rules<Kafka>>,
    pub addresses: RwLock<Addresses>,
}

/// A proxy in front of one broker.
#[derive(Debug)]
pub struct KafkaProxy {
    link: Link,
    state: Arc<KafkaState>,
}

impl KafkaProxy {
    pub fn start(options: Options) -> Result<KafkaProxy, ProxyError> {
        let state = Arc::new(KafkaState { rules: Rules::new(options.seed), addresses: RwLock::default() });
        let link = Link::start(options, Protocol::Kafka(Arc::clone(&state)))?;
        Ok(KafkaProxy { link, state })
    }

    /// From now on the answers to Metadata, FindCoordinator and DescribeCluster name `to` in place of `from`. For brokers that advertise
    /// their own address: tell each proxy of all pairs.
    pub fn advertise(&self, from: SocketAddr, to: SocketAddr) {
        self.state.addresses.write().insert(from, to);
    }

    /// Adds a rule. It lasts as long as its handle. The first rule that is for a request and fires is the only one for it.
    pub fn add(&self, rule: Rule) -> RuleHandle {
        self.state.rules.add(rule)
    }

    /// Holds requests back until [`RuleHandle::release`].
    pub fn hold(&self, api: ApiKey, when: impl Fn(&Request) -> bool + Send + Sync + 'static) -> RuleHandle {
        self.add(Rule::new(api, Action::Hold).when(when))
    }
}

impl Deref for KafkaProxy {
    type Target = Link;
    fn deref(&self) -> &Link {
        &self.link
    }
}

impl std::fmt::Debug for KafkaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaState").finish_non_exhaustive()
    }
}
