//! What the outside can ask a process over HTTP: whether it is well (`/healthz`), whether it is at work
//! (`/readyz`), and its figures in Prometheus' text format (`/metrics`). Off unless `METRICS_ADDR` is
//! set.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::routing::get;
use clap::Args;
use tokio::net::TcpListener;

use crate::histogram::Histogram;
use crate::preflight::PreflightError;
use crate::settings::SettingsProblems;

/// Where to answer.
#[derive(Debug, Args)]
#[command(next_help_heading = "Observation")]
pub struct EndpointArgs {
    /// Answer /healthz, /readyz and /metrics on this address, for example 0.0.0.0:9100 [default: off]
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDRESS:PORT")]
    pub metrics_addr: Option<String>,
}

impl EndpointArgs {
    /// Checks the setting.
    pub fn parse(self, problems: &mut SettingsProblems) -> Option<SocketAddr> {
        problems.parse_value("METRICS_ADDR", self.metrics_addr, None, |text| {
            let address = text.parse().map(Some);
            address.map_err(|_| "is not an address and port, such as 0.0.0.0:9100".into())
        })
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricSample {
    /// Its name, with the unit in it; `_total` marks a counter, everything else is a gauge.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Its value now.
    pub value: f64,
}

impl MetricSample {
    /// A figure that is a count.
    pub fn from_count(name: &'static str, help: &'static str, count: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let value = count as f64;
        Self { name, help, value }
    }

    /// Appends it in Prometheus' text format.
    fn write(&self, text: &mut String) {
        let Self { name, help, value } = self;
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
        );
    }
}

/// What can be observed. Both calls are answered from memory: who polls costs the database nothing.
pub trait ProcessStatus: Send + Sync + 'static {
    /// Why the process is not well; none when it is.
    fn unhealthy_reason(&self) -> Option<String>;

    /// Its figures now.
    fn collect_metrics(&self) -> Vec<MetricSample>;

    /// How long things took.
    fn histograms(&self) -> Vec<&Histogram> {
        Vec::new()
    }
}

/// Whether a process has passed its checks. Until then it is well, but not ready.
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

/// What the answers are made of.
#[derive(Clone)]
struct EndpointState {
    status: Arc<dyn ProcessStatus>,
    ready: ReadinessFlag,
}

impl EndpointState {
    /// Why no work is done; none when it is.
    fn unready_reason(&self) -> Option<String> {
        let starting = || "starting: the checks are not through yet".into();
        let trouble = self.status.unhealthy_reason();
        trouble.or_else(|| (!self.ready.is_set()).then(starting))
    }
}

/// Answers in the background until the process ends. The process is ready once it says so to what this
/// returns.
///
/// # Errors
/// [`PreflightError`] naming `METRICS_ADDR` when nothing can listen there.
pub async fn serve_endpoints(
    address: Option<SocketAddr>,
    observed: Arc<dyn ProcessStatus>,
) -> Result<ReadinessFlag, PreflightError> {
    let ready = ReadinessFlag::default();
    let Some(address) = address else {
        return Ok(ready);
    };
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| PreflightError::InvalidSetting {
        setting: "METRICS_ADDR",
        problem: format!("cannot listen on {address}: {error}"),
    })?;
    let router = Router::new()
        .route("/healthz", get(get_healthz))
        .route("/readyz", get(get_readyz))
        .route("/metrics", get(get_metrics))
        .with_state(EndpointState {
            status: observed,
            ready: ready.clone(),
        });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(ready)
}

async fn get_healthz(State(watched): State<EndpointState>) -> (StatusCode, String) {
    health_response(watched.status.unhealthy_reason())
}

async fn get_readyz(State(watched): State<EndpointState>) -> (StatusCode, String) {
    health_response(watched.unready_reason())
}

fn health_response(trouble: Option<String>) -> (StatusCode, String) {
    match trouble {
        None => (StatusCode::OK, "ok\n".into()),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
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
    let observed = &watched.status;
    let mut text = String::new();
    for metric in health_metrics(&watched)
        .into_iter()
        .chain(observed.collect_metrics())
    {
        metric.write(&mut text);
    }
    for histogram in observed.histograms() {
        histogram.write(&mut text);
    }
    (METRICS_HEADERS, text)
}

fn health_metrics(watched: &EndpointState) -> [MetricSample; 2] {
    let (healthy, ready) = (
        watched.status.unhealthy_reason().is_none(),
        watched.unready_reason().is_none(),
    );
    [
        MetricSample::from_count(
            "bucket_brigade_healthy",
            "1 when the process is well, 0 in an outage",
            healthy.into(),
        ),
        MetricSample::from_count(
            "bucket_brigade_ready",
            "1 when the process has passed its checks and is well, 0 otherwise",
            ready.into(),
        ),
    ]
}
