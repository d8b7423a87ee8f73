//! Each anomaly, planted in the output of a right job, is found; and nothing is found in a right one.

use super::test_kit::{Out, Outputs, compare_seen, sent};
use crate::feeder::Sent;
use crate::findings::{AnomalyKind, Findings, Invariant};
use crate::observer::{Flow, Observation};

/// What is found after the outputs were spoiled.
fn found(spoil: impl FnOnce(&Sent, &mut Outputs)) -> Findings {
    let sent = sent();
    let mut outputs = Outputs::of(&sent);
    spoil(&sent, &mut outputs);
    outputs.verify(&sent)
}

fn counts(findings: &Findings) -> Vec<(AnomalyKind, u64)> {
    findings.count_by_kind.iter().map(|(kind, count)| (*kind, *count)).collect()
}

fn text(out: &Out) -> String {
    String::from_utf8(out.payload.clone()).expect("text")
}

/// The first row that holds a text.
fn place(rows: &[Out], holds: &str) -> usize {
    rows.iter().position(|row| text(row).contains(holds)).unwrap_or_else(|| panic!("no row holds {holds}"))
}

fn replace(out: &mut Out, what: &str, with: &str) {
    let spoiled = text(out).replace(what, with);
    assert_ne!(spoiled.as_bytes(), out.payload, "{what} is not in the row");
    out.payload = spoiled.into_bytes();
}

#[test]
fn the_output_of_a_right_job_is_clean() {
    let findings = found(|_, _| {});
    assert!(findings.is_clean(), "{:#?}", findings.anomalies);
    let conservation = findings.conservation.expect("it was counted");
    assert!(conservation.holds() && conservation.late == 2 && conservation.dead_letters == 12, "{conservation:?}");
    assert_eq!(findings.rows_read["w.passed"], 3_009);
    assert!(findings.checked[&Invariant::E3] > 9_000);
}

#[test]
fn a_row_that_is_missing_is_a_lost_write() {
    for index in [0, 1_500, 2_999] {
        let findings = found(|_, outputs| drop(outputs.passed.remove(index)));
        assert_eq!(counts(&findings), [(AnomalyKind::LostWrite, 1)], "row {index}");
        assert!(findings.anomalies[0].key.is_some());
    }
    assert_eq!(counts(&found(|_, outputs| outputs.passed.truncate(2_900))), [(AnomalyKind::LostWrite, 109)]);
}

#[test]
fn a_row_that_comes_twice_is_a_duplicate_with_its_place() {
    let findings = found(|_, outputs| outputs.passed.push(outputs.passed[77].clone()));
    assert_eq!(counts(&findings), [(AnomalyKind::Duplicate, 1)]);
    let anomaly = &findings.anomalies[0];
    assert_eq!((anomaly.topic.as_deref(), anomaly.offset.is_some(), anomaly.partition.is_some()), (Some("w.passed"), true, true));
}

#[test]
fn two_rows_of_a_key_in_the_wrong_order_are_nonmonotonic_and_not_lost() {
    let findings = found(|_, outputs| {
        let first = place(&outputs.passed, r#""k":"k7","#);
        let second = first + 1 + place(&outputs.passed[first + 1..], r#""k":"k7","#);
        outputs.passed.swap(first, second);
    });
    assert_eq!(counts(&findings), [(AnomalyKind::Nonmonotonic, 1)]);
    assert_eq!(findings.anomalies[0].key.as_deref(), Some("k7"));
}

#[test]
fn a_row_that_nobody_has_sent_is_foreign() {
    assert_eq!(
        counts(&found(|_, outputs| outputs.passed.push(Out { payload: b"?".to_vec(), ..outputs.passed[0].clone() }))),
        [(AnomalyKind::ForeignValue, 1)]
    );
    let findings = found(|_, outputs| replace(&mut outputs.passed[5], r#""v":"#, r#""v":9"#));
    assert_eq!(counts(&findings), [(AnomalyKind::LostWrite, 1), (AnomalyKind::ForeignValue, 1)]);
}

#[test]
fn rows_of_a_key_that_have_swapped_their_contents_are_found_though_the_numbers_are_gapless() {
    let sent = sent();
    let findings = found(|_, outputs| {
        let first = place(&outputs.passed, r#""k":"k7","#);
        let second = first + 1 + place(&outputs.passed[first + 1..], r#""k":"k7","#);
        let seq = |row: &Out| text(row).split("\"seq\":").nth(1).and_then(|rest| rest.split(',').next().map(str::to_string)).expect("seq");
        let (one, two) = (seq(&outputs.passed[first]), seq(&outputs.passed[second]));
        replace(&mut outputs.passed[first], &format!("\"seq\":{one},"), &format!("\"seq\":{two},"));
        replace(&mut outputs.passed[second], &format!("\"seq\":{two},"), &format!("\"seq\":{one},"));
        outputs.passed.swap(first, second);
    });
    assert_eq!(counts(&findings), [(AnomalyKind::ForeignValue, 1)]);
    assert!(sent.is_complete());
}

#[test]
fn a_faulty_record_that_is_a_row_must_pass_once() {
    let of = |change: fn(&mut Vec<Out>, usize)| {
        found(|_, outputs| {
            let index = place(&outputs.passed, r#""k":null"#);
            change(&mut outputs.passed, index);
        })
    };
    assert_eq!(counts(&of(|rows, index| drop(rows.remove(index)))), [(AnomalyKind::LostWrite, 1)]);
    assert_eq!(counts(&of(|rows, index| rows.push(rows[index].clone()))), [(AnomalyKind::Duplicate, 1)]);
}

#[test]
fn half_a_transfer_is_a_torn_transaction_and_a_wrong_balance() {
    for index in [100, 101] {
        let findings = found(|_, outputs| drop(outputs.transfers.remove(index)));
        // The half, and all accounts together, which have 0 whatever is missing.
        assert_eq!(findings.count(AnomalyKind::TornTransaction), 2, "row {index}: {:?}", counts(&findings));
        assert_eq!(findings.count(AnomalyKind::WrongTotal), 1);
        assert_eq!(findings.count(AnomalyKind::LostWrite), 1);
    }
}

#[test]
fn a_whole_transfer_that_is_missing_or_doubled_is_found_though_the_total_is_right() {
    let findings = found(|_, outputs| drop(outputs.transfers.drain(100..102)));
    assert_eq!(counts(&findings), [(AnomalyKind::LostWrite, 1), (AnomalyKind::WrongTotal, 2)]);
    let findings = found(|_, outputs| {
        let twice: Vec<Out> = outputs.transfers[100..102].to_vec();
        outputs.transfers.extend(twice);
    });
    assert_eq!(counts(&findings), [(AnomalyKind::Duplicate, 1), (AnomalyKind::WrongTotal, 2)]);
}

#[test]
fn transfers_in_another_order_than_their_input_are_nonmonotonic() {
    let findings = found(|sent, outputs| {
        let of_partition: Vec<usize> = (0..outputs.transfers.len()).filter(|index| outputs.transfers[*index].partition == 1).collect();
        for half in 0..2 {
            outputs.transfers.swap(of_partition[half], of_partition[2 + half]);
        }
        assert!(sent.records > 0);
    });
    assert_eq!(counts(&findings), [(AnomalyKind::Nonmonotonic, 1)]);
}

#[test]
fn a_marker_that_is_not_in_all_partitions_is_a_torn_transaction() {
    let mut partition = 0;
    let findings = found(|_, outputs| {
        partition = outputs.markers[43].partition;
        outputs.markers.remove(41);
    });
    assert_eq!(counts(&findings), [(AnomalyKind::TornTransaction, 1)]);
    // The last of its rows that are there: each partition has ten markers before.
    let torn = &findings.anomalies[0];
    assert_eq!((torn.topic.as_deref(), torn.partition, torn.offset), (Some("w.markers"), Some(partition), Some(10)));
    let findings = found(|_, outputs| drop(outputs.markers.drain(40..44)));
    assert_eq!(counts(&findings), [(AnomalyKind::LostWrite, 1)]);
    assert_eq!((findings.anomalies[0].topic.as_deref(), findings.anomalies[0].partition), (Some("w.markers"), None), "it is nowhere");
    let findings = found(|_, outputs| outputs.markers.push(outputs.markers[9].clone()));
    assert_eq!(counts(&findings), [(AnomalyKind::Duplicate, 1)]);
}

#[test]
fn a_group_that_is_missing_doubled_or_wrong_is_named() {
    let findings = found(|_, outputs| drop(outputs.windows.remove(60)));
    assert!(findings.count(AnomalyKind::LostWrite) > 0 && findings.count(AnomalyKind::NonConserved) == 1, "{:?}", counts(&findings));
    let mut last = 0;
    let findings = found(|_, outputs| {
        last = outputs.windows.len() as i64;
        outputs.windows.push(outputs.windows[60].clone());
    });
    let twice = findings.anomalies.iter().find(|anomaly| anomaly.kind == AnomalyKind::Duplicate);
    assert_eq!(twice.map(|anomaly| (anomaly.partition, anomaly.offset)), Some((Some(0), Some(last))), "the second of them");
    assert!(findings.count(AnomalyKind::Duplicate) > 0 && findings.count(AnomalyKind::LostWrite) == 0, "{:?}", counts(&findings));
    let findings = found(|_, outputs| replace(&mut outputs.windows[60], r#""s":"#, r#""s":1"#));
    assert_eq!(counts(&findings), [(AnomalyKind::WrongTotal, 1)]);
    assert!(findings.anomalies[0].key.as_deref().is_some_and(|key| key.starts_with('k')), "{:?}", findings.anomalies);
    assert_eq!((findings.anomalies[0].partition, findings.anomalies[0].offset), (Some(0), Some(60)));
}

#[test]
fn a_record_counted_in_another_window_is_found() {
    let findings = found(|_, outputs| {
        let index = place(&outputs.windows, r#""k":"k7","#);
        let n = text(&outputs.windows[index]).split("\"n\":").nth(1).and_then(|rest| rest.split(',').next()?.parse::<u64>().ok());
        let n = n.expect("a count");
        replace(&mut outputs.windows[index], &format!(r#""n":{n},"#), &format!(r#""n":{},"#, n + 1));
    });
    assert_eq!(counts(&findings), [(AnomalyKind::Duplicate, 1), (AnomalyKind::NonConserved, 1)]);
}

#[test]
fn bulk_state_that_lost_a_record_is_found() {
    let findings = found(|_, outputs| {
        let index = place(&outputs.windows, r#""k":"b7."#);
        outputs.windows.remove(index);
    });
    let lost = findings.anomalies.iter().find(|anomaly| anomaly.kind == AnomalyKind::LostWrite);
    assert_eq!(lost.and_then(|anomaly| anomaly.key.as_deref()), Some("b7"), "{:?}", findings.anomalies);
}

#[test]
fn so_many_wrong_windows_that_not_all_are_looked_at_are_counted() {
    let findings = found(|_, outputs| outputs.windows.clear());
    assert_eq!(findings.count(AnomalyKind::NonConserved), 2, "{:?}", counts(&findings));
    assert!(findings.count(AnomalyKind::LostWrite) > 1_000 && findings.count(AnomalyKind::WrongTotal) > 50, "{:?}", counts(&findings));
}

#[test]
fn a_dead_letter_that_is_missing_doubled_or_changed_is_found() {
    for index in [0, 20, 30] {
        assert_eq!(found(|_, outputs| drop(outputs.letters.remove(index))).count(AnomalyKind::LostWrite), 1, "letter {index}");
        let findings = found(|_, outputs| outputs.letters.push(outputs.letters[index].clone()));
        assert_eq!(counts(&findings), [(AnomalyKind::Duplicate, 1)], "letter {index}");
        let findings = found(|_, outputs| outputs.letters[index].payload = b"other bytes".to_vec());
        assert_eq!(counts(&findings), [(AnomalyKind::ForeignValue, 1)], "letter {index}");
    }
    let findings = found(|_, outputs| outputs.letters[0].key = Some(b"k7".to_vec()));
    assert_eq!(counts(&findings), [(AnomalyKind::LostWrite, 1), (AnomalyKind::NonConserved, 1)]);
}

#[test]
fn a_late_record_that_is_both_or_neither_breaks_conservation() {
    let findings = found(|_, outputs| drop(outputs.late.remove(0)));
    assert_eq!(counts(&findings), [(AnomalyKind::NonConserved, 2)]);
    let findings = found(|_, outputs| {
        let counted = place(&outputs.windows, r#""k":"l"#);
        let number: u64 =
            text(&outputs.windows[counted]).split("\"l").nth(1).and_then(|rest| rest.split('"').next()?.parse().ok()).expect("l");
        outputs.late.push(Out { payload: format!(r#"{{"k":"l{number}"}}"#).into_bytes(), ..outputs.late[0].clone() });
    });
    assert_eq!(counts(&findings), [(AnomalyKind::NonConserved, 2)]);
    assert!(findings.anomalies.iter().all(|anomaly| anomaly.invariant == Invariant::E5));
}

#[test]
fn a_record_of_the_schedule_that_is_late_is_found() {
    let late = |outputs: &mut Outputs| outputs.late.push(Out { payload: br#"{"k":"k1"}"#.to_vec(), ..outputs.late[0].clone() });
    assert_eq!(counts(&found(|_, outputs| late(outputs))), [(AnomalyKind::NonConserved, 2)]);
}

#[test]
fn what_a_reader_saw_and_is_gone_was_aborted_and_what_it_did_not_see_is_unseen() {
    let outputs = Outputs::of(&sent());
    let rows = &outputs.passed;
    let seen = |rows: &[Out]| {
        Observation::of_rows(Flow::Passed, rows.iter().map(|out| (out.partition, out.key.as_deref(), out.payload.as_slice())))
    };
    assert!(compare_seen(&seen(rows), rows).is_clean());
    // Behind what was seen, more may have been committed.
    assert!(compare_seen(&seen(&rows[..1_000]), rows).is_clean());
    assert_eq!(counts(&compare_seen(&seen(rows), &rows[..rows.len() - 1])), [(AnomalyKind::AbortedRead, 1)]);
    let mut other = rows.clone();
    replace(&mut other[10], r#""v":"#, r#""v":1"#);
    assert_eq!(counts(&compare_seen(&seen(rows), &other)), [(AnomalyKind::InconsistentOffsets, 1)]);
}
