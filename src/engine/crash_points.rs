//! Named places where a test lets the process die, as `kill -9` would, at the worst moment.
//!
//! `STREAMSHIELD_CRASH_AT=engine::before_commit:20` aborts the process when it passes that point for the 20th time: no
//! destructor runs, nothing is flushed. The points are in every build, so that what is tested is what is shipped; they lie on
//! paths that run a few times per commit, where an unarmed point costs a look-up in an empty map.
//!
//! | point | the process dies |
//! |---|---|
//! | `engine::before_begin` | with epochs sealed and nothing sent |
//! | `engine::after_produce` | with all messages handed to the client |
//! | `engine::before_commit` | right before the commit is asked for |
//! | `engine::after_commit` | committed, but nobody here knows yet |
//! | `state::apply_flush` | with a flush under way to the local store |
//! | `state::after_flush` | with a flush in the local store that nobody here knows of yet |
//! | `state::apply_delta` | a standby (Tier 2), with an owner's delta under way to its store |
//! | `state::after_delta` | a standby, with a delta in its store that it does not know of yet |
//!
//! `STREAMSHIELD_SIGNAL_DIR=/folder` lets another process act at that moment: it puts a file `PID-POINT` there (`4711-engine::before_commit`). The next
//! passing of the point renames it to `PID-POINT.reached` and waits until that is deleted. After two seconds it deletes it itself and goes on.
//!
//! `STREAMSHIELD_FAIL_AT=engine::step:500` lets one part of the process fail instead, at that passing:
//!
//! | point | what fails |
//! |---|---|
//! | `engine::step` | the code of one region panics in a step |
//! | `engine::diverge` | a replica's state differs from its owner's digest |
//! | `engine::lose_rows` | a replica leaves out the rows of this step and of some after it: its state really differs |
//!
//! `STREAMSHIELD_FAIL_AT=engine::step_of:s1/0` makes every step of one region panic, on whichever worker it is: a region that kills what it runs on.
//! `STREAMSHIELD_FAIL_AT=engine::rows_of:s1/0` aborts the process whenever it takes rows of that region: a row that no process survives.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use streamshield_core::ids::{RegionId, StageId};

pub const VARIABLE: &str = "STREAMSHIELD_CRASH_AT";
pub const POINTS: [&str; 8] = [
    "engine::before_begin",
    "engine::after_produce",
    "engine::before_commit",
    "engine::after_commit",
    "state::apply_flush",
    "state::after_flush",
    "state::apply_delta",
    "state::after_delta",
];

pub const SIGNAL_VARIABLE: &str = "STREAMSHIELD_SIGNAL_DIR";
/// Whoever is told may be gone.
const SIGNAL_WAIT_MAX: Duration = Duration::from_secs(2);
const SIGNAL_LOOK_INTERVAL: Duration = Duration::from_millis(2);

pub const FAIL_VARIABLE: &str = "STREAMSHIELD_FAIL_AT";
/// Points of parts that fail, and how: how often in a row, and the action in the words of the crate `fail`.
const FAILURES: [(&str, u32, &str); 3] =
    [("engine::step", 1, "panic"), ("engine::diverge", 1, "return"), ("engine::lose_rows", STEPS_LOST, "return")];
/// Of one step nobody might ever look at the rows again.
const STEPS_LOST: u32 = 50;

/// Every step of one region fails; the point is followed by its name in place of a passing.
const FAIL_REGION: &str = "engine::step_of";
static FAILING_REGION: OnceLock<RegionId> = OnceLock::new();
/// The process dies whenever it takes rows of one region.
const ABORT_REGION: &str = "engine::rows_of";
static ABORTING_REGION: OnceLock<RegionId> = OnceLock::new();

/// Panics in a step of the region that was chosen to fail.
pub(crate) fn pass_step_of(region: RegionId) {
    if FAILING_REGION.get() == Some(&region) {
        panic!("fail point {FAIL_REGION}:{region}");
    }
}

/// Aborts with rows of the region that was chosen to take the process down.
pub(crate) fn pass_rows_of(region: RegionId) {
    if ABORTING_REGION.get() == Some(&region) {
        tracing::error!(%region, "fail point {ABORT_REGION}: the process dies");
        std::process::abort();
    }
}

/// Arms the points that the environment names, if it does. Says what is wrong with a value that it can't use.
pub fn arm_from_environment() -> Result<(), String> {
    if let Some(folder) = std::env::var_os(SIGNAL_VARIABLE) {
        POINTS.iter().try_for_each(|point| arm_signal(point, Path::new(&folder), SIGNAL_WAIT_MAX))?;
    }
    // It takes its point's place.
    if let Ok(value) = std::env::var(VARIABLE) {
        arm(&value, || std::process::abort())?;
    }
    match std::env::var(FAIL_VARIABLE) {
        Ok(value) => arm_failure(&value),
        Err(_) => Ok(()),
    }
}

/// `point:passing`; the part fails at that passing, and at those after it that the point has.
fn arm_failure(value: &str) -> Result<(), String> {
    let names = || FAILURES.map(|(point, ..)| point).join(", ");
    let wrong = || {
        let regions = format!("{FAIL_REGION}:REGION or {ABORT_REGION}:REGION");
        format!("{FAIL_VARIABLE}={value}: write POINT:PASSING, where POINT is one of {}; or {regions}", names())
    };
    let (point, passing) = value.rsplit_once(':').ok_or_else(wrong)?;
    if point == FAIL_REGION {
        return FAILING_REGION.set(parse_region(passing).ok_or_else(wrong)?).map_err(|_| wrong());
    }
    if point == ABORT_REGION {
        return ABORTING_REGION.set(parse_region(passing).ok_or_else(wrong)?).map_err(|_| wrong());
    }
    let passing: u64 = passing.parse().ok().filter(|passing| *passing > 0).ok_or_else(wrong)?;
    let (_, times, action) = FAILURES.iter().find(|(known, ..)| *known == point).ok_or_else(wrong)?;
    let before = if passing > 1 { format!("{}*off->", passing - 1) } else { String::new() };
    fail::cfg(point, &format!("{before}{times}*{action}->off"))
}

/// `s1/0`
pub(crate) fn parse_region(text: &str) -> Option<RegionId> {
    let (stage, partition) = text.strip_prefix('s')?.split_once('/')?;
    Some(RegionId { stage: StageId(stage.parse().ok()?), partition: partition.parse().ok()? })
}

/// `point:passing`; `die` runs at that passing.
fn arm(value: &str, die: impl Fn() + Send + Sync + 'static) -> Result<(), String> {
    let wrong = || format!("{VARIABLE}={value}: write POINT:PASSING, where POINT is one of {}", POINTS.join(", "));
    let (point, passing) = value.rsplit_once(':').ok_or_else(wrong)?;
    let passing: u64 = passing.parse().map_err(|_| wrong())?;
    if !POINTS.contains(&point) || passing == 0 {
        return Err(wrong());
    }
    let passed = AtomicU64::new(0);
    fail::cfg_callback(point, move || {
        if passed.fetch_add(1, Ordering::SeqCst) + 1 == passing {
            die();
        }
    })
}

/// A passing that nobody waits for costs a renaming that fails.
fn arm_signal(point: &str, folder: &Path, wait_max: Duration) -> Result<(), String> {
    let armed = folder.join(format!("{}-{point}", std::process::id()));
    let reached = folder.join(format!("{}-{point}.reached", std::process::id()));
    fail::cfg_callback(point, move || {
        // Of several threads that come by at once one renames it.
        if std::fs::rename(&armed, &reached).is_err() {
            return;
        }
        let began = Instant::now();
        while reached.exists() {
            if began.elapsed() >= wait_max {
                // Who was told sees by that that nobody is held any more.
                let _ = std::fs::remove_file(&reached);
                return;
            }
            std::thread::sleep(SIGNAL_LOOK_INTERVAL);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_nth_passing_dies_and_no_other() {
        let deaths = Arc::new(AtomicU64::new(0));
        let counter = deaths.clone();
        arm("state::apply_flush:2", move || {
            counter.fetch_add(1, Ordering::SeqCst);
        })
        .expect("armed");
        let died_after: Vec<u64> = (0..3)
            .map(|_| {
                fail::fail_point!("state::apply_flush");
                deaths.load(Ordering::SeqCst)
            })
            .collect();
        assert_eq!(died_after, [0, 1, 1]);
    }

    #[test]
    fn a_point_that_somebody_waits_for_tells_it_and_stays_until_it_is_let_go() {
        let folder = std::env::temp_dir().join(format!("streamshield-signals-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let pass = || fail::fail_point!("test::signal");
        let armed = folder.join(format!("{}-test::signal", std::process::id()));
        let reached = folder.join(format!("{}-test::signal.reached", std::process::id()));
        arm_signal("test::signal", &folder, Duration::from_secs(60)).expect("armed");
        pass();
        assert!(!reached.exists(), "nobody waits");
        std::fs::write(&armed, "").expect("armed");
        std::thread::scope(|scope| {
            let passing = scope.spawn(pass);
            while !reached.exists() {
                std::thread::yield_now();
            }
            assert!(!armed.exists() && !passing.is_finished());
            std::fs::remove_file(&reached).expect("it is there");
        });
        // Nobody lets it go.
        arm_signal("test::signal", &folder, Duration::ZERO).expect("armed");
        std::fs::write(&armed, "").expect("armed");
        pass();
        assert!(!armed.exists() && !reached.exists(), "it has gone on, and says so");
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn a_part_fails_at_the_nth_passing_and_at_no_other() {
        arm_failure("engine::diverge:2").expect("armed");
        let pass = || {
            fail::fail_point!("engine::diverge", |_| true);
            false
        };
        assert_eq!([pass(), pass(), pass()], [false, true, false]);
        for value in ["engine::before_begin:1", "engine::step", "engine::step:0"] {
            assert!(arm_failure(value).is_err(), "{value}");
        }
    }

    #[test]
    fn the_steps_of_one_region_fail_and_no_others() {
        for value in ["engine::step_of:1-0", "engine::step_of:s1", "engine::step_of:7", "engine::rows_of:7"] {
            assert!(arm_failure(value).is_err(), "{value}");
        }
        arm_failure("engine::step_of:s7/1").expect("armed");
        let region = |partition| RegionId { stage: StageId(7), partition };
        pass_step_of(region(0));
        assert!(std::panic::catch_unwind(|| pass_step_of(region(1))).is_err());
    }

    #[test]
    fn what_is_written_to_the_local_store_has_points_before_and_after_it() {
        for point in ["state::after_flush", "state::apply_delta", "state::after_delta"] {
            arm(&format!("{point}:1"), || ()).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn an_unknown_point_is_refused() {
        for value in ["engine::nowhere:1", "engine::before_begin", "engine::before_begin:0", "engine::before_begin:x"] {
            assert!(arm(value, || ()).is_err(), "{value}");
        }
    }
}
