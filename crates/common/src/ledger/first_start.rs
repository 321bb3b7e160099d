//! A run that is not there yet: whether a feeder may open it, and what becomes of others that have its rows.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use super::fence::ensure_no_copy_in_removal;
use super::run::{OPEN_TIMEOUT, find_run_row, within};
use super::run_options::OptionMatch;
use super::runs::{RunRow, RunSpec, has_feeder, list_runs};
use super::{ApplicationTable, DatabasePool, LedgerError, TableAccess};

/// Whether a feeder may open a run on a column that another run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondRun {
    Refused,
    Allowed,
}

impl SecondRun {
    /// `--new-run`
    pub fn by_flag(is_given: bool) -> Self {
        if is_given {
            Self::Allowed
        } else {
            Self::Refused
        }
    }
}

/// Whether the table of a run `r`, quoted, is this one, a partition of it, or has it as a partition.
fn is_same_table(table: &str) -> String {
    let (ours, theirs) = (table_oid(table), table_oid("r.images_table"));
    format!(
        "(r.images_table = {table} OR {theirs} IN (SELECT pg_partition_ancestors({ours}::regclass))
            OR {ours} IN (SELECT pg_partition_ancestors({theirs}::regclass)))"
    )
}

/// By the catalog: `to_regclass` wants the right to use the schema, and the table may be of another application.
fn table_oid(table: &str) -> String {
    format!(
        "(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = (parse_ident({table}))[1] AND c.relname = (parse_ident({table}))[2])"
    )
}

/// Whether a run `r` is at work on rows of a new one: its table, path column, prefixes and options. One without a
/// filter has all rows. Two that move each other's rows back would go on for ever, unless paths grow shorter.
fn shares_rows_sql([table, path_column, old_prefix, new_prefix, options]: [&str; 5]) -> String {
    let is_same_table = is_same_table(table);
    let overlap = |a: &str, b: &str| format!("(starts_with({a}, {b}) OR starts_with({b}, {a}))");
    let same = overlap("r.old_prefix", old_prefix);
    let lasts = format!(
        "length(r.new_prefix) + length({new_prefix}) >= length(r.old_prefix) + length({old_prefix})"
    );
    let (feeds_us, feeds_it) = (
        overlap("r.new_prefix", old_prefix),
        overlap("r.old_prefix", new_prefix),
    );
    let has_feeder = has_feeder!();
    format!(
        "NOT r.paused AND (r.finished_at IS NULL OR {has_feeder}) AND {is_same_table} AND r.path_column = {path_column}
       AND ({same} OR ({feeds_us} AND {feeds_it} AND {lasts}))
       AND coalesce(r.options->>'ROW_FILTER' = {options}->>'ROW_FILTER', true)"
    )
}

/// `$1` table, `$2` id column, `$3` path column, `$4`, `$5` path prefixes, `$6` source bucket, `$7` its
/// key prefix, `$8` destination bucket, `$9` its key prefix, `$10` options, `$11` name.
///
/// An unfinished run that has rows in scope as well is paused: its messages would move them by its own rule. Returns
/// the names of such runs.
fn insert_run_sql() -> String {
    let shares_rows = shares_rows_sql(["$1", "$3", "$4::text", "$5::text", "$10::jsonb"]);
    format!(
        "WITH opened AS (
    INSERT INTO bucket_brigade.run
    (images_table, id_column, path_column, old_prefix, new_prefix, source_bucket,
     source_key_prefix, destination_bucket, destination_key_prefix, options, name)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11) ON CONFLICT DO NOTHING RETURNING id
), cursor AS (
    INSERT INTO bucket_brigade.feed_cursors (run_id) SELECT id FROM opened
), paused AS (
    UPDATE bucket_brigade.run r
       SET paused = true, paused_by = 'feeder --new-run', pause_reason = 'its rows are those of run ' || $11::text,
           paused_at = now()
     WHERE EXISTS (SELECT FROM opened) AND {shares_rows}
    RETURNING r.id, r.name
), recorded AS (
    INSERT INTO bucket_brigade.history (run_id, action, operator, reason)
    SELECT id, 'pause', 'feeder --new-run', 'its rows are those of run ' || $11::text FROM paused
)
SELECT name FROM paused"
    )
}

pub(super) async fn insert_run(
    pool: &PgPool,
    spec: &RunSpec,
    table: &ApplicationTable,
    second: SecondRun,
) -> Result<RunRow, LedgerError> {
    let runs = list_runs(pool).await?;
    check_new_run(pool, &runs, spec, table, second).await?;
    let name = spec.name.clone();
    let name = name.unwrap_or_else(|| default_name(&runs, spec, table));
    let options = spec.options.to_json();
    let paused: Vec<String> = sqlx::query_scalar(AssertSqlSafe(insert_run_sql()))
        .bind(&table.sql)
        .bind(&spec.table.id_column)
        .bind(&spec.table.path_column)
        .bind(spec.rule.old_prefix())
        .bind(spec.rule.new_prefix())
        .bind(&spec.source_bucket)
        .bind(spec.rule.source_key_prefix())
        .bind(&spec.destination_bucket)
        .bind(spec.rule.destination_key_prefix())
        .bind(options)
        .bind(&name)
        .fetch_all(pool)
        .await?;
    for run in paused {
        tracing::warn!(
            "run {run} is unfinished and has the same rows: it is paused, so that its messages do not move them"
        );
    }
    let run = find_run_row(pool, spec, &table.sql, OptionMatch::Exact).await?;
    run.ok_or(LedgerError::RunDiffers {
        name,
        differences: "another feeder has just opened it".into(),
    })
}

/// Two runs must not move the same rows: chance would decide where each image goes. Nor may they give paths two
/// meanings. Asked of a run that starts, or goes on after a pause. The application's table is read only where paths
/// may have got another meaning.
///
/// # Errors
/// [`LedgerError::SharedRows`], [`LedgerError::SplitPaths`].
pub async fn ensure_no_rival(pool: &DatabasePool, run: i64) -> Result<(), LedgerError> {
    within(
        pool,
        OPEN_TIMEOUT,
        "looking for other runs",
        check_rivals(pool, run),
    )
    .await
}

async fn check_rivals(pool: &PgPool, run: i64) -> Result<(), LedgerError> {
    if let Some(other) = find_run_of_same_rows(pool, run).await? {
        return Err(LedgerError::SharedRows { other });
    }
    let runs = list_runs(pool).await?;
    let Some(run) = runs.iter().find(|row| row.id == run) else {
        return Ok(());
    };
    let spec = run.to_spec()?;
    let mut others = runs_of_column(pool, &runs, &spec, &run.images_table).await?;
    others.retain(|other| other.id != run.id && other.gives_paths_away(&spec));
    if others.is_empty() {
        return Ok(());
    }
    let table = ApplicationTable::discover(pool, &spec.table, TableAccess::Read).await?;
    ensure_paths_keep_their_meaning(pool, &spec, &table, &others).await
}

async fn find_run_of_same_rows(pool: &PgPool, run: i64) -> Result<Option<String>, sqlx::Error> {
    let shares_rows = shares_rows_sql([
        "me.images_table",
        "me.path_column",
        "me.old_prefix",
        "me.new_prefix",
        "me.options",
    ]);
    let sql = format!(
        "SELECT r.name FROM bucket_brigade.run me JOIN bucket_brigade.run r ON r.id <> me.id AND {shares_rows}
          WHERE me.id = $1 ORDER BY r.id DESC LIMIT 1"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(run);
    query.fetch_optional(pool).await
}

/// What a feeder with these settings, which no run has, would find: the names of the runs that it pauses.
///
/// # Errors
/// Why it would open no run, or could not feed it.
pub async fn check_first_start(
    pool: &PgPool,
    spec: &RunSpec,
    table: &ApplicationTable,
    second: SecondRun,
) -> Result<Vec<String>, LedgerError> {
    let runs = list_runs(pool).await?;
    check_new_run(pool, &runs, spec, table, second).await?;
    ensure_no_copy_in_removal(pool, spec).await?;
    let shares_rows = shares_rows_sql(["$1", "$2", "$3::text", "$4::text", "$5::jsonb"]);
    let sql = format!("SELECT name FROM bucket_brigade.run r WHERE {shares_rows} ORDER BY id");
    let paused = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(&table.sql)
        .bind(&spec.table.path_column)
        .bind(spec.rule.old_prefix())
        .bind(spec.rule.new_prefix())
        .bind(spec.options.to_json());
    Ok(paused.fetch_all(pool).await?)
}

/// A slip in a setting would open another run, and move what it matches. A run that has fed nothing was such a
/// slip itself.
async fn check_new_run(
    pool: &PgPool,
    runs: &[RunRow],
    spec: &RunSpec,
    table: &ApplicationTable,
    second: SecondRun,
) -> Result<(), LedgerError> {
    let has_name = |run: &&RunRow| spec.name.as_ref() == Some(&run.name);
    let named = runs.iter().find(has_name);
    let of_column = runs_of_column(pool, runs, spec, &table.sql).await?;
    let differences = |run: &RunRow| {
        let differences = run.differences(spec, &table.sql, OptionMatch::Exact);
        differences.map(|lines| lines.join("\n  "))
    };
    match (named, of_column.last()) {
        (Some(run), _) => Err(LedgerError::RunDiffers {
            name: run.name.clone(),
            differences: differences(run)?,
        }),
        (None, Some(run)) if second == SecondRun::Refused => Err(LedgerError::SecondRun {
            column: format!("{}.{}", table.name, spec.table.path_column),
            run: run.name.clone(),
            differences: differences(run)?,
        }),
        _ => {
            spec.ensure_may_be_new()?;
            ensure_paths_keep_their_meaning(pool, spec, table, &of_column).await
        }
    }
}

/// Of the runs, those that moved, or began to move, images of this column, the newest last.
async fn runs_of_column(
    pool: &PgPool,
    runs: &[RunRow],
    spec: &RunSpec,
    table: &str,
) -> Result<Vec<RunRow>, LedgerError> {
    let is_same_table = is_same_table("$1");
    let sql = format!(
        "SELECT r.id FROM bucket_brigade.run r JOIN bucket_brigade.feed_cursors f ON f.run_id = r.id
          WHERE f.fed > 0 AND r.path_column = $2 AND {is_same_table}"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(table);
    let ids: Vec<i64> = query.bind(&spec.table.path_column).fetch_all(pool).await?;
    let of_column = runs.iter().filter(|run| ids.contains(&run.id));
    Ok(of_column.cloned().collect())
}

/// Where paths of one prefix meant two places, the application would miss the images of one.
///
/// # Errors
/// [`LedgerError::SplitPaths`].
async fn ensure_paths_keep_their_meaning(
    pool: &PgPool,
    spec: &RunSpec,
    table: &ApplicationTable,
    others: &[RunRow],
) -> Result<(), LedgerError> {
    for run in others {
        let split = |(prefix, location): (&str, String), remedy| LedgerError::SplitPaths {
            run: run.name.clone(),
            prefix: prefix.to_owned(),
            location,
            remedy,
        };
        if !run.is_finished && run.gives_old_paths_away(spec) {
            return Err(split(run.old_paths(), "Let that run finish"));
        }
        if run.gives_new_paths_away(spec) && names_copies(pool, run, spec, table).await? {
            return Err(split(run.new_paths(), "Roll that run back"));
        }
    }
    Ok(())
}

/// Moves of which rows are looked at: where none of so many names its copy any more, the run was undone.
const LOOKED_AT_MOVES: i64 = 10_000;

/// Whether rows still name copies of a run.
async fn names_copies(
    pool: &PgPool,
    run: &RunRow,
    spec: &RunSpec,
    table: &ApplicationTable,
) -> Result<bool, LedgerError> {
    if run.id_column != spec.table.id_column {
        return Ok(true);
    }
    let ApplicationTable { sql, id, path, .. } = table;
    let is_row = id.matches("t", "m.row_id");
    let statement = format!(
        r#"SELECT EXISTS (SELECT 1 FROM (SELECT row_id, new_path FROM bucket_brigade.moves
                WHERE run_id = $1 ORDER BY row_id LIMIT {LOOKED_AT_MOVES}) m
             JOIN LATERAL (SELECT 1 FROM {sql} t
                WHERE {is_row} AND t.{path}::text COLLATE "C" = m.new_path OFFSET 0) t ON true)"#
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).bind(run.id);
    Ok(query.fetch_one(pool).await?)
}

impl RunRow {
    /// The prefix of its old paths, and where the objects are that they mean.
    fn old_paths(&self) -> (&str, String) {
        let location = format!("s3://{}/{}", self.source_bucket, self.source_key_prefix);
        (&self.old_prefix, location)
    }

    fn new_paths(&self) -> (&str, String) {
        let location = format!(
            "s3://{}/{}",
            self.destination_bucket, self.destination_key_prefix
        );
        (&self.new_prefix, location)
    }

    fn gives_paths_away(&self, spec: &RunSpec) -> bool {
        self.gives_old_paths_away(spec) || self.gives_new_paths_away(spec)
    }

    /// Whether its old paths would mean other objects by the new ones of these settings.
    fn gives_old_paths_away(&self, spec: &RunSpec) -> bool {
        let location = (&*self.source_bucket, &*self.source_key_prefix);
        self.has_other_meaning(spec, &self.old_prefix, location)
    }

    /// The same of the paths that it has set.
    fn gives_new_paths_away(&self, spec: &RunSpec) -> bool {
        let location = (&*self.destination_bucket, &*self.destination_key_prefix);
        self.moved > 0 && self.has_other_meaning(spec, &self.new_prefix, location)
    }

    /// Not where both have a filter: who tells their rows apart may tell their buckets apart.
    fn has_other_meaning(&self, spec: &RunSpec, prefix: &str, location: (&str, &str)) -> bool {
        let is_plain = |bucket: &str| !bucket.starts_with("arn:") && !bucket.ends_with("-s3alias");
        let (theirs, ours) = (location.0, &*spec.destination_bucket);
        let is_elsewhere = theirs != ours && is_plain(theirs) && is_plain(ours);
        let Ok(options) = self.options() else {
            return false;
        };
        let filters = options
            .row_filter
            .as_ref()
            .zip(spec.options.row_filter.as_ref());
        prefix == spec.rule.new_prefix()
            && filters.is_none_or(|(theirs, ours)| theirs == ours)
            && (is_elsewhere
                || location.1 != spec.rule.destination_key_prefix()
                || options.path_encoding.unwrap_or_default()
                    != spec.options.path_encoding.unwrap_or_default())
    }
}

impl RunSpec {
    /// Not for the settings' parser: with a run's number for its name the settings find that run.
    ///
    /// # Errors
    /// A name that no new run may have.
    pub fn ensure_may_be_new(&self) -> Result<(), LedgerError> {
        let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        if !self.name.as_deref().is_some_and(is_number) {
            return Ok(());
        }
        let problem =
            "is a number, which commands take for that of a run: a name needs more than digits";
        Err(LedgerError::setting("RUN_NAME", problem.into()))
    }
}

/// Table and column, and a number where other runs have that name.
fn default_name(runs: &[RunRow], spec: &RunSpec, table: &ApplicationTable) -> String {
    let base = format!("{}.{}", table.name, spec.table.path_column);
    let base = base.strip_prefix("public.").unwrap_or(&base);
    let mut names = std::iter::once(base.to_owned()).chain((2..).map(|n| format!("{base}-{n}")));
    let is_free = |name: &String| runs.iter().all(|run| run.name != *name);
    names.find(is_free).unwrap_or_default()
}
