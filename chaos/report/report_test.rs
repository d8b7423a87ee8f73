use super::*;
use crate::journal::{Entry, Finding};
use crate::plan::Invariant;
use crate::test_kit;

fn violated() -> Journal {
    let mut entries = test_kit::entries();
    let finding = Finding {
        invariant: Invariant::NoDuplicate,
        kind: "duplicate".into(),
        place: "out-passed/3 offset 1234 key <k7>".into(),
        detail: "count 17 | twice".into(),
    };
    entries.push(Entry::Finding { finding });
    entries.push(Entry::Injecting {
        injection: crate::journal::Injection {
            outcome: InjectionOutcome::NotPossible("no cgroup".into()),
            hit: Vec::new(),
            count: 0,
            ..test_kit::injection(9, "process.cpu", 50_000, 50_000)
        },
    });
    test_kit::journal_of(entries)
}

/// Every element is closed, in order, and no attribute or text holds a bare `<` or `&`.
fn assert_well_formed(text: &str) {
    let mut open: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let end = rest[at..].find('>').unwrap_or_else(|| panic!("a tag without an end: {}", &rest[at..rest.len().min(at + 80)])) + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if tag.starts_with(['?', '!']) {
            continue;
        }
        let name: String = tag.trim_start_matches('/').chars().take_while(|c| c.is_alphanumeric()).collect();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "closed out of order before: {}", &rest[..rest.len().min(80)]);
        } else if !tag.ends_with('/') && name != "meta" {
            open.push(name.clone());
        }
        // What is inside is not markup.
        if (name == "script" || name == "style") && !tag.starts_with('/') {
            rest = &rest[rest.find(&format!("</{name}")).expect("it is closed")..];
        }
    }
    assert_eq!(open, Vec::<String>::new(), "left open");
}

#[test]
fn the_scorecard_of_a_good_run() {
    insta::assert_snapshot!(markdown(&test_kit::journal()));
}

#[test]
fn the_scorecard_of_a_violation_names_what_to_look_at_and_how_to_do_it_again() {
    insta::assert_snapshot!(markdown(&violated()));
}

#[test]
fn junit_has_a_case_for_each_promise_and_skips_what_the_host_can_not_do() {
    let text = junit(&violated());
    assert_well_formed(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn junit_has_no_fault_as_passed_that_the_host_could_not_always_inject() {
    let mut journal = test_kit::journal();
    journal.injections[1].outcome = InjectionOutcome::NotPossible("no cgroup".into());
    crate::verdict::judge(&mut journal);
    let asked = r#"name="process.kill"><error message="fired 1 times, 2 are asked for; not possible here: no cgroup"/>"#;
    assert!(junit(&journal).contains(asked), "{}", junit(&journal));
    journal.plan.proof_of_fault.min_fired.clear();
    crate::verdict::judge(&mut journal);
    let skipped = r#"name="process.kill"><skipped message="fired 1 times, 1 times not possible here: no cgroup"/>"#;
    assert!(junit(&journal).contains(skipped), "{}", junit(&journal));
}

#[test]
fn the_page_is_well_formed_and_needs_no_network() {
    for journal in [test_kit::journal(), violated()] {
        let page = html(&journal);
        assert_well_formed(&page);
        for foreign in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign} in the page");
        }
        assert!(page.contains("two kills and a cut link &amp; more"));
        assert_eq!(page.matches("class=\"band process\"").count(), 2);
        assert_eq!(page.matches("class=\"mark owner\"").count(), 1);
    }
    assert!(html(&violated()).contains("key &lt;k7&gt;"));
}

#[test]
fn notes_are_shown_and_of_many_the_last() {
    let mut journal = test_kit::journal();
    assert!(!markdown(&journal).contains("Notes") && !html(&journal).contains("Notes"));
    let note = |number: usize| crate::journal::Note { at_ms: 1_000, text: format!("<note> {number}") };
    journal.notes = (1..=NOTES_MAX + 7).map(note).collect();
    let (text, page) = (markdown(&journal), html(&journal));
    assert_well_formed(&page);
    assert!(text.contains("\nNotes:\n\n- 7 earlier ones are in the journal\n- 1 s: <note> 8\n"), "{text}");
    assert!(text.ends_with("\n- 1 s: <note> 107\n"), "{text}");
    assert!(page.contains("<li>1 s: &lt;note&gt; 107</li>") && !page.contains("&lt;note&gt; 7<"));
}

/// For a look with a real browser: `STREAMSHIELD_REPORT_TO=folder`.
#[test]
fn all_reports_are_written_beside_the_journal() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = std::env::var_os("STREAMSHIELD_REPORT_TO").map_or(folder.path().to_path_buf(), std::path::PathBuf::from);
    write_all(&violated(), &to).expect("written");
    for name in ["report.md", "report.html", "junit.xml"] {
        assert!(std::fs::metadata(to.join(name)).expect(name).len() > 500, "{name}");
    }
}

#[test]
fn numbers_and_times_are_shown_as_people_write_them() {
    assert_eq!([count(7), count(1_234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
    assert_eq!([time(812), time(60_000), time(185_000)], ["0.812 s", "1 min", "3 min 5 s"]);
}
