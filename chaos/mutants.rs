//! The test of the gate itself: builds with one planted bug each, which short plans must catch, and the same plans without a bug, which must pass.
//!
//! A gate that reports nothing is only worth something if it reports something when there is something. So each guard that an invariant rests on can be switched
//! off in a test build (`streamshield_core::mutants`), and for each there is a plan that creates the situation which the guard is for:
//!
//! ```text
//! for each plan    chaos run PLAN                               control: exit code 0, else nothing that follows means anything
//!   for each of its mutants
//!     STREAMSHIELD_MUTANT=name chaos run PLAN, same seed ─► journal ─► caught by: check, kind of anomaly, invariant
//! ```
//! A mutant counts as caught if a check has found what the list says that it breaks: not by chance, and not because a figure was missed. The plans have no
//! thresholds, so what is left is wrong output, a broken log, a process that ends without a fault, or a job that does not come back.
//!
//! Not here: what a mutant switches off (`src/core/mutants.rs`), and what is known of each (`chaos/MUTANTS.md`).

use crate::journal::{Journal, JournalError};
use crate::plan;
use crate::verdict::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use streamshield_core::mutants::{MUTANTS, Mutant, VARIABLE};

/// Plans, and the mutants that each must catch.
pub const PLANS: [(&str, &[&str]); 8] = [
    ("mutants/data", &["drop-dead-letter", "lateness-by-batch"]),
    ("mutants/restore", &["emit-before-catch-up", "end-as-read", "purge-early"]),
    ("mutants/zombies", &["skip-fence", "apply-before-commit"]),
    ("mutants/confirm", &["skip-confirm"]),
    ("mutants/doubt", &["keep-producer", "double-emit", "ignore-fenced"]),
    ("mutants/replicas", &["digest-not-compared"]),
    ("mutants/garbage", &["gc-without-epoch-check"]),
    ("mutants/checkpoints", &["restore-without-checksum"]),
];

/// How soon the end of a run, and the wish to end it, are noticed.
const TURN: Duration = Duration::from_millis(100);
/// Words of a finding in the table; the journal has the rest.
const WORDS_MAX: usize = 160;

/// What is to be run.
pub struct Request {
    /// Mutants, or plans with all of theirs; none: all.
    pub names: Vec<String>,
    /// None: each plan's own.
    pub seed: Option<u64>,
    pub folder: PathBuf,
    /// The program that knows the mutants: this one.
    pub runner: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum MutantsError {
    #[error("there is no mutant and no plan `{name}`; there are {known}")]
    Unknown { name: String, known: String },
    #[error("{0} can't be run: {1}")]
    Start(String, #[source] std::io::Error),
    #[error("a run ended and left no journal that can be read: {0}")]
    NoJournal(#[from] JournalError),
    #[error("the run {0} ended with {1}, which is not what its journal says: it is another run's")]
    OtherJournal(String, ExitStatus),
    #[error("can't write to `{0}`: {1}")]
    Write(String, #[source] std::io::Error),
    #[error("interrupted")]
    Interrupted,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// None: the control.
    pub mutant: Option<String>,
    pub plan: String,
    pub seed: u64,
    pub exit_code: u8,
    pub seconds: u64,
    /// A mutant that was caught, a control that passed.
    pub good: bool,
    pub caught: bool,
    pub caught_by: Vec<Catch>,
    /// Why it is no pass.
    pub reasons: Vec<String>,
}

/// A check that has found something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Catch {
    /// As plans name it (`epochs`), or `liveness`: the job did not come back.
    pub check: String,
    /// The kind of anomaly, in Jepsen's words where it has one.
    pub kind: String,
    /// Of ARCHITECTURE.md, where the anomaly names one.
    pub invariant: Option<String>,
    /// The first one of this kind.
    pub example: String,
}

impl Catch {
    pub fn text(&self) -> String {
        let invariant = self.invariant.as_ref().map(|id| format!(", {id}")).unwrap_or_default();
        format!("{} ({}{invariant})", self.check, self.kind)
    }
}

/// All runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub mutants: usize,
    pub caught: usize,
    pub controls: usize,
    pub passed: usize,
    pub rows: Vec<Row>,
}

impl Table {
    fn of(rows: Vec<Row>) -> Table {
        let (controls, mutants): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.mutant.is_none());
        let good = |rows: &[&Row]| rows.iter().filter(|row| row.good).count();
        let counts = (mutants.len(), good(&mutants), controls.len(), good(&controls));
        Table { mutants: counts.0, caught: counts.1, controls: counts.2, passed: counts.3, rows }
    }

    /// All were caught, and every control has passed.
    pub fn is_good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.good)
    }
}

/// Runs plans without and with their mutants; the table is in `mutants.json`, after each run. `say` hears of each run that is over.
pub fn run(request: &Request, say: &dyn Fn(&str), wants_end: &dyn Fn() -> bool) -> Result<Table, MutantsError> {
    let chosen = chosen(&request.names)?;
    let mut rows = Vec::new();
    for (plan, mutants) in chosen {
        for mutant in std::iter::once(None).chain(mutants.into_iter().map(Some)) {
            let row = one(request, plan, mutant, wants_end)?;
            say(&line(&row));
            rows.push(row);
            write(&request.folder, &Table::of(rows.clone()))?;
        }
    }
    Ok(Table::of(rows))
}

/// By plan, so that each control is run once.
fn chosen(names: &[String]) -> Result<Vec<(&'static str, Vec<&'static Mutant>)>, MutantsError> {
    let short = |plan: &'static str| plan.strip_prefix("mutants/").unwrap_or(plan);
    for name in names {
        let is_known = |(plan, mutants): &(&'static str, &[&str])| short(plan) == name || *plan == name || mutants.contains(&name.as_str());
        if !PLANS.iter().any(is_known) {
            let known = PLANS.iter().flat_map(|(plan, mutants)| mutants.iter().copied().chain([short(plan)]));
            return Err(MutantsError::Unknown { name: name.clone(), known: known.collect::<Vec<_>>().join(", ") });
        }
    }
    let is_meant = |plan: &'static str, mutant: &str| {
        names.is_empty() || names.iter().any(|name| name == mutant || name == plan || name == short(plan))
    };
    let of_plan = |(plan, mutants): (&'static str, &[&str])| {
        let of_list = MUTANTS.iter().filter(|mutant| mutants.contains(&mutant.name) && is_meant(plan, mutant.name));
        (plan, of_list.collect::<Vec<_>>())
    };
    Ok(PLANS.into_iter().map(of_plan).filter(|(_, mutants)| !mutants.is_empty()).collect())
}

fn one(request: &Request, plan: &str, mutant: Option<&Mutant>, wants_end: &dyn Fn() -> bool) -> Result<Row, MutantsError> {
    let name = format!("{}-{}", plan.rsplit('/').next().unwrap_or(plan), mutant.map_or("control", |mutant| mutant.name));
    let folder = request.folder.join(&name);
    let failed = |error| MutantsError::Write(request.folder.display().to_string(), error);
    std::fs::create_dir_all(&request.folder).map_err(failed)?;
    let words = std::fs::File::create(request.folder.join(format!("{name}.log"))).map_err(failed)?;
    let mut command = Command::new(&request.runner);
    command.args(["chaos", "run", plan, "--out"]).arg(&folder).stdin(Stdio::null());
    command.stdout(words.try_clone().map_err(failed)?).stderr(words);
    if let Some(seed) = request.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    match mutant {
        Some(mutant) => command.env(VARIABLE, mutant.name),
        None => command.env_remove(VARIABLE),
    };
    let began = Instant::now();
    let failed = |error| MutantsError::Start(request.runner.display().to_string(), error);
    let status = wait(command.spawn().map_err(failed)?, wants_end).map_err(failed)?;
    if wants_end() {
        return Err(MutantsError::Interrupted);
    }
    let journal = Journal::read(&folder.join("journal.json"))?;
    if status.code() != Some(journal.verdict.exit_code.into()) {
        return Err(MutantsError::OtherJournal(name, status));
    }
    Ok(judged(plan, mutant, &journal, began.elapsed().as_secs()))
}

/// The wish to end is passed on once: the run heals, and ends by itself.
fn wait(mut child: Child, wants_end: &dyn Fn() -> bool) -> std::io::Result<ExitStatus> {
    let mut is_told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !is_told && wants_end() {
            is_told = true;
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)?;
        }
        std::thread::sleep(TURN);
    }
}

/// What a journal says of a guard.
fn judged(plan: &str, mutant: Option<&Mutant>, journal: &Journal, seconds: u64) -> Row {
    let caught_by = catches(journal);
    let is_expected = |found: &Catch| {
        let wanted = mutant.map_or(&[][..], |mutant| mutant.caught_by);
        wanted.iter().any(|wanted| found.check == *wanted || found.invariant.as_deref() == Some(*wanted))
    };
    let caught = mutant.is_some() && caught_by.iter().any(is_expected);
    let passed = mutant.is_none() && journal.verdict.outcome == Outcome::Pass;
    Row {
        mutant: mutant.map(|mutant| mutant.name.to_string()),
        plan: plan.to_string(),
        seed: journal.seed,
        exit_code: journal.verdict.exit_code,
        seconds,
        good: caught || passed,
        caught,
        caught_by,
        reasons: journal.verdict.reasons.iter().map(|reason| shortened(reason)).collect(),
    }
}

/// Each check that has found something, once per kind of anomaly and invariant. A run that broke off before anything was broken has found nothing.
fn catches(journal: &Journal) -> Vec<Catch> {
    let mut found: Vec<Catch> = Vec::new();
    let mut add = |catch: Catch| {
        if found.iter().all(|known| (&known.check, &known.kind, &known.invariant) != (&catch.check, &catch.kind, &catch.invariant)) {
            found.push(catch);
        }
    };
    for finding in &journal.findings {
        let mut words = finding.detail.split_whitespace().filter_map(|word| word.strip_suffix(':'));
        let invariant = words.find(|word| is_invariant(word)).map(String::from);
        let example = shortened(&format!("{} {}", finding.place, finding.detail));
        add(Catch { check: finding.invariant.name().into(), kind: finding.kind.clone(), invariant, example });
    }
    if journal.verdict.outcome == Outcome::SloMissed || journal.verdict.outcome == Outcome::Violated {
        for reason in liveness(journal) {
            add(Catch { check: "liveness".into(), kind: "stands-still".into(), invariant: None, example: shortened(&reason) });
        }
    }
    found
}

/// `E-1`
fn is_invariant(id: &str) -> bool {
    let mut parts = id.split('-');
    let (letter, number) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    letter.len() == 1 && letter.chars().all(char::is_uppercase) && !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
}

/// What was not there again when everything had been undone.
fn liveness(journal: &Journal) -> Vec<String> {
    let unmet = journal.steady_state.iter().filter(|reading| reading.mode == plan::Mode::After && !reading.met);
    let mut reasons: Vec<String> = unmet.map(|reading| format!("not met in the end: {}", reading.name)).collect();
    if journal.ended && journal.broken_off.is_none() && journal.catch_up_ms.is_none() {
        reasons.push("the job did not catch up".into());
    }
    reasons
}

fn shortened(words: &str) -> String {
    let line: String = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= WORDS_MAX { line } else { line.chars().take(WORDS_MAX).chain(['…']).collect() }
}

fn line(row: &Row) -> String {
    let name = row.mutant.as_deref().unwrap_or("no mutant");
    let checks: BTreeSet<String> = row.caught_by.iter().map(Catch::text).collect();
    let checks = checks.into_iter().collect::<Vec<_>>().join(", ");
    let said = match (&row.mutant, row.good) {
        (None, true) => "passed".to_string(),
        (None, false) => format!("DID NOT PASS: {}", row.reasons.join("; ")),
        (Some(_), true) => format!("caught by {checks}"),
        (Some(_), false) if checks.is_empty() => format!("MISSED: {}", row.reasons.join("; ")),
        (Some(_), false) => format!("MISSED, though there was {checks}"),
    };
    format!("{name:<26} {:<20} seed {:<4} exit {} in {:>3} s: {said}", row.plan, row.seed, row.exit_code, row.seconds)
}

/// The table for people.
pub fn text(table: &Table) -> String {
    let mut text = String::new();
    for row in &table.rows {
        writeln!(text, "{}", line(row)).expect("a String takes everything");
    }
    let Table { mutants, caught, controls, passed, .. } = table;
    writeln!(text, "{caught} of {mutants} mutants were caught; {passed} of {controls} controls passed").expect("a String takes everything");
    text
}

fn write(folder: &Path, table: &Table) -> Result<(), MutantsError> {
    let text = serde_json::to_string_pretty(table).expect("plain data always serializes") + "\n";
    std::fs::write(folder.join("mutants.json"), text).map_err(|error| MutantsError::Write(folder.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Entry, Finding, Reading};
    use crate::plan::{Invariant, Mode};
    use crate::test_kit::{entries, journal, journal_of};

    fn mutant(name: &str) -> &'static Mutant {
        MUTANTS.iter().find(|mutant| mutant.name == name).expect("it is in the list")
    }

    fn with(entry: Entry) -> Journal {
        journal_of(entries().into_iter().chain([entry]).collect())
    }

    #[test]
    fn every_mutant_has_one_plan_and_every_plan_is_there() {
        for mutant in MUTANTS {
            let plans = PLANS.iter().filter(|(_, mutants)| mutants.contains(&mutant.name)).count();
            assert_eq!(plans, 1, "{}", mutant.name);
        }
        for (plan, mutants) in PLANS {
            assert!(plan::ready(plan).is_some(), "{plan}");
            assert!(mutants.iter().all(|name| MUTANTS.iter().any(|mutant| mutant.name == *name)), "{plan}");
        }
    }

    #[test]
    fn a_few_are_chosen_by_name_and_each_control_is_run_once() {
        let names = |chosen: Vec<(&'static str, Vec<&Mutant>)>| -> Vec<(&str, Vec<&str>)> {
            chosen.into_iter().map(|(plan, mutants)| (plan, mutants.iter().map(|mutant| mutant.name).collect())).collect()
        };
        let of = |wanted: &[&str]| chosen(&wanted.iter().map(|name| name.to_string()).collect::<Vec<_>>()).map(names);
        let doubt = of(&["double-emit", "keep-producer", "garbage"]).expect("known");
        assert_eq!(doubt, [("mutants/doubt", vec!["keep-producer", "double-emit"]), ("mutants/garbage", vec!["gc-without-epoch-check"])]);
        assert_eq!(of(&[]).expect("all").len(), PLANS.len());
        assert!(of(&["skip-fnce"]).expect_err("unknown").to_string().contains("skip-fence"));
    }

    #[test]
    fn what_the_list_says_is_a_catch_and_something_else_is_none() {
        let finding = |detail: &str| Entry::Finding {
            finding: Finding { invariant: Invariant::Epochs, kind: "broken-epochs".into(), place: "t".into(), detail: detail.into() },
        };
        let row = |name: &str, journal: &Journal| judged("mutants/x", Some(mutant(name)), journal, 1);
        let broken = with(finding("E-1: s0/1 epoch 7 follows 7"));
        assert_eq!(catches(&with(finding("thread 'commit-0' panicked: E-3: a transaction is torn")))[0].invariant.as_deref(), Some("E-3"));
        let caught = row("skip-fence", &broken);
        assert!(caught.good && caught.caught_by[0].text() == "epochs (broken-epochs, E-1)", "{caught:?}");
        let missed = row("drop-dead-letter", &broken);
        assert!(!missed.good && !missed.caught_by.is_empty(), "{missed:?}");
        let passed = row("skip-fence", &journal());
        assert!(!passed.good && passed.caught_by.is_empty(), "{passed:?}");
    }

    #[test]
    fn a_control_must_pass_and_a_table_without_rows_proves_nothing() {
        let control = |journal: &Journal| judged("mutants/x", None, journal, 1);
        let unmet = Reading { at_ms: 96_000, mode: Mode::After, name: "all workers run".into(), value: None, met: false };
        let stuck = with(Entry::Reading { reading: unmet });
        assert_eq!(catches(&stuck).iter().map(Catch::text).collect::<Vec<_>>(), ["liveness (stands-still)"]);
        assert!(control(&journal()).good && !control(&stuck).good);
        assert!(Table::of(vec![control(&journal())]).is_good() && !Table::of(vec![control(&stuck)]).is_good());
        assert!(!Table::default().is_good());
    }
}
