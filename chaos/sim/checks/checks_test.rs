//! Each check finds what it is there for, and nothing else.

use super::test_kit::*;
use super::*;
use crate::world::Message;
use streamshield_core::epoch::DeltaHead;
use streamshield_core::ids::{Digest, Epoch, RegionId};
use streamshield_core::watermark::Watermark;

fn take(check: &mut impl Check, records: &[EpochRecord]) -> Result<(), String> {
    records.iter().try_for_each(|record| check.take(&committed(&record.transactional_id, vec![in_changelog(record)])))
}

#[track_caller]
fn finds(id: &str, outcome: Result<(), String>) {
    let what = outcome.expect_err("something is wrong");
    assert!(what.starts_with(id), "{what}");
}

#[test]
fn epochs_that_follow_each_other_are_fine() {
    let records = [record(WRITER, 1, 5, 5), record(WRITER, 2, 5, 9), record(WRITER, 3, 9, 9), record(WRITER, 4, 9, 30)];
    assert_eq!(take(&mut EpochCheck::default(), &records), Ok(()));
}

#[test]
fn a_gap_and_a_repeat_are_found() {
    finds("E-1", take(&mut EpochCheck::default(), &[record(WRITER, 1, 5, 5), record(WRITER, 3, 5, 9)]));
    finds("E-1", take(&mut EpochCheck::default(), &[record(WRITER, 1, 5, 5), record(WRITER, 1, 5, 5)]));
    finds("E-1", take(&mut EpochCheck::default(), &[record(WRITER, 2, 5, 9)]));
}

#[test]
fn a_step_that_jumps_is_found() {
    finds("E-2", take(&mut EpochCheck::default(), &[record(WRITER, 1, 5, 5), record(WRITER, 2, 6, 9)]));
    finds("E-2", take(&mut EpochCheck::default(), &[record(WRITER, 1, 5, 9)]));
}

#[test]
fn a_watermark_and_a_clock_that_go_back_are_found() {
    let back = EpochRecord { watermark: Watermark(4), ..record(WRITER, 2, 5, 9) };
    finds("E-5", take(&mut EpochCheck::default(), &[record(WRITER, 1, 5, 5), back]));
    let back = EpochRecord { now_ms: 0, ..record(WRITER, 2, 5, 9) };
    finds("E-4", take(&mut EpochCheck::default(), &[record(WRITER, 1, 5, 5), back]));
}

#[test]
fn a_record_that_names_another_writer_is_found() {
    let record = record("job-2-0", 1, 5, 5);
    finds("O-1", EpochCheck::default().take(&committed(WRITER, vec![in_changelog(&record)])));
}

#[test]
fn what_was_aborted_does_not_count() {
    let mut check = EpochCheck::default();
    let Entry::Ended(mut aborted) = committed(WRITER, vec![in_changelog(&record(WRITER, 7, 5, 5))]) else { unreachable!("made as ended") };
    aborted.is_committed = false;
    assert_eq!(check.take(&Entry::Ended(aborted)), Ok(()));
    assert_eq!(take(&mut check, &[record(WRITER, 1, 5, 5)]), Ok(()));
}

#[test]
fn output_without_its_record_is_found() {
    let mut check = TogetherCheck::of_job("job");
    let row = || message("out", "row");
    assert_eq!(check.take(&committed(WRITER, vec![row(), in_changelog(&record(WRITER, 1, 5, 5))])), Ok(()));
    finds("E-3", check.take(&committed(WRITER, vec![row()])));
    finds("E-3", check.take(&Entry::Plain(in_changelog(&record(WRITER, 1, 5, 5)))));
    assert_eq!(check.take(&Entry::Plain(message("job-control", "x"))), Ok(()));
    assert_eq!(check.take(&Entry::Plain(message("input", "x"))), Ok(()), "the source's own messages");
}

#[test]
fn output_of_an_epoch_that_is_not_in_its_transaction_is_found() {
    let claims = |message: &Message| vec![(REGION, Epoch(message.payload.as_deref().map_or(0, |payload| u64::from(payload[0] - b'0'))))];
    let mut check = TogetherCheck::of_job("job").with_claims(claims);
    assert_eq!(check.take(&committed(WRITER, vec![message("out", "2"), in_changelog(&record(WRITER, 2, 5, 5))])), Ok(()));
    finds("E-3", check.take(&committed(WRITER, vec![message("out", "3"), in_changelog(&record(WRITER, 2, 5, 5))])));
}

#[test]
fn a_delta_with_a_part_missing_is_found() {
    let mut check = TogetherCheck::of_job("job");
    let delta = DeltaHead { chunks: 2, bytes: 10, digest: Digest(1) };
    let record = EpochRecord { delta: Some(delta), ..record(WRITER, 2, 5, 9) };
    let part = || message(CHANGELOG, &b"\xff\xff\xff\xff\xff"[..]);
    assert_eq!(check.take(&committed(WRITER, vec![part(), part(), in_changelog(&record)])), Ok(()));
    finds("E-3", check.take(&committed(WRITER, vec![part(), in_changelog(&record)])));
    finds("E-3", check.take(&committed(WRITER, vec![in_changelog(&record), part(), part()])));
    finds("E-3", check.take(&committed(WRITER, vec![part()])));
}

/// Says who owns the region: the payload.
struct Toy;

impl ControlFold for Toy {
    fn apply(&mut self, message: &Message) -> Vec<(RegionId, Option<String>)> {
        let text = String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned();
        vec![(REGION, Some(text).filter(|text| !text.is_empty()))]
    }
}

/// A run as a list of `+owner` and of writers that commit.
fn owned(run: &[&str]) -> Result<(), String> {
    let mut check = OwnerCheck::new("job-control", Toy);
    for (epoch, what) in (1..).zip(run) {
        match what.strip_prefix('+') {
            Some(owner) => check.take(&Entry::Plain(message("job-control", owner.to_owned())))?,
            None => check.take(&committed(what, vec![in_changelog(&record(what, epoch, 5, 5))]))?,
        }
    }
    Ok(())
}

#[test]
fn owners_commit_in_the_order_in_which_they_owned() {
    assert_eq!(owned(&["+a", "a", "+b", "a", "b", "b", "+a", "a"]), Ok(()), "a goes on until b begins, and comes back");
    assert_eq!(owned(&["+a", "+b", "+c", "a", "c"]), Ok(()), "b never came to commit");
    assert_eq!(owned(&["+a", "a", "+", "+b", "b"]), Ok(()), "released, then taken");
}

#[test]
fn an_earlier_owner_that_commits_after_a_later_one_is_found() {
    finds("O-1", owned(&["+a", "a", "+b", "b", "a"]));
    finds("O-1", owned(&["+a", "b"]));
    finds("O-1", owned(&["a"]));
}
