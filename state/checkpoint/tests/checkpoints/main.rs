//! Region checkpoints against real stores: a folder, an S3 server and an HDFS, and what happens when they misbehave.
//!
//! `scripts/test.sh` starts the services; `scripts/with-services.sh COMMAND` does it for one command. A test whose service is missing fails,
//! unless `STREAMSHIELD_SKIP_S3=1` or `STREAMSHIELD_SKIP_HDFS=1` says that this is intended.
#![allow(clippy::unwrap_used)]

mod collection;
mod every_store;
mod faults;
mod faulty;
mod killed;
mod outage;
mod place;
mod proxy;
mod rights;
mod s3_faults;
mod secrets;
mod speed;
mod state;
