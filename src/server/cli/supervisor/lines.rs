//! Lines of the workers' output, made the supervisor's: whole, one after the other, and with the name of the worker where it is a log line.

use crate::logging::LogFormat;
use serde_json::{Map, Value};
use std::io::{self, BufRead, BufReader, Read, Write};

/// A longer line is passed on in parts.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Calls `each` for every line (with its end, but for the last one) until the stream ends.
pub fn each_line(stream: impl Read, mut each: impl FnMut(&[u8])) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => each(&line),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Passes a worker's rows on as they are.
pub fn forward_rows(stream: impl Read) {
    each_line(stream, |line| {
        // Nobody reads any more: the worker's rows have nowhere to go, and it goes on.
        let _ = io::stdout().lock().write_all(line);
    });
}

/// Passes a worker's log lines on under its name.
pub fn forward_log(stream: impl Read, worker: &str, format: LogFormat) {
    each_line(stream, |line| {
        let _ = io::stderr().lock().write_all(named(line, worker, format).as_bytes());
    });
}

fn named(line: &[u8], worker: &str, format: LogFormat) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    match format {
        LogFormat::Text => format!("[{worker}] {text}\n"),
        LogFormat::Json => {
            let mut fields = match serde_json::from_str::<Value>(text) {
                Ok(Value::Object(fields)) => fields,
                // The report of a problem, or the last words of a panic.
                _ => Map::from_iter([("message".to_string(), Value::from(text))]),
            };
            fields.insert("worker".into(), Value::from(worker));
            format!("{}\n", Value::Object(fields))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_gets_the_name_of_its_worker() {
        assert_eq!(named(b"INFO starting\n", "0", LogFormat::Text), "[0] INFO starting\n");
        assert_eq!(
            named(b"{\"level\":\"INFO\",\"message\":\"starting\"}\n", "0", LogFormat::Json),
            "{\"level\":\"INFO\",\"message\":\"starting\",\"worker\":\"0\"}\n"
        );
        assert_eq!(named(b"panicked at \"x\"", "0", LogFormat::Json), "{\"message\":\"panicked at \\\"x\\\"\",\"worker\":\"0\"}\n");
    }

    #[test]
    fn lines_come_whole_and_endless_ones_in_parts() {
        let long = "x".repeat(LINE_BYTES_MAX as usize + 5);
        let text = format!("a\n\n{long}\nb");
        let mut lines = Vec::new();
        each_line(text.as_bytes(), |line| lines.push(line.to_vec()));
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, LINE_BYTES_MAX as usize, 6, 1]);
        assert_eq!(lines.concat(), text.as_bytes());
    }
}
