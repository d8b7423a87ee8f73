//! The parts that tests and benchmarks share.

pub mod background;
pub mod bids;
pub mod broker;
pub mod client;
pub mod cluster;
pub mod figures;
pub mod http;
pub mod job;
pub mod process;
pub mod seed;
pub mod streamshield;
