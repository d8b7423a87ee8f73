//! Tests against a real broker, named by `STREAMSHIELD_KAFKA` (host:port), or `embedded` for the embedded one.
//!
//! Without it they fail, so that a run without Kafka can't be taken for a passed one; `STREAMSHIELD_SKIP_KAFKA=1` leaves
//! them out and says so. The test that stops and starts a broker needs one of its own: `STREAMSHIELD_KAFKA_RESTART`
//! (`address;stop command;start command`).

mod control;
mod doubt;
mod fencing;
mod measure;
mod reading;
mod restart;
mod support;
mod tables;
mod topics;
mod transactions;
