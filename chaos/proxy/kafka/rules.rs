//! What may happen to Kafka requests, by API name.

use super::request::Request;
use crate::rules::Kind;
use kafka_protocol::messages::ApiKey;
use std::time::Duration;

/// What happens to a request, or to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing; it is counted.
    Observe,
    Delay(Duration),
    DelayResponse(Duration),
    /// Until [`crate::RuleHandle::release`], or the handle's end.
    Hold,
    HoldResponse,
    /// The broker gets it twice; the client gets the first answer.
    Duplicate,
    /// The broker never gets it, the connection goes on.
    DropRequest,
    /// The broker gets it, the client never hears of it.
    DropResponse,
    /// The connection is reset in place of the request.
    CutRequest,
    /// The connection is reset in place of the answer.
    CutResponse,
}

/// Rules for Kafka requests.
#[derive(Debug)]
pub struct Kafka;

impl Kind for Kafka {
    type Request = Request;
    type Action = Action;
    type Key = ApiKey;

    fn key_of(request: &Request) -> ApiKey {
        request.api
    }

    fn only_observes(action: Action) -> bool {
        action == Action::Observe
    }
}

/// A rule for a [`crate::KafkaProxy`].
pub type Rule = crate::rules::Rule<Kafka>;
/// A rule that is in place.
pub type RuleHandle = crate::rules::RuleHandle<Kafka>;

impl crate::rules::Rule<Kafka> {
    /// For every request of this name.
    pub fn new(api: ApiKey, action: Action) -> Rule {
        Rule::of(api, action)
    }
}
