//! Stages of real processes, and every fault of the catalogue on them. They start the program that the last `make build` made.

mod entries;
mod links;
mod processes;
mod storage;
mod support;
mod tour;
mod watchdog;
