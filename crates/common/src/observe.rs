//! What the outside can ask a process over HTTP: whether it is well (`/healthz`), and its figures in
//! Prometheus' text format (`/metrics`). Off unless `METRICS_ADDR` is set.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Args;
use tokio::net::TcpListener;

use crate::preflight::PreflightError;
use crate::settings::Problems;

/// Where to answer.
#[derive(Debug, Args)]
#[command(next_help_heading = "Observation")]
pub struct ObserveArgs {
    /// Answer /healthz and /metrics on this address, for example 0.0.0.0:9100 [default: off]
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
}

/// What can be observed. Both calls are answered from memory: who polls costs the database nothing.
pub trait Observed: Send + Sync + 'static {
    /// Why the process is not well; none when it is.
    fn trouble(&self) -> Option<String>;

    /// Its figures now.
    fn metrics(&self) -> Vec<Metric>;
}

/// Answers in the background until the process ends.
///
/// # Errors
/// [`PreflightError`] naming `METRICS_ADDR` when nothing can listen there.
pub async fn observe(
    address: Option<SocketAddr>,
    observed: Arc<dyn Observed>,
) -> Result<(), PreflightError> {
    let Some(address) = address else {
        return Ok(());
    };
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| PreflightError::Wrong {
        setting: "METRICS_ADDR",
        problem: format!("cannot listen on {address}: {error}"),
    })?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(observed);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}

async fn healthz(State(observed): State<Arc<dyn Observed>>) -> (StatusCode, String) {
    match observed.trouble() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
    }
}

async fn metrics(State(observed): State<Arc<dyn Observed>>) -> String {
    let up = f64::from(u8::from(observed.trouble().is_none()));
    let health = Metric {
        name: "bucket_brigade_healthy",
        help: "1 when the process is well, 0 in an outage",
        value: up,
    };
    let mut text = String::new();
    for Metric { name, help, value } in std::iter::once(health).chain(observed.metrics()) {
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
    text
}
