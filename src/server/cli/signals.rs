//! SIGTERM and SIGINT: the first asks the job to drain, the second ends the process at once.

use super::{ExitStatus, leave};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Raised by the first signal.
#[derive(Clone, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Listens on the runtime from now on.
pub fn listen(runtime: &tokio::runtime::Runtime) -> std::io::Result<StopRequest> {
    let request = StopRequest::default();
    let _context = runtime.enter();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let raised = request.clone();
    runtime.spawn(async move {
        next(&mut terminate, &mut interrupt).await;
        raised.0.store(true, Ordering::SeqCst);
        // Who is stuck in standard error has it locked, and the second signal is heard all the same.
        let _ = std::thread::Builder::new().name("log".into()).spawn(|| tracing::info!("draining; a second signal ends at once"));
        next(&mut terminate, &mut interrupt).await;
        // Like a crash: whatever is not committed is done again at the next start.
        leave(ExitStatus::Killed as u8);
    });
    Ok(request)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
