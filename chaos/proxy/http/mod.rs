//! The HTTP proxy: object stores, WebHDFS, registries; HTTP/1.1 in the clear.
//!
//! Heads pass byte for byte (a signature over `Host` stays valid if the client was told the proxy's address), bodies stream.
//! What a rule does to a request, it does to the whole exchange of request and answer.

pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod rules;

use crate::link::{Link, Options, Protocol};
use crate::rules::Rules;
use crate::runtime::ProxyError;
use rules::{Http, HttpRule, HttpRuleHandle};
use std::ops::Deref;
use std::sync::Arc;

/// A proxy in front of one HTTP server.
#[derive(Debug)]
pub struct HttpProxy {
    link: Link,
    rules: Arc<Rules<Http>>,
}

impl HttpProxy {
    pub fn start(options: Options) -> Result<HttpProxy, ProxyError> {
        let rules = Rules::new(options.seed);
        let link = Link::start(options, Protocol::Http(Arc::clone(&rules)))?;
        Ok(HttpProxy { link, rules })
    }

    /// Adds a rule. It lasts as long as its handle. The first rule that is for a request and fires is the only one for it.
    pub fn add(&self, rule: HttpRule) -> HttpRuleHandle {
        self.rules.add(rule)
    }
}

impl Deref for HttpProxy {
    type Target = Link;
    fn deref(&self) -> &Link {
        &self.link
    }
}
