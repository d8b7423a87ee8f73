//! The integration tests, one binary: they start the program as a user would.

mod chaos;
mod cluster;
mod conformance;
mod conformance_test;
mod end_to_end;
mod kill_test;
mod sql;
mod tidy;
