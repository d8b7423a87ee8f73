//! The simulation as part of the normal tests: a few hundred seeds, the seeds that once failed, determinism, and rules broken on purpose.
//!
//! `STREAMSHIELD_SIMULATION_SEEDS=2000` runs more of them; `STREAMSHIELD_SEED=17` only one. `make simulate` runs as many as CI does.

mod mutants;
mod seeds;
