//! The HTTP endpoints: metrics, health, status. Read only.
//!
//! Bound to loopback unless the user says otherwise, since there is no authentication. A connection serves one request, for at most
//! [`CONNECTION_SECONDS_MAX`], and reads at most [`REQUEST_BYTES_MAX`]; there are at most [`CONNECTIONS_MAX`] of them. So a
//! client that dawdles or floods costs a bounded amount, and nothing in the engine.

use crate::job::secret::Redactor;
use crate::metrics;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use metrics_exporter_prometheus::PrometheusHandle;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use streamshield_core::status::ClusterStatus;
use streamshield_engine::runtime::JobStatus;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

const CONNECTIONS_MAX: usize = 64;
const CONNECTION_SECONDS_MAX: u64 = 5;
const REQUEST_BYTES_MAX: usize = 32 << 10;

/// What the endpoints show.
pub trait StatusProvider: Send + Sync + 'static {
    fn status(&self) -> JobStatus;
    /// All workers and regions. May block for as long as the log takes; Err: why there is nothing to show.
    fn cluster(&self) -> Result<ClusterStatus, String>;
}

#[derive(Clone)]
struct Shared {
    job: Arc<dyn StatusProvider>,
    metrics: PrometheusHandle,
    redactor: Redactor,
}

/// Serves until the runtime ends. Returns the bound address, so that port 0 may be asked for.
pub async fn serve(
    address: SocketAddr,
    job: Arc<dyn StatusProvider>,
    metrics: PrometheusHandle,
    redactor: Redactor,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    if !bound.ip().is_loopback() {
        tracing::warn!(address = %bound, "metrics and status are reachable from other machines, without authentication");
    }
    let app = Router::new()
        .route("/metrics", get(get_metrics))
        .route("/health", get(get_health))
        .route("/ready", get(get_ready))
        .route("/api/v1/status", get(get_status))
        .route("/api/v1/cluster", get(get_cluster))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .layer(axum::middleware::map_response(own_headers))
        .with_state(Shared { job, metrics, redactor });
    let listener = BoundedListener { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the HTTP endpoints have ended");
        }
    });
    Ok(bound)
}

/// One request per connection; and a date of our own: hyper keeps its date for a second and never moves it back, which would hide a clock
/// that is set back.
async fn own_headers(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Ok(date) = HeaderValue::try_from(chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string()) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

async fn get_metrics(State(shared): State<Shared>) -> Response {
    metrics::export_status(&shared.job.status());
    metrics::export_process();
    shared.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::rendered(&shared.metrics)).into_response()
}

/// Alive: every part of the job that was here runs, here or elsewhere. False while one of them was stopped and rests until a worker joins.
async fn get_health(State(shared): State<Shared>) -> Response {
    let status = shared.job.status();
    match status.regions.iter().find_map(|region| Some((&region.region, region.stopped.as_ref()?))) {
        Some((region, reason)) => {
            (StatusCode::SERVICE_UNAVAILABLE, shared.redactor.redact(&format!("region {region} is stopped: {reason}\n"))).into_response()
        }
        None => (StatusCode::OK, "ok\n").into_response(),
    }
}

/// Ready: recovered and running.
async fn get_ready(State(shared): State<Shared>) -> Response {
    let state = shared.job.status().state;
    let code = if state == "running" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{state}\n")).into_response()
}

/// This worker.
async fn get_status(State(shared): State<Shared>) -> Response {
    json(&shared.job.status(), &shared.redactor)
}

/// All workers, whichever is asked.
async fn get_cluster(State(shared): State<Shared>) -> Response {
    let job = shared.job.clone();
    match tokio::task::spawn_blocking(move || job.cluster()).await {
        Ok(Ok(status)) => json(&status, &shared.redactor),
        Ok(Err(reason)) => (StatusCode::SERVICE_UNAVAILABLE, shared.redactor.redact(&format!("{reason}\n"))).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn json(status: &impl serde::Serialize, redactor: &Redactor) -> Response {
    match serde_json::to_string(status) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], redactor.redact(&json)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Accepts while there are permits.
struct BoundedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        loop {
            let Ok(permit) = self.permits.clone().acquire_owned().await else { continue };
            // By way of axum, which waits a little when the process is out of descriptors.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let deadline = Box::pin(tokio::time::sleep(Duration::from_secs(CONNECTION_SECONDS_MAX)));
            return (BoundedStream { stream, deadline, bytes_left: REQUEST_BYTES_MAX, _permit: permit }, address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with an end.
struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    bytes_left: usize,
    _permit: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn check_deadline(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_deadline(context)?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > self.bytes_left {
            return Poll::Ready(Err(io::Error::other("the request is too large")));
        }
        self.bytes_left -= read;
        polled
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_deadline(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
