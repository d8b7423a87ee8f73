//! The line between the supervisor and a worker: figures go up, and its end is a sign.
//!
//! It is a socket in the place of the worker's standard input, which a worker has no other use for. Standard output can't be it: tables with
//! `'connector' = 'print'` write there, and their rows must come through as they are. A worker that was killed has told its figures up to half a second
//! before, so the sum at the end lacks little.

use super::lines::each_line;
use crate::figures::Figures;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SEND_INTERVAL: Duration = Duration::from_millis(500);
/// A supervisor that does not read must not keep a worker from its work.
const SEND_TIME_MAX: Duration = Duration::from_millis(100);

/// The supervisor's end, and what becomes the worker's standard input.
pub fn pair() -> io::Result<(UnixStream, Stdio)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, Stdio::from(OwnedFd::from(theirs))))
}

/// Calls `heard` for each report until the worker is gone. Lines that are no reports are skipped: the end of a killed worker's last one is missing.
pub fn listen(stream: UnixStream, mut heard: impl FnMut(Figures)) {
    each_line(stream, |line| {
        if let Ok(figures) = serde_json::from_slice(line) {
            heard(figures);
        }
    });
}

/// The worker's end.
pub struct ReportSender {
    stream: UnixStream,
    sent: Option<Instant>,
    broken: bool,
}

impl ReportSender {
    /// From standard input, where the supervisor has put it.
    pub fn from_stdin() -> io::Result<ReportSender> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // Fails where standard input is no socket.
        stream.peer_addr()?;
        stream.set_write_timeout(Some(SEND_TIME_MAX))?;
        Ok(ReportSender { stream, sent: None, broken: false })
    }

    /// Sends, if it is time.
    pub fn send_sometimes(&mut self, figures: &Figures) {
        if self.sent.is_none_or(|sent| sent.elapsed() >= SEND_INTERVAL) {
            self.send(figures);
        }
    }

    pub fn send(&mut self, figures: &Figures) {
        self.sent = Some(Instant::now());
        let mut line = serde_json::to_vec(figures).expect("plain data always serializes");
        line.push(b'\n');
        if let Err(error) = self.stream.write_all(&line) {
            self.broken |= matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
        }
    }

    /// The supervisor is gone.
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(stream: UnixStream) -> ReportSender {
        ReportSender { stream, sent: None, broken: false }
    }

    #[test]
    fn figures_arrive_and_the_end_of_a_killed_worker_is_skipped() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut sender = sender(theirs);
        sender.send(&Figures { records_in: 1, ..Default::default() });
        sender.send(&Figures { records_in: 2, ..Default::default() });
        sender.stream.write_all(b"{\"records_in\": 3").expect("written");
        drop(sender);
        let mut heard = Vec::new();
        listen(ours, |figures| heard.push(figures.records_in));
        assert_eq!(heard, [1, 2]);
    }

    #[test]
    fn a_worker_notices_that_its_supervisor_is_gone() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut sender = sender(theirs);
        sender.send(&Figures::default());
        assert!(!sender.is_broken());
        drop(ours);
        sender.send(&Figures::default());
        assert!(sender.is_broken());
    }

    #[test]
    fn a_supervisor_that_does_not_read_costs_a_bounded_time() {
        let (_ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_write_timeout(Some(SEND_TIME_MAX)).expect("a time-out");
        let mut sender = sender(theirs);
        let large = Figures { state: "x".repeat(8 << 20), ..Default::default() };
        let started = Instant::now();
        sender.send(&large);
        assert!(!sender.is_broken() && started.elapsed() < Duration::from_secs(5));
    }
}
