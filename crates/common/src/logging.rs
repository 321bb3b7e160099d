//! Logs: text for people, JSON for machines, always on standard error.

use clap::Args;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::settings::SettingsProblems;
use crate::trace::{self, TraceLayer};

/// The AWS SDK and the connection pool tell their own trouble through errors already.
const DEFAULT_FILTER: &str = "info,aws=warn,sqlx=error,hyper=warn";

/// How to log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// text or json [default: text]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log: a level, or the directives of tracing's `EnvFilter` [default: info]
    #[arg(long, env = "RUST_LOG", value_name = "FILTER")]
    pub rust_log: Option<String>,
}

/// The checked settings.
#[derive(Debug)]
pub struct LogSettings {
    json: bool,
    filter: EnvFilter,
}

impl LogArgs {
    /// Checks the settings.
    pub fn parse(self, problems: &mut SettingsProblems) -> LogSettings {
        let json = problems.parse_value("LOG_FORMAT", self.log_format, false, |text| match text {
            "json" => Ok(true),
            "text" => Ok(false),
            _ => Err("is neither text nor json".into()),
        });
        let filter = problems.parse_value("RUST_LOG", self.rust_log, None, |text| {
            EnvFilter::try_new(text)
                .map(Some)
                .map_err(|error| format!("is not a log filter: {error}"))
        });
        LogSettings {
            json,
            filter: filter.unwrap_or_else(|| EnvFilter::new(DEFAULT_FILTER)),
        }
    }
}

/// The AWS SDK traces whole answers, and one about a wrong signature quotes the session token. What may
/// be logged at all ends before that, whatever the filter asks for. Spans for the collector are not for the log.
fn is_loggable(metadata: &Metadata<'_>) -> bool {
    let is_safe = *metadata.level() < Level::TRACE || !metadata.target().starts_with("aws_");
    is_safe && metadata.target() != trace::TARGET
}

/// Starts logging, once per process, and the export of traces where there is one.
pub fn init_logging(settings: LogSettings, writer: BoxMakeWriter, traces: Option<TraceLayer>) {
    let is_traced = traces.is_some();
    // A second call, as tests make, keeps the first subscriber.
    drop(build_subscriber(settings, writer, traces).try_init());
    if is_traced {
        tracing::info!("traces are exported, as OTEL_EXPORTER_OTLP_ENDPOINT asks for");
    }
}

fn build_subscriber(
    settings: LogSettings,
    writer: BoxMakeWriter,
    traces: Option<TraceLayer>,
) -> impl Subscriber + Send + Sync {
    let layer = tracing_subscriber::fmt::layer()
        // A panic where standard error is closed: a log that is not read any more ends no work.
        .log_internal_errors(false)
        .with_writer(writer);
    let loggable = filter_fn(is_loggable).with_max_level_hint(LevelFilter::TRACE);
    let filter = settings.filter.and(loggable);
    let logs = if settings.json {
        layer.json().flatten_event(true).with_filter(filter).boxed()
    } else {
        let color = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let layer = layer.with_target(false).with_ansi(color);
        layer.with_filter(filter).boxed()
    };
    // Not as an Option: beside a layer that has a filter of its own, a missing one would make the registry
    // ask about each disabled event and span again.
    let mut layers: Vec<TraceLayer> = vec![logs];
    layers.extend(traces);
    tracing_subscriber::registry().with(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber(filter: &str) -> impl Subscriber {
        let settings = LogSettings {
            json: false,
            filter: EnvFilter::new(filter),
        };
        build_subscriber(settings, BoxMakeWriter::new(std::io::sink), None)
    }

    /// A span that is not made costs one look at its callsite only if the subscriber never wants it.
    #[test]
    fn without_an_exporter_no_filter_of_the_log_makes_trace_spans() {
        let span = tracing::info_span!(target: trace::TARGET, "move");
        let debug = tracing::debug_span!("other");
        for filter in [DEFAULT_FILTER, "trace", "bucket_brigade=trace"] {
            let subscriber = subscriber(filter);
            let interest = subscriber.register_callsite(span.metadata().unwrap());
            assert!(interest.is_never(), "{filter}: {interest:?}");
        }
        let interest = subscriber(DEFAULT_FILTER).register_callsite(debug.metadata().unwrap());
        assert!(interest.is_never());
        let interest = subscriber("trace").register_callsite(debug.metadata().unwrap());
        assert!(interest.is_always());
        let hint = subscriber(DEFAULT_FILTER).max_level_hint();
        assert_eq!(hint, Some(LevelFilter::INFO));
    }
}
