//! The seed of a random test: printed, so that a failure can be replayed with `STREAMSHIELD_SEED`.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::time::{SystemTime, UNIX_EPOCH};

/// Takes the seed from the environment, or a new one, and prints it.
pub fn seed() -> u64 {
    let seed = match std::env::var("STREAMSHIELD_SEED") {
        Ok(text) => text.parse().expect("STREAMSHIELD_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64 % 1_000_000_007),
    };
    println!("seed {seed} (STREAMSHIELD_SEED={seed} replays it)");
    seed
}

pub fn generator(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}
