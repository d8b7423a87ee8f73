//! What goes wrong, and how often.
//!
//! A [`FaultPlan`] holds a rate per kind of fault, in parts of 10,000 calls. Which call is hit is drawn from the world's seed at the
//! call. Every fault that took place is counted by name, so that a run can say what it has really met: a fault that never fired proves
//! nothing.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Rates are parts of this.
pub const RATE_SCALE: u32 = 10_000;

/// See the module text. The default is a world without faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// A call fails with `Retry` before it has any effect.
    pub refused: u32,
    /// A call takes effect and its answer is lost: append, InitProducerId, fence, trim, creation of topics.
    pub answer_lost: u32,
    /// A plain append is in the log twice.
    pub append_twice: u32,
    /// `send` finds the queue full, with a part of its messages in it.
    pub queue_full: u32,
    /// After a `send`, what is queued goes to the log at once, and not with the commit: so an open transaction has messages.
    pub sent_early: u32,
    /// The messages of a transaction can't be delivered: `Aborted`.
    pub delivery_fails: u32,
    /// The commit is aborted for certain.
    pub commit_aborted: u32,
    /// The commit takes effect, its answer is lost: `InDoubt`.
    pub commit_answer_lost: u32,
    /// EndTxn never arrives: `InDoubt`, and the transaction stays open.
    pub commit_request_lost: u32,
    /// EndTxn arrives up to [`FaultPlan::late_ms_max`] later: `InDoubt`. If the same producer had begun another transaction by then, it
    /// would end that one (KIP-890).
    pub commit_late: u32,
    /// EndTxn takes effect, and a repetition of it arrives late: `InDoubt`.
    pub commit_repeated: u32,
    /// The commit is acknowledged, its markers come later, as Kafka does it: until then readers don't see it.
    pub markers_late: u32,
    /// A reader learns of new messages in a partition later, up to [`FaultPlan::late_ms_max`].
    pub records_late: u32,
    /// A `take` gives less than there is.
    pub short_take: u32,
    /// The worker dies in the middle of a call, before or after its effect.
    pub crash_in_call: u32,
    /// How late "late" may be.
    pub late_ms_max: i64,
    /// A call takes up to this many ms of its actor's time.
    pub call_ms_max: i64,
    /// That time passes for all, and what is on its way arrives before the call has its effect.
    pub call_waits: u32,
    /// What a client does that has no check of its own: a writer in doubt goes on as if its commit had gone well. For tests that show that
    /// the checks find what comes of it.
    pub forgives_doubt: bool,
}

impl FaultPlan {
    /// Now and then something, as in a week of production squeezed into minutes.
    pub fn mild() -> FaultPlan {
        FaultPlan {
            refused: 50,
            answer_lost: 50,
            append_twice: 50,
            queue_full: 10,
            sent_early: 3_000,
            delivery_fails: 20,
            commit_aborted: 20,
            commit_answer_lost: 30,
            commit_request_lost: 20,
            commit_late: 20,
            commit_repeated: 20,
            markers_late: 1_000,
            records_late: 2_000,
            short_take: 1_000,
            crash_in_call: 2,
            late_ms_max: 300,
            call_ms_max: 5,
            call_waits: 500,
            forgives_doubt: false,
        }
    }

    /// Hardly anything works.
    pub fn harsh() -> FaultPlan {
        FaultPlan {
            refused: 500,
            answer_lost: 500,
            append_twice: 500,
            queue_full: 200,
            sent_early: 5_000,
            delivery_fails: 300,
            commit_aborted: 300,
            commit_answer_lost: 400,
            commit_request_lost: 300,
            commit_late: 300,
            commit_repeated: 300,
            markers_late: 4_000,
            records_late: 5_000,
            short_take: 4_000,
            crash_in_call: 30,
            late_ms_max: 2_000,
            call_ms_max: 40,
            call_waits: 3_000,
            forgives_doubt: false,
        }
    }

    /// A plan of its own per seed: each fault is off, rare or frequent. Runs in which one kind of fault dominates find what an even
    /// mixture hides (swarm testing: Groce et al., ISSTA 2012).
    pub fn swarm(rng: &mut ChaCha8Rng) -> FaultPlan {
        let (mild, harsh) = (FaultPlan::mild(), FaultPlan::harsh());
        let mut pick = |rare: u32, frequent: u32| match rng.random_range(0..4u32) {
            0 | 1 => 0,
            2 => rare,
            _ => frequent,
        };
        FaultPlan {
            refused: pick(mild.refused, harsh.refused),
            answer_lost: pick(mild.answer_lost, harsh.answer_lost),
            append_twice: pick(mild.append_twice, harsh.append_twice),
            queue_full: pick(mild.queue_full, harsh.queue_full),
            sent_early: pick(mild.sent_early, harsh.sent_early),
            delivery_fails: pick(mild.delivery_fails, harsh.delivery_fails),
            commit_aborted: pick(mild.commit_aborted, harsh.commit_aborted),
            commit_answer_lost: pick(mild.commit_answer_lost, harsh.commit_answer_lost),
            commit_request_lost: pick(mild.commit_request_lost, harsh.commit_request_lost),
            commit_late: pick(mild.commit_late, harsh.commit_late),
            commit_repeated: pick(mild.commit_repeated, harsh.commit_repeated),
            markers_late: pick(mild.markers_late, harsh.markers_late),
            records_late: pick(mild.records_late, harsh.records_late),
            short_take: pick(mild.short_take, harsh.short_take),
            crash_in_call: pick(mild.crash_in_call, harsh.crash_in_call),
            late_ms_max: i64::from(pick(300, 2_000)),
            call_ms_max: i64::from(pick(5, 40)),
            call_waits: pick(mild.call_waits, harsh.call_waits),
            forgives_doubt: false,
        }
    }
}

/// How a commit goes, drawn once per commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitFate {
    Clean,
    DeliveryFails,
    Aborted,
    AnswerLost,
    RequestLost,
    Late,
    Repeated,
    MarkersLate,
}

impl CommitFate {
    /// At most one thing goes wrong with a commit; what has the first place in the list is drawn first.
    pub fn draw(plan: &FaultPlan, rng: &mut ChaCha8Rng) -> CommitFate {
        let fates = [
            (plan.delivery_fails, CommitFate::DeliveryFails),
            (plan.commit_aborted, CommitFate::Aborted),
            (plan.commit_answer_lost, CommitFate::AnswerLost),
            (plan.commit_request_lost, CommitFate::RequestLost),
            (plan.commit_late, CommitFate::Late),
            (plan.commit_repeated, CommitFate::Repeated),
            (plan.markers_late, CommitFate::MarkersLate),
        ];
        let mut ticket = rng.random_range(0..RATE_SCALE);
        for (rate, fate) in fates {
            if ticket < rate {
                return fate;
            }
            ticket -= rate;
        }
        CommitFate::Clean
    }

    /// The name that it is counted by; none for what is no fault.
    pub fn name(self) -> Option<&'static str> {
        match self {
            CommitFate::Clean => None,
            CommitFate::DeliveryFails => Some("delivery fails"),
            CommitFate::Aborted => Some("commit aborted"),
            CommitFate::AnswerLost => Some("commit answer lost"),
            CommitFate::RequestLost => Some("commit request lost"),
            CommitFate::Late => Some("commit late"),
            CommitFate::Repeated => Some("commit repeated"),
            CommitFate::MarkersLate => Some("markers late"),
        }
    }
}
