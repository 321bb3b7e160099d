//! Logs: text for people, JSON for machines, always on standard error.

use clap::Args;
use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::set_global_default;
use tracing::{Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::printable::takes_escapes;
use crate::settings::{Setting, SettingsProblems, choice, setting};
use crate::trace::{self, TraceLayer};

/// The AWS SDK and the connection pool report their failures through errors already.
const DEFAULT_FILTER: &str = "info,aws=warn,aws_config=error,sqlx=error,hyper=warn";

#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// text or json
    #[arg(long, env, value_name = "FORMAT", default_value = "text", value_parser = setting(choice(&[("text", false), ("json", true)])))]
    log_format: Setting<bool>,
    /// What to log: a level, or the directives of tracing's `EnvFilter`
    #[arg(long, env, value_name = "FILTER", default_value = DEFAULT_FILTER, value_parser = setting(parse_filter))]
    rust_log: Setting<String>,
}

#[derive(Debug)]
pub struct LogSettings {
    json: bool,
    filter: String,
}

impl LogArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> LogSettings {
        LogSettings {
            json: self.log_format.take(problems),
            filter: self.rust_log.take(problems),
        }
    }
}

/// What targets that log anything start with: our crates, and the libraries'.
const KNOWN_TARGETS: [&str; 6] = ["bucket_brigade", "aws", "sqlx", "hyper", "h2", "rustls"];

fn parse_filter(text: &str) -> Result<String, String> {
    // A misspelt level would be a target, and the only one that is logged.
    let is_known = |word: &str| {
        let is_target = KNOWN_TARGETS.iter().any(|known| word.starts_with(known));
        let is_level = word.is_empty() || word.parse::<LevelFilter>().is_ok();
        is_level || is_target || word.contains(['=', '['])
    };
    if let Some(word) = text.split(',').map(str::trim).find(|word| !is_known(word)) {
        return Err(format!(
            "'{word}' is no level (error, warn, info, debug, trace, off); of another crate: {word}=info"
        ));
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("is not a log filter: {error}")),
    }
}

/// The AWS SDK traces whole responses, and one about a wrong signature quotes the session token. What may
/// be logged at all ends before that, whatever the filter asks for. Spans for the collector are not for the log.
fn is_loggable(metadata: &Metadata<'_>) -> bool {
    let is_safe = *metadata.level() < Level::TRACE || !metadata.target().starts_with("aws_");
    is_safe && metadata.target() != trace::TARGET
}

/// Lines that wait for a reader of standard error. What comes after them is dropped: a log that nobody reads stops no work.
const MAX_WAITING_LINES: usize = 10_000;

/// Writes what waits when it is dropped.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Standard error, written by a thread of its own.
pub fn stderr_writer() -> BoxMakeWriter {
    let builder = NonBlockingBuilder::default()
        .thread_name("log")
        .buffered_lines_limit(MAX_WAITING_LINES);
    let (writer, guard) = builder.finish(std::io::stderr());
    *WRITER.lock() = Some(guard);
    BoxMakeWriter::new(writer)
}

/// Writes what was logged so far, for a second at most, and logs nothing any more.
pub(crate) fn end_logging() {
    let guard = WRITER.lock().take();
    drop(guard);
}

/// Starts logging, once per process, and the export of traces where there is one.
pub fn init_logging(settings: LogSettings, writer: BoxMakeWriter, traces: Option<TraceLayer>) {
    let is_traced = traces.is_some();
    // Without a bridge for the `log` crate, as `try_init` would set one up: sqlx asks it after each statement
    // whether it is enabled, and a question without an event makes a layer's filter drop the next event.
    // A second call, as tests make, keeps the first subscriber.
    drop(set_global_default(build_subscriber(
        settings, writer, traces,
    )));
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
    let filter = EnvFilter::new(settings.filter).and(loggable);
    let logs = if settings.json {
        layer.json().flatten_event(true).with_filter(filter).boxed()
    } else {
        let color = takes_escapes(&std::io::stderr());
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
            filter: filter.to_owned(),
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

    #[test]
    fn a_misspelt_level_is_no_target() {
        for bad in ["inof", "warn,inof", "inof,aws=warn"] {
            let problem = parse_filter(bad).unwrap_err();
            assert!(problem.starts_with("'inof' is no level"), "{problem}");
        }
        for good in [
            DEFAULT_FILTER,
            "INFO",
            "off",
            "0",
            "bucket_brigade_consumer",
            "sqlx::query, warn",
            "inof=info",
            "[move{run}]=debug",
        ] {
            assert_eq!(parse_filter(good).as_deref(), Ok(good));
        }
    }
}
