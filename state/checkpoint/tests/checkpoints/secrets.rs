//! Secrets show up nowhere: not in debug texts, not in errors, not in logs, whatever the server says.

use crate::killed::run_child;
use crate::place::{JOB, Place};
use crate::proxy::{Answer, Proxy};
use crate::state::small;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use streamshield_checkpoint::ObjectCheckpoints;
use streamshield_core::ports::checkpoint::CheckpointStore;

const SECRET: &str = "hunter2-hunter2";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_server_that_repeats_the_secret_does_not_bring_it_into_errors_or_logs() {
    let test = "a_server_that_repeats_the_secret";
    if Place::s3_endpoint(test).is_none() {
        return;
    }
    // A process of its own: what is logged by all of its threads is caught.
    let output = run_child("secrets::child_that_is_told_its_secret", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "the child of a_server_that_repeats_the_secret_does_not_bring_it_into_errors_or_logs"]
fn child_that_is_told_its_secret() {
    let test = "child_that_is_told_its_secret";
    let Some(endpoint) = Place::s3_endpoint(test) else { return };
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter("streamshield_checkpoint=trace,object_store=trace")
        .with_writer(move || writer.clone())
        .init();
    for status in [400, 403, 500] {
        let body = format!("<Error><Code>X</Code><Message>the key {SECRET} is wrong</Message></Error>");
        let proxy = Proxy::start(&endpoint, move |_, _| Answer::Status(status, body.clone()));
        let place = Place::s3_at(test, &endpoint, &proxy.endpoint);
        let mut config = place.config();
        config.options.insert("secret_access_key".into(), SECRET.into());
        config.options.insert("session_token".into(), SECRET.into());
        config.request_timeout = Duration::from_secs(2);
        config.retry_timeout = Duration::from_secs(2);
        let fallback = place.disk.path().join("local");

        let store = ObjectCheckpoints::open(config.clone(), JOB).unwrap();
        config.local_fallback = Some(fallback);
        let with_folder = ObjectCheckpoints::open(config.clone(), JOB).unwrap();
        with_folder.save(&small(place.disk.path(), 1, 5)).unwrap();
        let save = store.save(&small(place.disk.path(), 1, 5)).unwrap_err();
        let probe = store.probe().unwrap_err();
        let texts = [format!("{store:?} {config:?}"), save.to_string(), format!("{save:?}"), probe.to_string(), format!("{probe:?}")];
        for text in &texts {
            assert!(!text.contains(SECRET), "{status}: {text}");
        }
        assert!(texts[1].contains("<redacted>"), "the server did say it: {}", texts[1]);
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("checkpoint saved in the local folder"), "{log}");
        assert!(!log.contains(SECRET), "{status}: {log}");
    }
}
