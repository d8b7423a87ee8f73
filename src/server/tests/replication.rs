//! What a job file says about workers, tiers and checkpoints, and what `check` says to that.

mod support;

use insta::assert_snapshot;
use support::{Folder, JOB};

/// The job on a cluster that is not asked.
fn job(head: &str) -> Folder {
    Folder::with_job(&format!("{head}{}", JOB.replace("embedded: true", "bootstrap.servers: 127.0.0.1:1")))
}

fn check(head: &str) -> String {
    job(head).succeeds(&["check", "--offline", "job.yaml"])
}

fn refused(head: &str) -> String {
    job(head).fails(2, &["check", "--offline", "job.yaml"])
}

#[test]
fn the_tier_follows_from_the_promise_and_is_said() {
    assert!(check("").contains("tier 3 (checkpoints): a lost worker is replaced within 10s; no checkpoints"));
    assert!(check("slo: {max_recovery: 5 s}\n").contains("tier 2 (active-standby): a lost worker is replaced within 3s, 1 follower"));
    assert!(
        check("slo: {max_recovery: 2 s}\nreplicas: 2\n")
            .contains("tier 1 (active-active): a lost worker is replaced within 1s, 2 followers")
    );
    assert!(check("tier: 1\nslo: {max_recovery: 1 min}\n").contains("tier 1 (active-active)"));
}

#[test]
fn a_tier_that_cannot_hold_the_promise_is_refused_at_its_place() {
    assert_snapshot!(refused("slo: {max_recovery: 5 s}\ntier: 3\n"));
}

#[test]
fn a_promise_that_no_tier_holds_is_refused() {
    assert_snapshot!(refused("slo: {max_recovery: 200 ms}\n"));
}

#[test]
fn replicas_where_there_can_be_none_are_refused() {
    assert_snapshot!(refused("replicas: 1\n"));
    let two_standbys = refused("tier: 2\nreplicas: 2\n");
    assert!(two_standbys.contains("tier 2 has one standby") && two_standbys.contains("job.yaml:2:11"), "{two_standbys}");
}

#[test]
fn replicas_of_the_command_line_count_where_there_can_be_some() {
    let in_tier_3 = job("").fails(2, &["worker", "job.yaml", "--worker", "a", "--replicas", "1"]);
    assert!(in_tier_3.contains("tier 3 has no replicas") && in_tier_3.contains("leave `--replicas` out"), "{in_tier_3}");
    let two_standbys = job("tier: 2\n").fails(2, &["run", "job.yaml", "--replicas", "2"]);
    assert!(two_standbys.contains("tier 2 has one standby") && two_standbys.contains("job.yaml:1:7"), "{two_standbys}");
    let three = job("tier: 1\n").fails(2, &["run", "job.yaml", "--replicas", "3"]);
    assert!(three.contains("--replicas") && three.contains("1..=2"), "{three}");
    let counted = Folder::with_job(&format!("tier: 1\n{JOB}")).succeeds(&["run", "job.yaml", "--replicas", "2"]);
    assert!(counted.contains("tier 1 (active-active) needs 3 workers, here there are 1"), "{counted}");
}

#[test]
fn wrong_numbers_are_shown_with_the_right_ones() {
    assert_snapshot!(refused("tier: gold\nreplicas: 3\n"));
}

#[test]
fn a_store_is_said_with_its_interval() {
    let store = "checkpoint:\n  store: s3://bucket/orders/\n  options: {endpoint: 'http://127.0.0.1:9000', path_style: true}\n";
    assert!(check(store).contains("checkpoints every 10s to s3://bucket/orders\n"), "{}", check(store));
    assert!(check(&format!("tier: 2\n{store}")).contains("checkpoints every 60s to"));
    assert!(
        check(&format!("{store}  interval: 1 h\n  retain: 5\n  retain_for: 1 d\n  upload_bandwidth: 50 MB/s\n")).contains("every 3600s")
    );
}

#[test]
fn a_wrong_store_is_shown_at_its_place() {
    assert_snapshot!(refused("checkpoint:\n  store: s3a://bucket/orders\n"));
    assert_snapshot!(refused("checkpoint:\n  store: /srv/checkpoints\n"));
}

#[test]
fn several_mistakes_in_a_checkpoint_section_are_reported_at_once() {
    let head = "checkpoint:\n  store: s3://127.0.0.1:9000/x\n  interval: 5 ms\n  retain: none\n  upload_bandwidth: fast\n  dir: x\n  options: [a]\n";
    assert_snapshot!(refused(head));
}

#[test]
fn a_secret_of_the_store_is_warned_about_and_never_shown() {
    let head =
        "checkpoint:\n  store: s3://bucket/x\n  options:\n    access_key_id: public-name\n    secret_access_key: hunter2-in-plain-text\n";
    let output = check(head);
    assert!(!output.contains("hunter2"), "{output}");
    assert_snapshot!(output);
    let in_url = refused("checkpoint:\n  store: s3://user:hunter2@bucket/x\n");
    assert!(!in_url.contains("hunter2") && in_url.contains("must not hold a user or a password"), "{in_url}");
}

#[test]
fn checkpoints_without_a_store_have_no_effect_and_that_is_said() {
    assert_snapshot!(check("checkpoint: {interval: 10 s}\n"));
}

#[test]
fn several_workers_without_a_store_are_warned_about() {
    let folder = job("tier: 3\n");
    assert!(!folder.succeeds(&["check", "--offline", "job.yaml"]).contains("never trimmed"));
    assert_snapshot!(folder.succeeds(&["check", "--offline", "--workers", "3", "job.yaml"]));
    let stored = job("checkpoint: {store: 'file:///srv/x'}\n").succeeds(&["check", "--offline", "--workers", "3", "job.yaml"]);
    assert!(!stored.contains("never trimmed"), "{stored}");
}

#[test]
fn a_tier_that_needs_more_workers_than_there_are_is_warned_about() {
    assert_snapshot!(job("tier: 1\nreplicas: 2\n").succeeds(&["check", "--offline", "--workers", "2", "job.yaml"]));
}

#[test]
fn a_worker_of_its_own_needs_a_cluster_and_a_name() {
    let folder = Folder::with_job(JOB);
    let embedded = folder.fails(2, &["worker", "job.yaml", "--worker", "a"]);
    assert!(embedded.contains("embedded in another process") && embedded.contains("--workers N"), "{embedded}");
    let name = folder.fails(2, &["worker", "job.yaml", "--worker", "a/b"]);
    assert!(name.contains("`a/b` can't be the name of a worker: it has `/`"), "{name}");
}

#[test]
fn a_question_about_a_job_that_nobody_can_answer_says_why() {
    let folder = Folder::with_job(JOB);
    let embedded = folder.fails(1, &["status", "job.yaml"]);
    assert!(embedded.contains("at an address that nobody else knows") && embedded.contains("listen: 127.0.0.1:9092"), "{embedded}");
    assert!(job("").fails(1, &["status", "job.yaml"]).contains("the cluster does not answer"));
    assert!(job("tier: 9\n").fails(2, &["workers", "list", "job.yaml"]).contains("`9` is not 1, 2 or 3"));
}
