//! Proxies with real sockets: each toxic as a plain client sees it, Kafka by name, HTTP, the stray commit of KIP-890.

mod http;
mod kafka;
mod plain;
mod support;
mod toxics;
