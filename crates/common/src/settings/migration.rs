//! The settings that name the migration: the feeder writes them into the ledger, where consumers and commands
//! find them. What these are given all the same must agree with it.

use clap::Args;

use super::{
    LoginArgs, ObjectArgs, Setting, SettingsProblems, StoreArgs, StoreSettings, optional, required,
    secret_setting, setting,
};
use crate::companions::CompanionPatterns;
use crate::database::DatabaseLogin;
use crate::ledger::{
    LedgerError, RunOptions, RunSelection, RunSpec, TABLE_NAME_PROBLEM, TableSpec,
};
use crate::path_encoding::PathEncoding;
use crate::path_rule::PathRule;

#[derive(Debug, Args)]
#[command(next_help_heading = "The migration (consumers and commands find it in the ledger)")]
pub struct MigrationArgs {
    #[command(flatten)]
    login: LoginArgs,
    /// The run's name [default: TABLE.COLUMN]. With it, or its number, alone a command finds the run in the
    /// ledger, and a consumer serves it alone; without it a consumer serves all runs of its queue
    #[arg(long = "run", env = "RUN_NAME", value_name = "NAME", default_value = "", hide_default_value = true, value_parser = setting(parse_run_name))]
    run_name: Setting<Option<String>>,
    /// The table whose rows name the images: table or schema.table
    #[arg(long, env, value_name = "TABLE", default_value = "", hide_default_value = true, value_parser = setting(parse_table))]
    images_table: Setting<Option<String>>,
    /// Its primary key or another unique column (bigint, integer, smallint, uuid, text, character), or the
    /// columns of a composite key with commas between them, which may also be a date or timestamp
    #[arg(long, env, value_name = "COLUMN", default_value = "id", value_parser = setting(required))]
    id_column: Setting<String>,
    /// The column that holds the image's path
    #[arg(long, env, value_name = "COLUMN", default_value = "path", value_parser = setting(required))]
    path_column: Setting<String>,
    /// Which of the rows with OLD_PREFIX are to move: an SQL expression over the row's columns, for example
    /// deleted_at IS NULL
    #[arg(long, env, value_name = "SQL", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    row_filter: Setting<Option<String>>,
    /// The SQS standard queue between feeder and consumers
    #[arg(long, env, hide_env_values = true, value_name = "URL", default_value = "", hide_default_value = true, value_parser = secret_setting(parse_queue_url))]
    queue_url: Setting<Option<String>>,
    /// The bucket the images are in
    #[arg(long, env, value_name = "BUCKET", default_value = "", hide_default_value = true, value_parser = setting(parse_bucket))]
    source_bucket_name: Setting<Option<String>>,
    /// The bucket they go to
    #[arg(long, env, value_name = "BUCKET", default_value = "", hide_default_value = true, value_parser = setting(parse_bucket))]
    destination_bucket_name: Setting<Option<String>>,
    /// What paths still to move start with, for example image/
    #[arg(long, env, value_name = "PREFIX")]
    old_prefix: Option<String>,
    /// What replaces it when the image has moved, for example avatar/
    #[arg(long, env, value_name = "PREFIX")]
    new_prefix: Option<String>,
    /// What keys in the source bucket start with in its place [default: OLD_PREFIX]
    #[arg(long, env, value_name = "PREFIX")]
    source_key_prefix: Option<String>,
    /// What keys in the destination bucket start with in its place [default: NEW_PREFIX]
    #[arg(long, env, value_name = "PREFIX")]
    destination_key_prefix: Option<String>,
    /// How paths spell keys after the prefix: none (letter by letter), url (percent-encoded; query and fragment
    /// are not part of the key) or form (the same, and a plus is a space) [default: none]
    #[arg(long, env, value_name = "none|url|form", default_value = "", hide_default_value = true, value_parser = setting(parse_path_encoding))]
    path_encoding: Setting<Option<PathEncoding>>,
    /// Objects that belong to an image and that no row names, as patterns with commas between them; one with a !
    /// before it must exist. {key} {dir} {name} {stem} {ext} are parts of the image's key after its prefix: for
    /// example '{key}.200x200.jpg,{dir}/thumb_{name},!{stem}@2x.{ext}'. Each is a request more for each image
    #[arg(long, env, value_name = "PATTERNS", default_value = "", hide_default_value = true, value_parser = setting(parse_companions))]
    companions: Setting<Option<String>>,
    #[command(flatten)]
    objects: ObjectArgs,
    #[command(flatten)]
    stores: StoreArgs,
}

/// Which migration this is. A consumer or a command may find the run in the ledger first.
#[derive(Clone)]
pub struct MigrationSettings<R = RunSpec> {
    pub database: DatabaseLogin,
    pub run: R,
    /// Empty for a command that was given none.
    pub queue_url: String,
    pub stores: StoreSettings,
    /// Of the run, as far as they are given.
    given: RunOptions,
}

struct RunArgs {
    name: Option<String>,
    table: Option<String>,
    id_column: String,
    path_column: String,
    buckets: [Option<String>; 2],
    /// Old, new, and those of the keys.
    prefixes: [Option<String>; 4],
    options: RunOptions,
}

impl MigrationSettings<RunSelection> {
    /// # Errors
    /// [`LedgerError::RunDiffers`] where an option is given that is not the run's.
    pub fn ensure_given(&self, run: &RunSpec) -> Result<(), LedgerError> {
        run.options.ensure_given(&self.given, run.name.as_deref())
    }

    /// # Errors
    /// As for [`ensure_given`](Self::ensure_given).
    pub fn with_run(self, run: RunSpec) -> Result<MigrationSettings, LedgerError> {
        self.ensure_given(&run)?;
        Ok(MigrationSettings {
            database: self.database,
            run,
            queue_url: self.queue_url,
            stores: self.stores,
            given: self.given,
        })
    }
}

impl MigrationArgs {
    /// For the feeder, which opens the run: all is needed. None when something was wrong, which `problems`
    /// then holds.
    pub fn parse(self, problems: &mut SettingsProblems) -> Option<MigrationSettings> {
        self.parse_with(problems, true, RunArgs::parse)
    }

    /// For a consumer or a command: without the settings of a run, it is found in the ledger. Most commands need no
    /// queue.
    pub fn parse_selection(
        self,
        needs_queue: bool,
        problems: &mut SettingsProblems,
    ) -> Option<MigrationSettings<RunSelection>> {
        self.parse_with(problems, needs_queue, RunArgs::select)
    }

    fn parse_with<R>(
        self,
        problems: &mut SettingsProblems,
        needs_queue: bool,
        parse_run: impl FnOnce(RunArgs, &mut SettingsProblems) -> Option<R>,
    ) -> Option<MigrationSettings<R>> {
        let database = self.login.parse(problems);
        let mut queue_url = self.queue_url.take(problems);
        if needs_queue {
            queue_url = problems.require("QUEUE_URL", queue_url);
        }
        let mut run = RunArgs {
            name: self.run_name.take(problems),
            table: self.images_table.take(problems),
            id_column: self.id_column.take(problems),
            path_column: self.path_column.take(problems),
            buckets: [
                self.source_bucket_name.take(problems),
                self.destination_bucket_name.take(problems),
            ],
            prefixes: [
                self.old_prefix,
                self.new_prefix,
                self.source_key_prefix,
                self.destination_key_prefix,
            ],
            options: RunOptions {
                companions: self.companions.take(problems),
                path_encoding: self.path_encoding.take(problems),
                row_filter: self.row_filter.take(problems),
                ..self.objects.parse(problems)
            },
        };
        let (given, stores) = (run.options.clone(), self.stores.parse(problems));
        if given.copy_method.as_deref() == Some("server") && !stores.is_one_store() {
            problems.add(
                "COPY_METHOD",
                "server needs both buckets in one store, with the same endpoint and profile",
            );
        }
        run.options.two_stores = stores.has_two_endpoints().then_some(true);
        let run = parse_run(run, problems);
        Some(MigrationSettings {
            database: database?,
            run: run?,
            queue_url: queue_url.unwrap_or_default(),
            stores,
            given,
        })
    }
}

impl RunArgs {
    /// The settings, or none of them: then the ledger's.
    fn select(self, problems: &mut SettingsProblems) -> Option<RunSelection> {
        let given = [&self.table].into_iter().chain(&self.buckets);
        let is_unset = |value: &Option<String>| value.as_deref().unwrap_or_default().is_empty();
        if given.chain(&self.prefixes).all(is_unset) {
            return Some(RunSelection::Ledger(self.name));
        }
        let spec = self.parse(problems)?;
        Some(RunSelection::Settings(Box::new(spec)))
    }

    fn parse(self, problems: &mut SettingsProblems) -> Option<RunSpec> {
        let [source, destination] = self.buckets;
        let mut require = |name, value| problems.require(name, value).unwrap_or_default();
        let table = TableSpec {
            table: require("IMAGES_TABLE", self.table),
            id_column: self.id_column,
            path_column: self.path_column,
        };
        let source_bucket = require("SOURCE_BUCKET_NAME", source);
        let destination_bucket = require("DESTINATION_BUCKET_NAME", destination);
        if table.id_column == table.path_column {
            let problem = format!("'{}' is ID_COLUMN too", table.path_column);
            problems.add("PATH_COLUMN", problem);
        }
        let rule = parse_path_rule(self.prefixes, problems)?;
        let run = RunSpec {
            name: self.name,
            table,
            // The patterns were checked when they were read.
            rule: self.options.complete_rule(rule).ok()?,
            source_bucket,
            destination_bucket,
            options: self.options,
        };
        check_locations_differ(&run, problems);
        Some(run)
    }
}

/// What is quoted only the database can read.
fn parse_table(text: &str) -> Result<Option<String>, String> {
    let mut parts = text.split('.');
    let is_plain = parts.clone().count() <= 2 && parts.all(|part| !part.is_empty());
    if text.is_empty() || is_plain || text.contains('"') {
        optional(text)
    } else {
        Err(TABLE_NAME_PROBLEM.into())
    }
}

/// The URL is written to logs and errors: one that may hold credentials is refused, and not repeated.
fn parse_queue_url(text: &str) -> Result<Option<String>, String> {
    let Some(url) = optional(text)? else {
        return Ok(None);
    };
    let is_http = url.starts_with("https://") || url.starts_with("http://");
    let problem = if !is_http {
        "is not the URL of a queue (https://sqs.REGION.amazonaws.com/ACCOUNT/NAME)"
    } else if url.contains(['@', '?', '#']) {
        "holds a user, a query or a fragment; the URL of a queue has none, and credentials belong elsewhere"
    } else if url.to_ascii_lowercase().ends_with(".fifo") {
        "is a FIFO queue; a standard queue is needed: order does not matter here, and a FIFO queue would hold back a message group while one of its messages is retried"
    } else {
        return Ok(Some(url));
    };
    Err(problem.into())
}

/// A name, or the ARN or the alias of an access point.
fn parse_bucket(text: &str) -> Result<Option<String>, String> {
    let is_key = text.contains('/') && !text.starts_with("arn:");
    if is_key || text.contains(char::is_whitespace) {
        return Err("is not a bucket name (write it without s3:// and without a key)".into());
    }
    optional(text)
}

fn parse_path_encoding(text: &str) -> Result<Option<PathEncoding>, String> {
    let text = optional(text)?;
    let encoding = text.map(|text| text.parse().map_err(str::to_owned));
    encoding.transpose()
}

fn parse_companions(text: &str) -> Result<Option<String>, String> {
    if is_quoted(text) {
        return Err(
            "is in quotes, which would be part of each key (an env file of Docker passes them on)"
                .into(),
        );
    }
    let text = optional(text)?;
    let checked = text.as_deref().map(CompanionPatterns::parse).transpose();
    checked.map_err(|error| format!("cannot be used: {error}"))?;
    Ok(text)
}

/// It is shown in lists and typed in shells.
fn parse_run_name(text: &str) -> Result<Option<String>, String> {
    if text.len() > 200 || text.contains(char::is_control) {
        return Err("is not a name (at most 200 bytes, without control characters)".into());
    }
    optional(text)
}

/// An empty prefix is a setting like any other here: whole URLs map to bare keys.
fn parse_path_rule(
    [old, new, source_key, destination_key]: [Option<String>; 4],
    problems: &mut SettingsProblems,
) -> Option<PathRule> {
    let old = problems.require("OLD_PREFIX", old);
    let new = problems.require("NEW_PREFIX", new);
    let old_ends_in_space = old.as_deref().is_some_and(ends_in_space);
    if old.as_deref().is_some_and(|old| !is_quoted(old)) {
        for (name, value) in [
            ("NEW_PREFIX", &new),
            ("SOURCE_KEY_PREFIX", &source_key),
            ("DESTINATION_KEY_PREFIX", &destination_key),
        ] {
            if value.as_deref().is_some_and(ends_in_space) && !old_ends_in_space {
                problems.add(
                    name,
                    "ends in white space, which would be part of each path or key",
                );
            }
            if let Some(value) = value.as_deref().filter(|value| is_quoted(value)) {
                let problem = format!(
                    "{value} is in quotes, which would be part of each path or key (an env file of Docker passes them on)"
                );
                problems.add(name, problem);
            }
        }
    }
    PathRule::new(old?, new?, source_key, destination_key)
        .map_err(|refused| problems.add("OLD_PREFIX, NEW_PREFIX", refused))
        .ok()
}

/// Where OLD_PREFIX is, too, no path matches, and the feeder says so.
fn is_quoted(text: &str) -> bool {
    let is_in = |quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    is_in('"') || is_in('\'')
}

fn ends_in_space(text: &str) -> bool {
    text.ends_with(char::is_whitespace)
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
