//! Logs: text for people, JSON for machines, always on standard error.

use clap::Args;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::SettingsProblems;

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
/// be logged at all ends before that, whatever the filter asks for.
fn is_safe_to_log(metadata: &Metadata<'_>) -> bool {
    *metadata.level() < Level::TRACE || !metadata.target().starts_with("aws_")
}

/// Starts logging, once per process.
pub fn init_logging(settings: LogSettings, writer: BoxMakeWriter) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(settings.filter)
        // Told on standard error, and a panic where that is closed: a log that nobody reads any more ends no work.
        .log_internal_errors(false)
        .with_writer(writer);
    // A second call, as tests make, keeps the first subscriber.
    let started = if settings.json {
        let builder = builder.json().flatten_event(true);
        builder.finish().with(filter_fn(is_safe_to_log)).try_init()
    } else {
        let color = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let builder = builder.with_target(false).with_ansi(color);
        builder.finish().with(filter_fn(is_safe_to_log)).try_init()
    };
    drop(started);
}
