//! Rules broken on purpose: each must be noticed, by what it breaks and not by chance.

use streamshield_simulation::Campaign;
use streamshield_simulation::broken::Rule;

/// Within so many seeds.
const SEEDS: u64 = 1_000;

/// Runs until a seed shows that the rule is broken; says which one, and what it found.
fn noticed(rule: Rule) -> (u64, String) {
    let campaign = Campaign { seeds: 0..SEEDS, threads: 2, broken: Some(rule), time_max: None, stop_at_first: true };
    let figures = campaign.run(|_| ());
    let first = figures.failures.first().unwrap_or_else(|| panic!("{rule:?} was broken in {} seeds and nobody noticed", figures.seeds));
    let what = first.violations[0].what.clone();
    println!("{rule:?}: noticed by seed {} of {}: {what}", first.seed, figures.seeds);
    (first.seed, what)
}

fn is_about(rule: Rule, words: &[&str]) {
    let (seed, what) = noticed(rule);
    assert!(words.iter().any(|word| what.contains(word)), "{rule:?} with seed {seed} was noticed as: {what}");
}

/// What two owners of a region bring about.
const TWO_OWNERS: [&str; 6] = ["E-1", "E-2", "E-4", "O-1", "doubled", "lost"];

#[test]
fn whoever_does_not_fence_is_noticed() {
    is_about(Rule::FenceFirst, &TWO_OWNERS);
}

#[test]
fn whoever_fences_only_the_last_of_several_owners_is_noticed() {
    is_about(Rule::FenceAll, &TWO_OWNERS);
}

#[test]
fn whoever_takes_the_end_of_his_reading_for_the_end_is_noticed() {
    is_about(Rule::HighWatermark, &TWO_OWNERS);
}

#[test]
fn whoever_begins_without_a_confirmation_is_noticed() {
    is_about(Rule::Confirm, &TWO_OWNERS);
}

#[test]
fn whoever_takes_a_region_up_again_before_its_release_was_read_is_noticed() {
    is_about(Rule::ReadBack, &["E-1", "E-2", "E-4", "O-1", "doubled", "lost", "liveness"]);
}

#[test]
fn whoever_takes_a_doubtful_commit_for_committed_is_noticed() {
    is_about(Rule::Doubt, &["E-1", "E-2", "E-3", "E-4", "O-1", "doubled", "lost", "liveness"]);
}

#[test]
fn whoever_trims_behind_the_newest_checkpoint_is_noticed() {
    is_about(Rule::TrimOldest, &["K-2"]);
}

#[test]
fn whoever_trims_behind_a_checkpoint_that_may_be_lost_is_noticed() {
    is_about(Rule::TrimRemote, &["K-2"]);
}

#[test]
fn whoever_writes_the_record_beside_its_epoch_is_noticed() {
    is_about(Rule::Together, &["E-3"]);
}
