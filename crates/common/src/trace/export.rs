//! From settings to spans on their way to a collector. Spans wait in a queue of bounded length, from
//! which a thread of the SDK takes them in batches: what comes while it is full is dropped, and the work
//! never waits for the collector.

use std::time::{Duration, Instant};

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::WithHttpConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use parking_lot::Mutex;
use reqwest::blocking::Client;
use reqwest::redirect::Policy;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::{Layer, Registry};

use super::settings::ExportSettings;
use super::{TARGET, TraceSettings};
use crate::aws::error_chain;
use crate::preflight::PreflightError;

/// How long the last spans may take to leave at the end of a process.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a repeated failure to export is not logged again.
const WARNING_INTERVAL: Duration = Duration::from_mins(5);

/// What turns `tracing` spans into OpenTelemetry's.
pub type TraceLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The process's traces; nothing when they are off.
#[derive(Debug)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Starts exporting if the settings say so. `service` and `instance` name the process unless the
    /// operator does.
    pub fn start(
        settings: &TraceSettings,
        service: &'static str,
        instance: &str,
    ) -> Result<Self, PreflightError> {
        let Some(export) = &settings.export else {
            return Ok(Self(None));
        };
        let exporter = build_exporter(export)
            .map_err(|problem| PreflightError::invalid("OTEL_EXPORTER_OTLP_*", problem))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(build_resource(service, instance))
            .build();
        Ok(Self(Some(provider)))
    }

    /// The layer that exports spans; none while traces are off, so that nothing asks for spans.
    pub fn layer(&self) -> Option<TraceLayer> {
        let tracer = self.0.as_ref()?.tracer("bucket-brigade");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_level(false)
            .with_target(false)
            .with_context_activation(false);
        let ours = Targets::new().with_target(TARGET, LevelFilter::INFO);
        Some(layer.with_filter(ours).boxed())
    }

    /// What the last spans are given of the time from the stop to the end.
    pub fn flush_budget(&self, grace: Duration) -> Duration {
        let budget = FLUSH_TIMEOUT.min(grace / 4);
        self.0.as_ref().map_or(Duration::ZERO, |_| budget)
    }

    /// Sends what is left, within `budget`.
    pub async fn shut_down(self, budget: Duration) {
        let Some(provider) = self.0 else {
            return;
        };
        // The call blocks until the SDK's thread has sent the last spans.
        let flush = spawn_blocking(move || provider.shutdown_with_timeout(budget));
        if !matches!(timeout(budget, flush).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the last traces could not be exported within {budget:?}");
        }
    }
}

fn build_exporter(export: &ExportSettings) -> Result<LoggedExporter, String> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(build_client(export)?)
        .build()
        .map_err(|error| error_chain(&error))?;
    Ok(LoggedExporter {
        exporter,
        log: Mutex::default(),
    })
}

/// Without redirects: the headers may hold credentials.
fn build_client(export: &ExportSettings) -> Result<Client, String> {
    let mut builder = Client::builder()
        .timeout(export.timeout)
        .redirect(Policy::none());
    if let Some(authorities) = export.authorities.clone() {
        builder = builder.tls_certs_only(authorities);
    }
    // A blocking client cannot be built on a thread of the async runtime.
    let building = std::thread::spawn(move || builder.build());
    let built = building
        .join()
        .map_err(|_| "no HTTP client could be built")?;
    built.map_err(|error| error_chain(&error))
}

/// Who the spans are from: what the operator says in `OTEL_SERVICE_NAME` and
/// `OTEL_RESOURCE_ATTRIBUTES`, and ours where nothing is said.
fn build_resource(service: &'static str, instance: &str) -> Resource {
    let detected = Resource::builder().build();
    let is_unset = |key: &'static str| {
        let value = detected.get(&Key::from_static_str(key));
        value.is_none_or(|value| value.as_str().starts_with("unknown_service"))
    };
    let defaults = [
        ("service.name", service),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
    ];
    let unset = defaults.into_iter().filter(|(key, _)| is_unset(key));
    Resource::builder()
        .with_attributes(unset.map(|(key, value)| KeyValue::new(key, value.to_owned())))
        .build()
}

/// OTLP's exporter, and a line in the log when the collector fails and when it is back: the SDK itself logs
/// each batch.
#[derive(Debug)]
struct LoggedExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    log: Mutex<ExportLog>,
}

impl SpanExporter for LoggedExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let mut log = self.log.lock();
        let is_news = log.note(result.is_err(), Instant::now());
        drop(log);
        match &result {
            Err(error) if is_news => tracing::warn!(
                %error,
                "traces cannot be exported, and the work goes on without them: {error}"
            ),
            Ok(()) if is_news => tracing::info!("traces are exported again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[derive(Debug, Default)]
struct ExportLog {
    is_failing: bool,
    logged_at: Option<Instant>,
}

impl ExportLog {
    /// Whether a result is to be logged. A collector that comes and goes is logged once in a while.
    fn note(&mut self, is_failing: bool, now: Instant) -> bool {
        let is_recent = |at| now - at < WARNING_INTERVAL;
        if is_failing == self.is_failing || (is_failing && self.logged_at.is_some_and(is_recent)) {
            return false;
        }
        *self = Self {
            is_failing,
            logged_at: Some(now),
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_comes_and_goes_is_logged_once_in_a_while() {
        let mut log = ExportLog::default();
        let began = Instant::now();
        let mut note =
            |is_failing, seconds| log.note(is_failing, began + Duration::from_secs(seconds));
        assert!(!note(false, 0));
        assert!(note(true, 5));
        assert!(!note(true, 10));
        assert!(!note(true, 1000));
        assert!(note(false, 1005));
        for second in (1010..1300).step_by(5) {
            assert!(!note(second % 10 == 0, second));
        }
        assert!(note(true, 1310));
    }
}
