//! What may happen to HTTP requests.

use crate::rules::Kind;
use std::time::Duration;

/// One request, as a rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Counted from one by the order in which the proxy accepted them.
    pub connection: u64,
}

impl HttpRequest {
    /// PUT, POST, DELETE, PATCH: what changes the store.
    pub fn writes(&self) -> bool {
        ["PUT", "POST", "DELETE", "PATCH"].contains(&self.method.as_str())
    }
}

/// What happens to a request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpAction {
    /// Nothing; it is counted.
    Observe,
    /// Answered by the proxy, with S3's error body where S3 has one (503 SlowDown, 429, 500); the server never gets it.
    Status(u16),
    Delay(Duration),
    /// No answer until the rule's end, then a reset. The server never gets it.
    Hang,
    /// The head of the answer, but nothing of its body until the rule's end, then a reset.
    HangAfterHead,
    /// The connection is reset in place of the request.
    Reset,
    /// So many bytes of the request's body arrive, then both sides are reset. A shorter body arrives whole, and is reset as well; it does not count as torn.
    TearUpload {
        after_bytes: u64,
    },
    /// The server gets it and answers; the client gets a reset in place of the answer.
    LoseAnswer,
    /// So many bytes of the answer's body arrive, then the connection ends.
    Truncate {
        after_bytes: u64,
    },
    /// The answer's body is cut to so many bytes, and its head says so: nothing but the content shows it.
    Shorten {
        to_bytes: u64,
    },
    /// One bit of the answer's body is turned, drawn from the seed. For answers with a length; others pass.
    FlipBit,
}

/// Rules for HTTP requests.
#[derive(Debug)]
pub struct Http;

impl Kind for Http {
    type Request = HttpRequest;
    type Action = HttpAction;
    type Key = ();

    fn key_of(_: &HttpRequest) {}

    fn only_observes(action: HttpAction) -> bool {
        action == HttpAction::Observe
    }
}

/// A rule for an [`crate::HttpProxy`].
pub type HttpRule = crate::rules::Rule<Http>;
/// A rule that is in place.
pub type HttpRuleHandle = crate::rules::RuleHandle<Http>;

impl crate::rules::Rule<Http> {
    /// For every request.
    pub fn new(action: HttpAction) -> HttpRule {
        HttpRule::of((), action)
    }
}

/// An answer of the proxy itself.
pub(super) fn answer(status: u16) -> Vec<u8> {
    let (reason, code, message) = match status {
        503 => ("Slow Down", "SlowDown", "Please reduce your request rate."),
        500 => ("Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
        429 => ("Too Many Requests", "TooManyRequests", "Please reduce your request rate."),
        403 => ("Forbidden", "AccessDenied", "Access Denied"),
        _ => ("Injected", "Injected", "Injected by a test."),
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message><RequestId>injected</RequestId></Error>"
    );
    let length = body.len();
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}
