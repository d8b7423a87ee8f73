//! A thread that goes on until it is told to finish: feeders and readers of benchmarks and tests.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Dropping it tells the thread to finish and does not wait.
pub struct Background<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<T>>>,
}

/// What the thread asks whether it is to finish.
#[derive(Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<T: Send + 'static> Background<T> {
    pub fn start(name: &str, work: impl FnOnce(Stop) -> Result<T> + Send + 'static) -> Result<Background<T>> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Stop(stop.clone());
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(theirs))?;
        Ok(Background { stop, thread: Some(thread) })
    }

    /// False: it has ended by itself, or finished.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tells it to finish.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Tells it to finish, and waits for what comes of it.
    pub fn finish(&mut self) -> Result<T> {
        self.stop();
        let thread = self.thread.take().context("finished already")?;
        let name = thread.thread().name().unwrap_or_default().to_string();
        thread.join().map_err(|_| anyhow::anyhow!("the thread {name} panicked"))?
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
