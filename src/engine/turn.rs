//! Actors take turns: the one way in which anything in the engine runs.
//!
//! A turn does what can be done now and returns; nobody waits inside of it for another actor or for the log to say something. In a worker each actor
//! has a thread that gives it turns ([`drive`]); a simulation gives turns to all of them on one thread, in an order that a seed decides. Calls to
//! the log may block while the broker answers; what waits for *others* (a record to be read back, a transaction to end) is state between two turns.

use crate::runtime::JobOutcome;
use std::time::Duration;
use streamshield_core::ports::log::Wakeup;

/// What an actor says after a turn.
#[derive(Debug)]
pub enum Turn {
    /// Something moved: another turn at once.
    Again,
    /// Nothing to do for this long, unless woken.
    Idle(Duration),
    /// It will never have anything to do again.
    Ended(JobOutcome),
}

impl Turn {
    pub fn again_if(moved: bool, idle: Duration) -> Turn {
        if moved { Turn::Again } else { Turn::Idle(idle) }
    }
}

pub trait Actor: Send {
    fn turn(&mut self) -> Turn;
}

/// Gives an actor its turns until it ends.
pub fn drive(actor: &mut dyn Actor, wakeup: &Wakeup) -> JobOutcome {
    loop {
        match actor.turn() {
            Turn::Again => {}
            Turn::Idle(longest) => wakeup.wait(longest),
            Turn::Ended(outcome) => return outcome,
        }
    }
}
