//! What `check` says about a store that can't be used.

use crate::killed::run_child;
use crate::place::{JOB, Place};
use crate::proxy::{Answer, Proxy};
use std::time::Duration;
use streamshield_checkpoint::ObjectCheckpoints;

fn denied() -> Answer {
    Answer::Status(403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>".into())
}

#[test]
fn the_probe_says_which_right_is_missing() {
    let test = "the_probe_says_which_right_is_missing";
    let Some(endpoint) = Place::s3_endpoint(test) else { return };
    let cases: [(&str, fn(&str, &str) -> bool); 4] = [
        ("write", |method, _| method == "PUT"),
        ("read", |method, path| method == "GET" && !path.contains("list-type")),
        ("list", |method, path| method == "GET" && path.contains("list-type")),
        ("delete", |method, path| method == "DELETE" || method == "POST" && path.contains("delete")),
    ];
    for (right, is_denied) in cases {
        let proxy = Proxy::start(&endpoint, move |method, path| if is_denied(method, path) { denied() } else { Answer::Forward });
        let place = Place::s3_at(test, &endpoint, &proxy.endpoint);
        let problem = place.open().probe().unwrap_err();
        assert!(problem.what.ends_with(&format!("does not allow to {right}")), "{right}: {problem}");
        assert!(problem.hint.contains("rights"), "{problem}");
    }
}

#[test]
fn a_bucket_that_does_not_exist_and_an_address_where_nobody_is_are_told_apart() {
    let test = "a_bucket_that_does_not_exist";
    let Some(endpoint) = Place::s3_endpoint(test) else { return };
    let mut place = Place::s3_at(test, &endpoint, &endpoint);
    place.url = "s3://no-such-bucket/prefix".into();
    let problem = place.open().probe().unwrap_err();
    assert!(problem.what.contains("is not there") && problem.hint.contains("bucket"), "{problem}");

    let mut config = place.config();
    config.options.insert("endpoint".into(), "http://127.0.0.1:1".into());
    config.request_timeout = Duration::from_secs(2);
    config.retry_timeout = Duration::from_secs(3);
    let problem = ObjectCheckpoints::open(config, JOB).unwrap().probe().unwrap_err();
    assert!(problem.what.contains("does not work") && problem.hint.contains("network"), "{problem}");
}

/// HDFS knows users, and the client takes its name from the environment of the process.
#[test]
#[ignore = "the child of a_user_without_rights_on_hdfs_is_told_so"]
fn child_that_probes_hdfs() {
    let Some(place) = Place::hdfs("child_that_probes_hdfs") else { return };
    let problem = place.open().probe().unwrap_err();
    println!("PROBLEM {problem}");
}

#[test]
fn a_user_without_rights_on_hdfs_is_told_so() {
    let Some(place) = Place::hdfs("a_user_without_rights_on_hdfs_is_told_so") else { return };
    place.open().probe().unwrap();
    let output = run_child("rights::child_that_probes_hdfs", &[("HADOOP_USER_NAME", "stranger")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("does not allow to write"), "{text}");
}
