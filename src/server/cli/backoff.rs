//! Pauses that grow while something fails again and again, and are short again after it has worked for a while.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    healthy_after: Duration,
    next: Duration,
}

impl Backoff {
    /// The first pause is `min`; each one is twice the last, at most `max`; what ran for `healthy_after` starts over.
    pub fn new(min: Duration, max: Duration, healthy_after: Duration) -> Backoff {
        Backoff { min, max, healthy_after, next: min }
    }

    /// The pause after something that had run for so long.
    pub fn after(&mut self, ran_for: Duration) -> Duration {
        let pause = if ran_for >= self.healthy_after { self.min } else { self.next };
        self.next = (pause * 2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_start_over_after_a_healthy_life() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(30));
        let pauses: Vec<_> = [short, short, short, short, long, short].map(|ran| backoff.after(ran).as_millis()).into();
        assert_eq!(pauses, [100, 200, 400, 500, 100, 200]);
    }
}
