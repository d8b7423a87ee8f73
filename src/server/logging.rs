//! Log lines: to standard error, as text or JSON, through the redactor.

use crate::job::secret::Redactor;
use std::io::{self, IsTerminal, Write};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Ours at `info`, what others say at `warn`. `RUST_LOG` overrides it.
const DEFAULT_FILTER: &str = "warn,streamshield=info,streamshield_core=info,streamshield_engine=info,streamshield_sql=info,streamshield_state=info,streamshield_kafka=info,streamshield_embedded=info,streamshield_connectors=info";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl LogFormat {
    /// As the command line takes it.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// Whoever kills brokers knows that a client of them complains.
pub const CHAOS_FILTER: &str = "warn,rdkafka=off,librdkafka=off";

/// Starts logging for the process. `quiet` shows warnings only, where log lines would tear a live view.
pub fn init(format: LogFormat, quiet: bool, redactor: &Redactor) {
    init_with(format, if quiet { "warn" } else { DEFAULT_FILTER }, redactor);
}

/// With a filter of its own, unless `RUST_LOG` has one.
pub fn init_with(format: LogFormat, default: &str, redactor: &Redactor) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let writer = RedactedErrors { redactor: redactor.clone() };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // A second call in one process (tests) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Makes one writer per log line.
struct RedactedErrors {
    redactor: Redactor,
}

impl<'a> MakeWriter<'a> for RedactedErrors {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { redactor: self.redactor.clone(), bytes: Vec::new() }
    }
}

/// Collects a line and writes it as a whole, so that a secret can't slip through between two writes.
struct Line {
    redactor: Redactor,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.redactor.is_empty() {
            let _ = io::stderr().write_all(&self.bytes);
        } else {
            let text = String::from_utf8_lossy(&self.bytes);
            let _ = io::stderr().write_all(self.redactor.redact(&text).as_bytes());
        }
    }
}
