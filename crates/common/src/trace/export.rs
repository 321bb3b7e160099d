//! From settings to spans on their way to a collector. Spans wait in a queue of bounded length, from
//! which a thread of the SDK's takes them in batches: what comes while it is full is dropped, and nobody
//! ever waits for the collector.

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::collector::Collector;
use super::settings::Export;
use super::{TraceSettings, Tracer};
use crate::preflight::PreflightError;

/// How long the last spans may take to leave at the end of a process.
pub const FLUSH: Duration = Duration::from_secs(1);

/// The process's traces; nothing when they are off.
#[derive(Debug)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Starts exporting, on the current runtime, if the settings say so. `service` and `instance` name the
    /// process unless the operator does.
    ///
    /// # Errors
    /// [`PreflightError::Wrong`] when the SDK refuses a variable.
    pub fn start(
        settings: &TraceSettings,
        service: &'static str,
        instance: &str,
    ) -> Result<Self, PreflightError> {
        let Some(export) = &settings.export else {
            return Ok(Self(None));
        };
        let exporter = exporter(export).map_err(|problem| PreflightError::InvalidSetting {
            setting: "OTEL_EXPORTER_OTLP_*",
            problem,
        })?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(service, instance))
            .build();
        tracing::info!("traces are exported, as OTEL_EXPORTER_OTLP_ENDPOINT asks for");
        Ok(Self(Some(provider)))
    }

    /// Begins traces; none when they are off.
    pub fn tracer(&self) -> Option<Tracer> {
        let provider = self.0.as_ref()?;
        Some(Tracer::new(provider.tracer("bucket-brigade")))
    }

    /// What the last spans are given of the time from the stop to the end.
    pub fn share_of(&self, grace: Duration) -> Duration {
        let share = FLUSH.min(grace / 4);
        self.0.as_ref().map_or(Duration::ZERO, |_| share)
    }

    /// Sends what is left, for as long as `budget` at the most.
    pub async fn end(self, budget: Duration) {
        let Some(provider) = self.0 else {
            return;
        };
        // The call waits for its thread, and that thread for requests on this runtime.
        let flush = spawn_blocking(move || provider.shutdown_with_timeout(budget));
        if !matches!(timeout(budget, flush).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the last traces could not be exported within {budget:?}");
        }
    }
}

fn exporter(export: &Export) -> Result<SpanExporter, String> {
    let collector = Collector::new(export).map_err(|error| error.to_string())?;
    SpanExporter::builder()
        .with_http()
        .with_http_client(collector)
        .build()
        .map_err(|error| error.to_string())
}

/// Who the spans are from: what the operator says in `OTEL_SERVICE_NAME` and
/// `OTEL_RESOURCE_ATTRIBUTES`, and ours where nothing is said.
fn resource(service: &'static str, instance: &str) -> Resource {
    let said = Resource::builder().build();
    let is_unsaid = |key: &'static str| {
        let value = said.get(&Key::from_static_str(key));
        value.is_none_or(|value| value.as_str().starts_with("unknown_service"))
    };
    let ours = [
        ("service.name", service),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
    ];
    let unsaid = ours.into_iter().filter(|(key, _)| is_unsaid(key));
    Resource::builder()
        .with_attributes(unsaid.map(|(key, value)| KeyValue::new(key, value.to_owned())))
        .build()
}
