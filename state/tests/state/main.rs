//! The state of a region, driven through the port as the engine does.

mod benchmarks;
mod copies;
mod damage;
mod deltas;
mod digests;
mod disk_full;
mod fixtures;
mod kinds;
mod model;
mod restart;
