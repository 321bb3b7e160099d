//! The settings that say which migration this is. Feeder and consumer must agree on them.

use clap::Args;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::problems::{SettingsProblems, parse_bool};
use super::secret::SecretString;
use crate::ledger::{RunSpec, TableSpec};
use crate::path_rule::PathRule;
use crate::sql::TableName;

/// The settings as text, from flags or the environment.
#[derive(Debug, Args)]
#[command(next_help_heading = "The migration (the same for feeder and consumer)")]
pub struct MigrationArgs {
    /// Postgres, with user, password and sslmode in the URL. Without it libpq's own variables are read:
    /// PGHOST, PGUSER, PGPASSWORD, PGDATABASE, PGSSLMODE, …
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<SecretString>,
    /// The table whose rows name the images: table or schema.table
    #[arg(long, env = "IMAGES_TABLE", value_name = "TABLE")]
    pub images_table: Option<String>,
    /// Its primary key or another unique column (bigint, integer, smallint, uuid, text) [default: id]
    #[arg(long, env = "ID_COLUMN", value_name = "COLUMN")]
    pub id_column: Option<String>,
    /// The column that holds the image's path [default: path]
    #[arg(long, env = "PATH_COLUMN", value_name = "COLUMN")]
    pub path_column: Option<String>,
    /// The SQS standard queue between feeder and consumers
    #[arg(long, env = "QUEUE_URL", hide_env_values = true, value_name = "URL")]
    pub queue_url: Option<String>,
    /// The bucket the images are in
    #[arg(long, env = "SOURCE_BUCKET_NAME", value_name = "BUCKET")]
    pub source_bucket_name: Option<String>,
    /// The bucket they go to
    #[arg(long, env = "DESTINATION_BUCKET_NAME", value_name = "BUCKET")]
    pub destination_bucket_name: Option<String>,
    /// What paths still to move start with, for example image/
    #[arg(long, env = "OLD_PREFIX", value_name = "PREFIX")]
    pub old_prefix: Option<String>,
    /// What replaces it when the image has moved, for example avatar/
    #[arg(long, env = "NEW_PREFIX", value_name = "PREFIX")]
    pub new_prefix: Option<String>,
    /// What keys in the source bucket start with in its place [default: OLD_PREFIX]
    #[arg(long, env = "SOURCE_KEY_PREFIX", value_name = "PREFIX")]
    pub source_key_prefix: Option<String>,
    /// What keys in the destination bucket start with in its place [default: NEW_PREFIX]
    #[arg(long, env = "DESTINATION_KEY_PREFIX", value_name = "PREFIX")]
    pub destination_key_prefix: Option<String>,
    /// Address buckets as a path (local stand-ins and some S3-compatible stores) [default: false]
    #[arg(long, env = "S3_FORCE_PATH_STYLE", value_name = "BOOL")]
    pub s3_force_path_style: Option<String>,
}

/// The settings, checked.
#[derive(Clone)]
pub struct MigrationSettings {
    /// How to reach the database. Holds the password: never printed.
    pub database: PgConnectOptions,
    /// Which migration this is.
    pub run: RunSpec,
    /// The queue.
    pub queue_url: String,
    /// Whether buckets are addressed as a path.
    pub force_path_style: bool,
}

impl MigrationArgs {
    /// Checks the settings; none when something was wrong, which `problems` then tells.
    pub fn parse(self, problems: &mut SettingsProblems) -> Option<MigrationSettings> {
        let database = parse_database(self.database_url.as_ref(), problems);
        let queue_url = parse_queue_url(self.queue_url, problems);
        let table = parse_table(
            self.images_table,
            self.id_column,
            self.path_column,
            problems,
        );
        let source_bucket = parse_bucket("SOURCE_BUCKET_NAME", self.source_bucket_name, problems);
        let destination_bucket = parse_bucket(
            "DESTINATION_BUCKET_NAME",
            self.destination_bucket_name,
            problems,
        );
        let prefixes = [
            self.old_prefix,
            self.new_prefix,
            self.source_key_prefix,
            self.destination_key_prefix,
        ];
        let rule = parse_path_rule(prefixes, problems);
        let force_path_style = problems.parse_value(
            "S3_FORCE_PATH_STYLE",
            self.s3_force_path_style,
            false,
            parse_bool,
        );
        let run = RunSpec {
            table: table?,
            rule: rule?,
            source_bucket,
            destination_bucket,
        };
        check_locations_differ(&run, problems);
        Some(MigrationSettings {
            database: database?,
            run,
            queue_url,
            force_path_style,
        })
    }
}

/// libpq's variables are read by sqlx itself; at least a host must be named, so that nobody migrates
/// whatever happens to listen on localhost.
fn parse_database(
    url: Option<&SecretString>,
    problems: &mut SettingsProblems,
) -> Option<PgConnectOptions> {
    check_ssl_mode(problems);
    let options = match url
        .map(SecretString::expose_secret)
        .filter(|url| !url.trim().is_empty())
    {
        Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            url.parse().map_err(|error| describe_url_error(&error))
        }
        Some(_) => Err("is not a postgres:// URL".to_owned()),
        None if std::env::var_os("PGHOST").is_some() => Ok(PgConnectOptions::new()),
        None => Err("is missing (or PGHOST and libpq's other variables)".to_owned()),
    };
    let noted = options.map_err(|problem| problems.add("DATABASE_URL", problem));
    noted
        .ok()
        .map(|options: PgConnectOptions| options.application_name("bucket-brigade"))
}

const SSL_MODE_PROBLEM: &str = "is none of disable, allow, prefer, require, verify-ca, verify-full";

/// sqlx takes a mode it cannot read for `prefer`, which needs no TLS at all.
fn check_ssl_mode(problems: &mut SettingsProblems) {
    let mode = std::env::var("PGSSLMODE").ok();
    problems.parse_value("PGSSLMODE", mode, PgSslMode::default(), |text| {
        text.parse().map_err(|_| SSL_MODE_PROBLEM.to_owned())
    });
}

/// Why the URL cannot be read, in words that hold nothing of it: a password that is not
/// percent-encoded ends up in any of its parts.
fn describe_url_error(error: &sqlx::Error) -> String {
    let reason = match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        _ => "error".to_owned(),
    };
    if reason.contains("ssl_mode") {
        return format!("its sslmode {SSL_MODE_PROBLEM}");
    }
    format!("cannot be read: {reason} (percent-encode what is special in the password)")
}

fn parse_table(
    table: Option<String>,
    id_column: Option<String>,
    path_column: Option<String>,
    problems: &mut SettingsProblems,
) -> Option<TableSpec> {
    let text = problems.require_value("IMAGES_TABLE", table);
    let column = |name: &str| Ok(name.to_owned());
    let id_column = problems.parse_value("ID_COLUMN", id_column, "id".into(), column);
    let path_column = problems.parse_value("PATH_COLUMN", path_column, "path".into(), column);
    if id_column == path_column {
        problems.add("PATH_COLUMN", format!("'{path_column}' is ID_COLUMN too"));
    }
    if text.is_empty() {
        return None;
    }
    let table = TableName::parse(&text).map_err(|bad| problems.add("IMAGES_TABLE", bad));
    Some(TableSpec {
        table: table.ok()?,
        id_column,
        path_column,
    })
}

/// The URL is written to logs and errors: one that may hold credentials is refused, and not repeated.
fn parse_queue_url(url: Option<String>, problems: &mut SettingsProblems) -> String {
    let url = problems.require_value("QUEUE_URL", url);
    let is_http = url.starts_with("https://") || url.starts_with("http://");
    let problem = if url.is_empty() {
        return url;
    } else if !is_http {
        "is not the URL of a queue (https://sqs.REGION.amazonaws.com/ACCOUNT/NAME)"
    } else if url.contains(['@', '?', '#']) {
        "holds a user, a query or a fragment; the URL of a queue has none, and credentials belong elsewhere"
    } else if url.to_ascii_lowercase().ends_with(".fifo") {
        "is a FIFO queue; a standard queue is needed: order does not matter here, and a FIFO queue would hold back a message group while one of its messages is retried"
    } else {
        return url;
    };
    problems.add("QUEUE_URL", problem);
    url
}

fn parse_bucket(name: &str, value: Option<String>, problems: &mut SettingsProblems) -> String {
    let bucket = problems.require_value(name, value);
    if bucket.contains('/') || bucket.contains(char::is_whitespace) {
        problems.add(
            name,
            format!("'{bucket}' is not a bucket name (write it without s3:// and without a key)"),
        );
    }
    bucket
}

/// In the order old, new, source key, destination key. An empty prefix is a setting like any other
/// here: whole URLs map to bare keys.
fn parse_path_rule(
    prefixes: [Option<String>; 4],
    problems: &mut SettingsProblems,
) -> Option<PathRule> {
    let [old, new, source_key, destination_key] = prefixes;
    for (name, value) in [("OLD_PREFIX", &old), ("NEW_PREFIX", &new)] {
        if value.is_none() {
            problems.add(name, "is missing");
        }
    }
    PathRule::new(old?, new?, source_key, destination_key)
        .map_err(|refused| problems.add("OLD_PREFIX, NEW_PREFIX", refused))
        .ok()
}

fn check_locations_differ(run: &RunSpec, problems: &mut SettingsProblems) {
    let same_prefix = run.rule.source_key_prefix() == run.rule.destination_key_prefix();
    if same_prefix && run.source_bucket == run.destination_bucket && !run.source_bucket.is_empty() {
        problems.add(
            "DESTINATION_BUCKET_NAME",
            format!(
                "source and destination are identical (bucket '{}', key prefix '{}')",
                run.source_bucket,
                run.rule.source_key_prefix()
            ),
        );
    }
}
