//! What a process reports over HTTP: whether it is healthy (`/healthz`), whether it is at work
//! (`/readyz`), and its figures in Prometheus' text format (`/metrics`). Off unless `METRICS_ADDR` is
//! set.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::routing::get;
use clap::Args;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
pub use prometheus_client::registry::Registry;

use crate::http_server::{bind, serve};
use crate::preflight::PreflightError;
use crate::settings::{Setting, SettingsProblems, parse_address, setting};

#[derive(Debug, Args)]
#[command(next_help_heading = "Observation")]
pub struct EndpointArgs {
    /// Serve /healthz, /readyz and /metrics on this address, for example 0.0.0.0:9100
    #[arg(long, env, value_name = "ADDRESS:PORT", default_value = "off", value_parser = setting(parse_address))]
    metrics_addr: Setting<Option<SocketAddr>>,
}

impl EndpointArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> Option<SocketAddr> {
        self.metrics_addr.take(problems)
    }
}

/// What can be observed. Both calls are served from memory: polling costs the database nothing.
pub trait ProcessStatus: Send + Sync + 'static {
    /// None when the process is healthy.
    fn unhealthy_reason(&self) -> Option<String>;

    /// What is worth knowing although the process is healthy.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn register_metrics(&self, registry: &mut Registry);
}

/// Whether a process has passed its checks. Until then it is healthy, but not ready.
#[derive(Debug, Clone, Default)]
pub struct ReadinessFlag(Arc<AtomicBool>);

impl ReadinessFlag {
    /// Every check is passed, and the work begins.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct EndpointState {
    status: Arc<dyn ProcessStatus>,
    ready: ReadinessFlag,
}

impl EndpointState {
    /// Why no work is done; none when it is.
    fn unready_reason(&self) -> Option<String> {
        let starting = || "starting: the checks are not through yet".into();
        let reason = self.status.unhealthy_reason();
        reason.or_else(|| (!self.ready.is_set()).then(starting))
    }
}

/// Serves in the background until the process ends. The process is ready once the returned flag is set.
pub async fn serve_endpoints(
    address: Option<SocketAddr>,
    observed: Arc<dyn ProcessStatus>,
) -> Result<ReadinessFlag, PreflightError> {
    let ready = ReadinessFlag::default();
    let Some(address) = address else {
        return Ok(ready);
    };
    let listener = bind("METRICS_ADDR", address).await?;
    let router = Router::new()
        .route("/healthz", get(get_healthz))
        .route("/readyz", get(get_readyz))
        .route("/metrics", get(get_metrics))
        .with_state(EndpointState {
            status: observed,
            ready: ready.clone(),
        });
    tokio::spawn(serve(listener, router));
    Ok(ready)
}

async fn get_healthz(State(watched): State<EndpointState>) -> (StatusCode, String) {
    let (status, mut text) = health_response(watched.status.unhealthy_reason());
    if status == StatusCode::OK {
        for note in watched.status.notes() {
            text = format!("{text}{note}\n");
        }
    }
    (status, text)
}

async fn get_readyz(State(watched): State<EndpointState>) -> (StatusCode, String) {
    health_response(watched.unready_reason())
}

fn health_response(reason: Option<String>) -> (StatusCode, String) {
    match reason {
        None => (StatusCode::OK, "ok\n".into()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// Prometheus' text format, by its own name.
const METRICS_HEADERS: [(HeaderName, &str); 1] = [(
    header::CONTENT_TYPE,
    "text/plain; version=0.0.4; charset=utf-8",
)];

async fn get_metrics(
    State(watched): State<EndpointState>,
) -> ([(HeaderName, &'static str); 1], String) {
    let mut registry = Registry::default();
    register_gauge(
        &mut registry,
        "bucket_brigade_healthy",
        "1 when the process is well, 0 in an outage",
        watched.status.unhealthy_reason().is_none().into(),
    );
    register_gauge(
        &mut registry,
        "bucket_brigade_ready",
        "1 when the process has passed its checks and is well, 0 otherwise",
        watched.unready_reason().is_none().into(),
    );
    watched.status.register_metrics(&mut registry);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    (METRICS_HEADERS, text)
}

/// Adds a figure that may fall.
pub fn register_gauge(registry: &mut Registry, name: &'static str, help: &'static str, value: u64) {
    registry.register(name, help, ConstGauge::new(value));
}

/// Adds a figure that only rises. Its name is served with `_total` at its end.
pub fn register_counter(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    value: u64,
) {
    registry.register(name, help, ConstCounter::new(value));
}
