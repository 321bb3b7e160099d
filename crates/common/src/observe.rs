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
use crate::settings::Problems;

/// Where to answer.
#[derive(Debug, Args)]
#[command(next_help_heading = "Observation")]
pub struct ObserveArgs {
    /// Answer /healthz, /readyz and /metrics on this address, for example 0.0.0.0:9100 [default: off]
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDRESS:PORT")]
    pub metrics_addr: Option<String>,
}

impl ObserveArgs {
    /// Checks the setting.
    pub fn parse(self, problems: &mut Problems) -> Option<SocketAddr> {
        problems.parsed("METRICS_ADDR", self.metrics_addr, None, |text| {
            let address = text.parse().map(Some);
            address.map_err(|_| "is not an address and port, such as 0.0.0.0:9100".into())
        })
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name, with the unit in it; `_total` marks a counter, everything else is a gauge.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Its value now.
    pub value: f64,
}

impl Metric {
    /// A figure that is a count.
    pub fn count(name: &'static str, help: &'static str, count: u64) -> Self {
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
pub trait Observed: Send + Sync + 'static {
    /// Why the process is not well; none when it is.
    fn trouble(&self) -> Option<String>;

    /// Its figures now.
    fn metrics(&self) -> Vec<Metric>;

    /// How long things took.
    fn histograms(&self) -> Vec<&Histogram> {
        Vec::new()
    }
}

/// Whether a process has passed its checks. Until then it is well, but not ready.
#[derive(Debug, Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
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
struct Watched {
    observed: Arc<dyn Observed>,
    ready: Ready,
}

impl Watched {
    /// Why no work is done; none when it is.
    fn unready(&self) -> Option<String> {
        let starting = || "starting: the checks are not through yet".into();
        let trouble = self.observed.trouble();
        trouble.or_else(|| (!self.ready.is_set()).then(starting))
    }
}

/// Answers in the background until the process ends. The process is ready once it says so to what this
/// returns.
///
/// # Errors
/// [`PreflightError`] naming `METRICS_ADDR` when nothing can listen there.
pub async fn observe(
    address: Option<SocketAddr>,
    observed: Arc<dyn Observed>,
) -> Result<Ready, PreflightError> {
    let ready = Ready::default();
    let Some(address) = address else {
        return Ok(ready);
    };
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| PreflightError::Wrong {
        setting: "METRICS_ADDR",
        problem: format!("cannot listen on {address}: {error}"),
    })?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Watched {
            observed,
            ready: ready.clone(),
        });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(ready)
}

async fn healthz(State(watched): State<Watched>) -> (StatusCode, String) {
    answer(watched.observed.trouble())
}

async fn readyz(State(watched): State<Watched>) -> (StatusCode, String) {
    answer(watched.unready())
}

fn answer(trouble: Option<String>) -> (StatusCode, String) {
    match trouble {
        None => (StatusCode::OK, "ok\n".into()),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
    }
}

/// Prometheus' text format, by its own name.
const CONTENT_TYPE: [(HeaderName, &str); 1] = [(
    header::CONTENT_TYPE,
    "text/plain; version=0.0.4; charset=utf-8",
)];

async fn metrics(State(watched): State<Watched>) -> ([(HeaderName, &'static str); 1], String) {
    let observed = &watched.observed;
    let mut text = String::new();
    for metric in health(&watched).into_iter().chain(observed.metrics()) {
        metric.write(&mut text);
    }
    for histogram in observed.histograms() {
        histogram.write(&mut text);
    }
    (CONTENT_TYPE, text)
}

fn health(watched: &Watched) -> [Metric; 2] {
    let (healthy, ready) = (
        watched.observed.trouble().is_none(),
        watched.unready().is_none(),
    );
    [
        Metric::count(
            "bucket_brigade_healthy",
            "1 when the process is well, 0 in an outage",
            healthy.into(),
        ),
        Metric::count(
            "bucket_brigade_ready",
            "1 when the process has passed its checks and is well, 0 otherwise",
            ready.into(),
        ),
    ]
}
