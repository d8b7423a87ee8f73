//! What the integration tests, the kill test and the benchmarks are made of: brokers, clients, the binary as a process,
//! generated input, figures.
//!
//! Everything takes the path of a user: the binary is started with a job file, input is produced and output is read by an
//! ordinary Kafka client with `isolation.level=read_committed`. Nothing here reaches into the engine.
//!
//! - [`support`]: the parts.
//! - [`load`]: an open-loop load whose right output is known, for what measures or judges take-overs.
//! - [`kill`]: the kill test (E-1, E-2, E-3 under SIGKILL), run short by `make test` and long by `make kill-test`.

pub mod kill;
pub mod load;
pub mod support;
