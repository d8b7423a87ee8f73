//! All that can happen to a small cluster.
//!
//! The product's own `Cluster` is the log's side. The writers' side (who believes what, whose producer is fenced, who has read a changelog's end) is modelled
//! in `model.rs`; `search.rs` visits every state that the environment and the workers can reach together, breadth first, so that what it finds is the shortest
//! way to it. Each rule is then broken on purpose, in the model, and the search has to find that. How much was searched is told in
//! `target/bench/exploration.json`, which `make test` shows at its end: what a passing test prints is not seen.

mod model;
mod search;

use model::{Mutant, Scope};
use search::search;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Three workers, one of which starts anew, three regions, two crashes.
const SMALL: Scope =
    Scope { regions: 3, followers: 0, workers: 3, starts: 4, crashes: 2, failures: 0, drains: 0, leaves: 0, joins_up_front: 3 };

#[test]
fn no_state_of_three_workers_three_regions_and_two_crashes_breaks_an_invariant() {
    report("3 workers, 3 regions, 2 crashes", SMALL);
}

/// Seven million states: a minute or two.
#[test]
#[ignore = "takes minutes; run it with --ignored after a change of a rule"]
fn nor_does_one_in_which_both_of_the_crashed_start_anew() {
    report("3 workers, 3 regions, 2 crashes, 5 starts", Scope { starts: 5, ..SMALL });
}

#[test]
fn nor_does_one_with_joins_at_any_time() {
    report("joins at any time", Scope { regions: 2, joins_up_front: 1, ..SMALL });
}

#[test]
fn nor_does_one_with_followers_a_failed_region_and_a_drain() {
    let scope = Scope { regions: 2, followers: 1, starts: 3, crashes: 1, failures: 1, drains: 1, joins_up_front: 2, ..SMALL };
    report("followers, a failed region, a drain", scope);
}

#[test]
fn nor_does_one_in_which_a_worker_leaves_clean() {
    let scope = Scope { regions: 2, followers: 1, starts: 3, crashes: 1, leaves: 1, joins_up_front: 2, ..SMALL };
    report("a clean leave", scope);
}

fn report(what: &str, scope: Scope) {
    let started = std::time::Instant::now();
    let found = search(scope, None);
    println!(
        "{what}: {} states of the cluster with its workers, {} of the log alone, {} transitions, {:.1} s",
        found.states,
        found.heads,
        found.transitions,
        started.elapsed().as_secs_f64()
    );
    let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let figures = json!({
        "states": found.states, "states_of_the_log": found.heads, "transitions": found.transitions, "seconds": seconds, "violation": found.violation,
    });
    write(what, &figures);
    assert!(found.violation.is_none(), "{}", found.violation.unwrap_or_default());
    assert!(found.states > 1_000, "the environment did nothing");
    assert!(found.commits > 0 && found.reassignments > 0, "nobody committed or took over");
}

/// Puts a search's figures into the file, a line of their own. The searches of one run are threads of one process.
fn write(what: &str, figures: &Value) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench");
    let (path, part) = (format!("{folder}/exploration.json"), format!("{folder}/exploration.json.part"));
    let mut all: BTreeMap<String, Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_default()).unwrap_or_default();
    all.insert(what.into(), figures.clone());
    let lines: Vec<String> = all.iter().map(|(what, figures)| format!("  {}: {figures}", json!(what))).collect();
    std::fs::create_dir_all(folder).expect("the clone can be written to");
    std::fs::write(&part, format!("{{\n{}\n}}\n", lines.join(",\n"))).expect("the clone can be written to");
    std::fs::rename(&part, &path).expect("the clone can be written to");
}

/// The check can fail: without any one of these rules it finds a way to break an invariant.
#[test]
fn a_broken_rule_is_found() {
    for mutant in Mutant::ALL {
        let leaves = u8::from(mutant == Mutant::GoesOnAfterLeaving);
        let scope = Scope { regions: 2, starts: 3, leaves, joins_up_front: 2, ..SMALL };
        let found = search(scope, Some(mutant));
        println!("{mutant:?}: {} states", found.states);
        let violation = found.violation.unwrap_or_else(|| panic!("{mutant:?} was not found in {} states", found.states));
        println!("{violation}\n");
        write(&format!("without a rule: {mutant:?}"), &json!({ "states": found.states, "violation_of": mutant.breaks() }));
        assert!(violation.starts_with(mutant.breaks()), "{mutant:?} should break {}", mutant.breaks());
    }
}
