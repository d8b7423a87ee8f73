//! A job that is started again: it goes on where it was, rebuilds what was lost, refuses what does not fit.

use super::{COUNTS, Stage, TIMEOUT, row};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use streamshield_tests::support::client::{delete_topic, empty_topic, send_together, topics};
use streamshield_tests::support::job::BOUNDED;
use streamshield_tests::support::streamshield::call;
use streamshield_workload::checks::{ControlFold, check_job};
use streamshield_workload::findings::AnomalyKind;

#[test]
fn a_restarted_job_goes_on_where_it_was() -> Result<()> {
    let mut stage = Stage::new("goes-on")?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0)])?;
    stage.send(1, &[row("a", 2, 100)])?;
    run.wait_status_at_least("records_in", 2, TIMEOUT)?;
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    // While it is down.
    stage.send(0, &[row("a", 4, 200), row("z", 0, 60_000)])?;
    stage.send(1, &[row("z", 0, 60_000)])?;
    let run = stage.runner.start(&job)?;
    let rows = stage.wait_for_output(1).with_context(|| run.process.last_words())?;
    assert_eq!(rows, ["a 00:00:00 3 7"]);
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    assert_eq!(stage.output()?, ["a 00:00:00 3 7"]);
    Ok(())
}

#[test]
fn a_job_goes_on_when_all_of_its_input_has_expired_with_the_commit_markers() -> Result<()> {
    let mut stage = Stage::new("markers-expired")?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    // In each partition a record and a marker.
    send_together(&stage.servers(), &stage.input, &[(0, row("a", 1, 0)), (1, row("a", 2, 100))])?;
    run.wait_status_at_least("records_in", 2, TIMEOUT)?;
    let (servers, name) = (stage.servers(), stage.name.clone());
    run.wait_until("behind the markers", TIMEOUT, |_| {
        let checked = check_job(&servers, &name, &[], Duration::ZERO, ControlFold::new(&name))?;
        assert_eq!(checked.findings.count(AnomalyKind::BrokenEpochs), 0);
        let of_sources = checked.last.iter().filter(|(region, _)| region.stage.0 == 0);
        Ok(of_sources.map(|(_, (_, positions))| positions[0]).eq([2, 2]))
    })?;
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    empty_topic(&servers, &stage.input)?;
    let run = stage.runner.start(&job)?;
    stage.send(0, &[row("z", 0, 60_000)])?;
    stage.send(1, &[row("z", 0, 60_000)])?;
    assert_eq!(stage.wait_for_output(1).with_context(|| run.process.last_words())?, ["a 00:00:00 2 3"]);
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    Ok(())
}

#[test]
fn a_deleted_state_folder_is_rebuilt_from_the_inputs_and_the_log_says_so() -> Result<()> {
    let words = rebuilt("state-deleted", |stage| Ok(std::fs::remove_dir_all(stage.runner.state_dir())?))?;
    ensure!(words.contains("no state of the region lies here"), "nothing was said about it:\n{words}");
    Ok(())
}

#[test]
fn a_damaged_state_folder_is_rebuilt_and_the_log_says_so() -> Result<()> {
    let words = rebuilt("state-damaged", |stage| {
        let mut damaged = 0;
        let mut folders = vec![stage.runner.state_dir()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)?.flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else if std::fs::write(entry.path(), b"this is no state").is_ok() {
                    damaged += 1;
                }
            }
        }
        ensure!(damaged > 0, "there was no state to damage");
        Ok(())
    })?;
    ensure!(words.contains("rebuil"), "nothing was said about it:\n{words}");
    Ok(())
}

/// Returns what the second run wrote.
fn rebuilt(name: &str, harm: impl FnOnce(&Stage) -> Result<()>) -> Result<String> {
    let mut stage = Stage::new(name)?;
    let job = stage.job(&[], COUNTS).set("flush_interval", "100 ms");
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0), row("b", 2, 100), row("z", 0, 15_000)])?;
    stage.send(1, &[row("a", 4, 200), row("z", 0, 15_000)])?;
    assert_eq!(stage.wait_for_output(2).with_context(|| run.process.last_words())?, ["a 00:00:00 2 5", "b 00:00:00 1 2"]);
    run.process.kill()?;
    harm(&stage)?;
    stage.send(0, &[row("z", 1, 40_000)])?;
    stage.send(1, &[row("z", 1, 40_000)])?;
    let run = stage.runner.start(&job)?;
    let expected = ["a 00:00:00 2 5", "b 00:00:00 1 2", "z 00:00:10 2 0"];
    assert_eq!(stage.wait_for_output(3).with_context(|| run.process.last_words())?, expected);
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    assert_eq!(stage.output()?, expected);
    Ok(run.process.stdout() + &run.process.stderr())
}

#[test]
fn a_changed_plan_is_refused_and_the_old_one_still_runs() -> Result<()> {
    let mut stage = Stage::new("changed")?;
    stage.send(0, &[row("a", 1, 0)])?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    run.wait_status_at_least("records_in", 1, TIMEOUT)?;
    run.process.terminate(TIMEOUT)?;
    let changed = stage.job(&[], &COUNTS.replace("SUM(v)", "MAX(v)"));
    let refused = stage.runner.start(&changed)?;
    let ended = refused.process.expect_end(TIMEOUT)?;
    let words = refused.process.last_words();
    ensure!(!ended.status.success(), "a changed plan was accepted:\n{words}");
    // Told from the job's first record, before any region could begin with it.
    ensure!(
        words.contains("the job's plan has changed: it computes something else than at its first start"),
        "the reason is not given:\n{words}"
    );
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT).context("the unchanged job")?;
    run.process.terminate(TIMEOUT)?;
    Ok(())
}

#[test]
fn a_job_whose_changelog_was_deleted_is_refused_and_the_topic_is_named() -> Result<()> {
    refused_without("no-changelog", "-changelog")
}

#[test]
fn a_job_whose_exchange_was_deleted_is_refused_and_the_topic_is_named() -> Result<()> {
    refused_without("no-exchange", "-repartition")
}

/// Deletes a topic of a job that has worked, while it is down.
fn refused_without(name: &str, suffix: &str) -> Result<()> {
    let mut stage = Stage::new(name)?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0)])?;
    run.wait_status_at_least("records_in", 1, TIMEOUT)?;
    run.process.terminate(TIMEOUT)?;
    let mut own = topics(&stage.servers())?.into_iter().filter(|topic| topic.starts_with(&stage.name));
    let lost = own.find(|topic| topic.ends_with(suffix)).with_context(|| format!("no topic ends with {suffix}"))?;
    delete_topic(&stage.servers(), &lost)?;
    let refused = stage.runner.start(&job)?;
    let ended = refused.process.expect_end(TIMEOUT)?;
    let words = refused.process.last_words();
    ensure!(!ended.status.success(), "the job went on without {lost}:\n{words}");
    ensure!(words.contains(&format!("there is no topic {lost}, and the job has worked")), "{lost} is not named:\n{words}");
    Ok(())
}

#[test]
fn a_job_whose_changelogs_were_made_anew_is_refused_and_gives_no_row_twice() -> Result<()> {
    refused_with_new("new-changelogs", "-changelog")
}

#[test]
fn a_job_whose_exchange_was_made_anew_is_refused() -> Result<()> {
    refused_with_new("new-exchange", "-repartition")
}

/// Deletes topics of a job that has worked, and has them created again, while it is down.
fn refused_with_new(name: &str, suffix: &str) -> Result<()> {
    let mut stage = Stage::new(name)?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0), row("z", 0, 30_000)])?;
    stage.send(1, &[row("a", 2, 100), row("z", 0, 30_000)])?;
    assert_eq!(stage.wait_for_output(1).with_context(|| run.process.last_words())?, ["a 00:00:00 2 3"]);
    run.process.terminate(TIMEOUT)?;
    let lost: Vec<String> =
        topics(&stage.servers())?.into_iter().filter(|topic| topic.starts_with(&stage.name) && topic.ends_with(suffix)).collect();
    ensure!(!lost.is_empty(), "no topic ends with {suffix}");
    lost.iter().try_for_each(|topic| delete_topic(&stage.servers(), topic))?;
    std::fs::write(stage.runner.folder.join("made-anew.yaml"), job.yaml())?;
    let created = call(&stage.runner.folder, &["topics", "create", "made-anew.yaml"])?;
    ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    // All that it had is gone, as on a new machine.
    std::fs::remove_dir_all(stage.runner.state_dir())?;
    let refused = stage.runner.start(&job)?;
    let ended = refused.process.expect_end(TIMEOUT)?;
    let words = refused.process.last_words();
    ensure!(!ended.status.success(), "the job went on with empty topics:\n{words}");
    let is_named = lost.iter().any(|topic| (0..2).any(|partition| words.contains(&format!("{topic}-{partition} is empty, but region"))));
    ensure!(is_named, "none of {lost:?} is named:\n{words}");
    assert_eq!(stage.output()?, ["a 00:00:00 2 3"]);
    Ok(())
}

#[test]
fn a_killed_bounded_job_ends_right_when_it_is_started_again() -> Result<()> {
    let mut stage = Stage::new("killed-bounded")?;
    let rows: Vec<_> = (0..30_000).map(|number| row(["a", "b", "c"][number as usize % 3], 1, number)).collect();
    stage.send(0, &rows)?;
    stage.send(1, &rows)?;
    let job = stage.job(&[BOUNDED], COUNTS).set("commit_interval", "20 ms");
    let mut run = stage.runner.start(&job)?;
    run.wait_status_at_least("records_in", 1, TIMEOUT)?;
    run.process.kill()?;
    stage.runner.finish(&job, TIMEOUT)?;
    let output = stage.output()?;
    assert_eq!(output.len(), 9, "{output:?}");
    let counted: u64 = output.iter().filter_map(|row| row.split(' ').nth(2)?.parse::<u64>().ok()).sum();
    assert_eq!(counted, 60_000);
    Ok(())
}

#[test]
fn a_second_process_takes_over_and_the_first_leaves() -> Result<()> {
    let mut stage = Stage::new("taken-over")?;
    let job = stage.job(&[], COUNTS);
    let mut first = stage.runner.start(&job.clone().set("state_dir", stage.runner.folder.join("first").display()))?;
    first.wait_ready(TIMEOUT)?;
    let mut second = stage.runner.start(&job.set("state_dir", stage.runner.folder.join("second").display()))?;
    second.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0), row("z", 0, 30_000)])?;
    stage.send(1, &[row("a", 2, 0), row("z", 0, 30_000)])?;
    let rows = stage.wait_for_output(1).with_context(|| second.process.last_words())?;
    assert_eq!(rows, ["a 00:00:00 2 3"]);
    let ended = first.process.expect_end(TIMEOUT)?;
    assert_eq!(ended.status.code(), Some(3), "{}", first.process.last_words());
    second.process.terminate(TIMEOUT)?;
    assert_eq!(stage.output()?, ["a 00:00:00 2 3"]);
    Ok(())
}
