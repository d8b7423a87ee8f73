//! One worker process under supervision: started, heard, started again.

use super::channel;
use super::lines;
use super::policy::{Exit, Next, RestartPolicy};
use crate::figures::Figures;
use crate::logging::LogFormat;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How soon it is noticed that all output has been passed on.
const OUTPUT_POLL: Duration = Duration::from_millis(5);

/// How a worker is started.
pub struct Recipe {
    pub name: String,
    pub program: std::path::PathBuf,
    pub arguments: Vec<std::ffi::OsString>,
    pub log_format: LogFormat,
}

enum State {
    Running(Life),
    RestartAt(Instant),
    Ended,
}

/// One process and the threads that listen to it.
struct Life {
    process: std::process::Child,
    born: Instant,
    figures: Arc<Mutex<Figures>>,
    reports: JoinHandle<()>,
    /// Rows and log lines.
    output: Vec<JoinHandle<()>>,
}

pub struct Child {
    recipe: Recipe,
    state: State,
    policy: RestartPolicy,
    /// Of lives that are over.
    past: Figures,
    /// What lives that are over have left to be passed on. Whoever reads it may be slow or stuck, and no restart waits for him.
    output: Vec<JoinHandle<()>>,
    pub restarts: u32,
}

impl Child {
    pub fn start(recipe: Recipe) -> io::Result<Child> {
        let life = Life::begin(&recipe)?;
        let (policy, past) = (RestartPolicy::default(), Figures::default());
        Ok(Child { recipe, state: State::Running(life), policy, past, output: Vec::new(), restarts: 0 })
    }

    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Looks after the process: notices its end and starts it again when that is due. Some: it has just ended, and this is what follows.
    pub fn look_after(&mut self) -> io::Result<Option<(Exit, Next)>> {
        match &mut self.state {
            State::Running(life) => {
                let Some(status) = life.process.try_wait()? else { return Ok(None) };
                let exit = status.code().map_or_else(|| Exit::Signal(status.signal().unwrap_or_default()), Exit::Code);
                let ran_for = life.born.elapsed();
                self.bury();
                let next = self.policy.next(exit, ran_for);
                if let Next::RestartAfter(pause) = next {
                    self.state = State::RestartAt(Instant::now() + pause);
                }
                Ok(Some((exit, next)))
            }
            State::RestartAt(at) if Instant::now() >= *at => {
                self.state = State::Running(Life::begin(&self.recipe)?);
                self.restarts += 1;
                Ok(None)
            }
            State::RestartAt(_) | State::Ended => Ok(None),
        }
    }

    /// Asks it to drain; one that is not running is not started again.
    pub fn drain(&mut self) {
        match &self.state {
            State::Running(life) => life.signal(Signal::TERM),
            State::RestartAt(_) => self.state = State::Ended,
            State::Ended => {}
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if let State::Running(life) = &mut self.state {
            let _ = life.process.kill();
            let _ = life.process.wait();
        }
        self.bury();
    }

    /// What it is doing now, with all it has done.
    pub fn figures(&self) -> Figures {
        let mut figures = match &self.state {
            State::Running(life) => life.figures.lock().clone(),
            State::RestartAt(_) => Figures { state: "starting".into(), ..Default::default() },
            State::Ended => Figures { state: "ended".into(), ..Default::default() },
        };
        figures.add_counts(&self.past);
        figures
    }

    /// Waits until all that it has said is passed on, but not longer than this. False: something is left.
    pub fn finish_output(&mut self, deadline: Instant) -> bool {
        while self.output.iter().any(|listener| !listener.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(OUTPUT_POLL);
        }
        true
    }

    /// Keeps what the process has reported, once all of it has been heard.
    fn bury(&mut self) {
        if let State::Running(life) = std::mem::replace(&mut self.state, State::Ended) {
            let _ = life.reports.join();
            self.past.add_counts(&life.figures.lock());
            self.output.retain(|listener| !listener.is_finished());
            self.output.extend(life.output);
        }
    }
}

impl Life {
    /// Starts the process. Called from the main thread only: the kernel ends it with the *thread* that started it.
    fn begin(recipe: &Recipe) -> io::Result<Life> {
        let (reports, stdin) = channel::pair()?;
        let mut process = Command::new(&recipe.program)
            .args(&recipe.arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal reaches the whole group: the supervisor alone is to hear it, and to pass it on once.
            .process_group(0)
            .spawn()?;
        let figures = Arc::new(Mutex::new(Figures { state: "starting".into(), ..Default::default() }));
        let mut output = Vec::new();
        let (stdout, stderr, heard) = (process.stdout.take(), process.stderr.take(), figures.clone());
        let (worker, format) = (recipe.name.clone(), recipe.log_format);
        let reports = listener("reports", move || channel::listen(reports, |figures| *heard.lock() = figures))?;
        if let Some(stdout) = stdout {
            output.push(listener("rows", move || lines::forward_rows(stdout))?);
        }
        if let Some(stderr) = stderr {
            output.push(listener("log", move || lines::forward_log(stderr, &worker, format))?);
        }
        Ok(Life { process, born: Instant::now(), figures, reports, output })
    }

    fn signal(&self, signal: Signal) {
        // It may have ended meanwhile; it is not reaped yet, so its number is nobody else's.
        let _ = kill_process(Pid::from_child(&self.process), signal);
    }
}

fn listener(name: &str, listen: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(listen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_stuck_keeps_no_worker_from_its_restart() {
        let recipe = Recipe {
            name: "0".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), "echo a row; exit 1".into()],
            log_format: LogFormat::Text,
        };
        let stuck = io::stdout().lock();
        let began = Instant::now();
        let mut child = Child::start(recipe).expect("started");
        let ended = loop {
            if let Some(ended) = child.look_after().expect("looked after") {
                break ended;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "its end was not noticed");
            std::thread::sleep(OUTPUT_POLL);
        };
        assert!(matches!(ended, (Exit::Code(1), Next::RestartAfter(_))), "{ended:?}");
        assert!(!child.finish_output(Instant::now() + OUTPUT_POLL), "its row is not passed on");
        drop(stuck);
        assert!(child.finish_output(Instant::now() + Duration::from_secs(30)));
        assert!(child.output.iter().all(JoinHandle::is_finished));
    }
}
