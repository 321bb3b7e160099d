//! The runs that are in the ledger, and which of them a process works on.

use sqlx::postgres::PgPool;

use super::errors::is_permission_denied;
use super::run::{OPEN_TIMEOUT, OPENING_LEDGER, ledger_permission_error, within};
use super::run_options::{OptionMatch, RunOptions};
use super::schema;
use super::{
    ApplicationTable, ConnectionPurpose, DatabasePool, LedgerError, TableAccess, TableSpec,
    connection, create_pool,
};
use crate::database::DatabaseLogin;
use crate::path_rule::PathRule;

/// What makes a migration this migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// None for the default, which is made of table and column.
    pub name: Option<String>,
    pub table: TableSpec,
    pub rule: PathRule,
    /// Where the images are.
    pub source_bucket: String,
    pub destination_bucket: String,
    pub options: RunOptions,
}

/// Which run a process works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunSelection {
    Settings(Box<RunSpec>),
    /// The one with this name or number in the ledger; without, the only one that is not finished.
    Ledger(Option<String>),
}

/// A run as the ledger has it.
#[derive(Debug, Clone, sqlx::FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "columns")]
pub struct RunRow {
    pub id: i64,
    pub name: String,
    /// Quoted as in SQL.
    pub images_table: String,
    pub id_column: String,
    pub path_column: String,
    pub old_prefix: String,
    pub new_prefix: String,
    pub source_bucket: String,
    pub source_key_prefix: String,
    pub destination_bucket: String,
    pub destination_key_prefix: String,
    /// [`RunOptions`] as JSON.
    options: String,
    pub is_finished: bool,
    pub is_paused: bool,
    /// Who paused it, while it is.
    paused_by: Option<String>,
    /// Whether any row was fed.
    pub has_fed: bool,
    /// One that watches finishes the run after each sweep.
    pub has_feeder: bool,
    /// Rows that have moved, and not gone back.
    pub(super) moved: i64,
    /// [`opened_at`]: a ledger that was made anew or restored has another run of this number.
    pub(super) opened_at: i64,
}

pub(super) const SEVERAL_RUNS: &str = " selected: name one with --run (RUN_NAME)";

/// Names of digits alone were allowed once.
const NAME_AND_NUMBER: &str =
    " that is meant alone: this is the name of one and the number of another";

/// When a run was opened, in microseconds: what tells it from another of its number.
macro_rules! opened_at {
    () => {
        "(extract(epoch FROM started_at) * 1000000)::bigint"
    };
}
pub(super) use opened_at;

/// Whether a feeder of the run `r` is at work, or watches.
macro_rules! has_feeder {
    () => {
        "EXISTS (SELECT 1 FROM bucket_brigade.workers w
        WHERE w.run_id = r.id AND w.role = 'feeder' AND w.seen_at > now() - interval '10 seconds')"
    };
}
pub(super) use has_feeder;

const LIST_RUNS: &str = concat!(
    "SELECT id, name, images_table, id_column, path_column, old_prefix, new_prefix,
        source_bucket, source_key_prefix, destination_bucket, destination_key_prefix, options::text AS options,
        finished_at IS NOT NULL AS is_finished, paused AS is_paused,
        CASE WHEN paused THEN paused_by END AS paused_by,
        EXISTS (SELECT 1 FROM bucket_brigade.feed_cursors f WHERE f.run_id = r.id AND f.fed > 0) AS has_fed,
        (SELECT coalesce(sum(moved), 0)::bigint FROM bucket_brigade.counters c WHERE c.run_id = r.id) AS moved, ",
    has_feeder!(),
    " AS has_feeder, ",
    opened_at!(),
    " AS opened_at FROM bucket_brigade.run r ORDER BY id"
);

impl RunRow {
    pub fn to_spec(&self) -> Result<RunSpec, LedgerError> {
        let rule = PathRule::new(
            self.old_prefix.clone(),
            self.new_prefix.clone(),
            Some(self.source_key_prefix.clone()),
            Some(self.destination_key_prefix.clone()),
        );
        let incompatible = |error: String| LedgerError::IncompatibleLedger(error);
        let rule = rule.map_err(|error| incompatible(error.to_string()))?;
        let options = self.options()?;
        let rule = options.complete_rule(rule);
        Ok(RunSpec {
            name: Some(self.name.clone()),
            table: TableSpec {
                table: self.images_table.clone(),
                id_column: self.id_column.clone(),
                path_column: self.path_column.clone(),
            },
            rule: rule.map_err(|error| incompatible(error.to_string()))?,
            source_bucket: self.source_bucket.clone(),
            destination_bucket: self.destination_bucket.clone(),
            options,
        })
    }

    pub(super) fn options(&self) -> Result<RunOptions, LedgerError> {
        serde_json::from_str(&self.options).map_err(|error| {
            let problem = format!(
                "run '{}' has an option of a later version: {error}",
                self.name
            );
            LedgerError::IncompatibleLedger(problem)
        })
    }

    /// The settings in which a run of the table `table`, quoted, differs, with both values.
    pub(super) fn differences(
        &self,
        spec: &RunSpec,
        table: &str,
        matching: OptionMatch,
    ) -> Result<Vec<String>, LedgerError> {
        let rule = &spec.rule;
        let pairs = [
            ("IMAGES_TABLE", &*self.images_table, table),
            ("ID_COLUMN", &self.id_column, &spec.table.id_column),
            ("PATH_COLUMN", &self.path_column, &spec.table.path_column),
            ("OLD_PREFIX", &self.old_prefix, rule.old_prefix()),
            ("NEW_PREFIX", &self.new_prefix, rule.new_prefix()),
            (
                "SOURCE_BUCKET_NAME",
                &self.source_bucket,
                &spec.source_bucket,
            ),
            (
                "SOURCE_KEY_PREFIX",
                &self.source_key_prefix,
                rule.source_key_prefix(),
            ),
            (
                "DESTINATION_BUCKET_NAME",
                &self.destination_bucket,
                &spec.destination_bucket,
            ),
            (
                "DESTINATION_KEY_PREFIX",
                &self.destination_key_prefix,
                rule.destination_key_prefix(),
            ),
        ];
        let differing = pairs.into_iter().filter(|(_, ours, theirs)| ours != theirs);
        let describe =
            |(setting, ours, theirs)| format!("{setting}: '{ours}' there, '{theirs}' here");
        let mut differences: Vec<String> = differing.map(describe).collect();
        // The options of another migration do not matter.
        if differences.is_empty() {
            differences = self.options()?.differences(&spec.options, matching);
        }
        Ok(differences)
    }

    /// Whether it moved, or began to move, images of this column.
    pub(super) fn is_of_column(&self, spec: &RunSpec, table: &ApplicationTable) -> bool {
        self.has_fed && self.images_table == table.sql && self.path_column == spec.table.path_column
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name || self.id.to_string() == name
    }

    /// Whether another run was opened on its rows, which paused it.
    fn is_superseded(&self) -> bool {
        self.paused_by.as_deref() == Some("feeder --new-run")
    }

    /// One line of a list.
    pub(super) fn describe(&self) -> String {
        let Self {
            id,
            name,
            images_table,
            old_prefix,
            new_prefix,
            ..
        } = self;
        let state = match self.is_finished {
            true => "finished",
            false if self.is_superseded() => "given up for another run of its rows",
            false => "not finished",
        };
        format!(
            "{name} (run {id}): {images_table}, {old_prefix} (s3://{}) to {new_prefix} (s3://{}), {state}",
            self.source_bucket, self.destination_bucket
        )
    }
}

/// The run that is selected; none while no feeder has opened it.
///
/// # Errors
/// [`LedgerError::NoRun`] where several runs could be meant.
pub async fn find_selected_run(
    pool: &DatabasePool,
    selection: &RunSelection,
    purpose: &ConnectionPurpose,
    access: TableAccess,
) -> Result<Option<RunSpec>, LedgerError> {
    match selection {
        RunSelection::Settings(spec) => Ok(Some(spec.as_ref().clone())),
        RunSelection::Ledger(name) => {
            let runs = list_runs_in(pool, purpose, access).await?;
            let runs = runs.unwrap_or_default();
            let run = select_run(&runs, name.as_deref())?;
            run.map(RunRow::to_spec).transpose()
        }
    }
}

/// The same for a command, which cannot wait for a feeder.
pub async fn require_selected_run(
    database: &DatabaseLogin,
    selection: &RunSelection,
    purpose: &ConnectionPurpose,
) -> Result<RunSpec, LedgerError> {
    let (pool, access) = (create_pool(database.clone(), 1), TableAccess::Read);
    if let Some(spec) = find_selected_run(&pool, selection, purpose, access).await? {
        return Ok(spec);
    }
    let runs = list_runs_in(&pool, purpose, access).await?;
    let runs = runs.unwrap_or_default();
    let why = if runs.is_empty() { "" } else { " of this name" };
    Err(no_run(why, &runs))
}

/// All runs, the oldest first; none where there is no ledger of this version.
pub async fn list_runs_in(
    pool: &DatabasePool,
    purpose: &ConnectionPurpose,
    access: TableAccess,
) -> Result<Option<Vec<RunRow>>, LedgerError> {
    within(pool, OPEN_TIMEOUT, OPENING_LEDGER, async {
        connection::prepare_pool(pool, purpose, access).await?;
        if !schema::is_ready(pool).await? {
            return Ok(None);
        }
        list_runs(pool).await.map(Some)
    })
    .await
}

/// The only run, or the only one that is not finished.
pub fn only_run(runs: &[RunRow]) -> Option<&RunRow> {
    select_run(runs, None).ok().flatten()
}

/// One connection to a ledger of this version; none where there is no ledger yet.
pub async fn connect_to_ledger(
    database: &DatabaseLogin,
    purpose: &ConnectionPurpose,
) -> Result<Option<DatabasePool>, LedgerError> {
    let pool = create_pool(database.clone(), 1);
    let is_ready = within(&pool, OPEN_TIMEOUT, OPENING_LEDGER, async {
        connection::prepare_pool(&pool, purpose, TableAccess::Read).await?;
        schema::is_ready(&pool).await
    });
    let is_ready = is_ready.await?;
    Ok(is_ready.then_some(pool))
}

/// The same where the ledger is known to be there.
pub async fn list_runs(pool: &PgPool) -> Result<Vec<RunRow>, LedgerError> {
    match sqlx::query_as(LIST_RUNS).fetch_all(pool).await {
        Err(error) if is_permission_denied(&error) => Err(ledger_permission_error(pool).await?),
        listed => Ok(listed?),
    }
}

fn select_run<'a>(
    runs: &'a [RunRow],
    name: Option<&str>,
) -> Result<Option<&'a RunRow>, LedgerError> {
    let is_meant = |run: &&RunRow| match name {
        Some(name) => run.is_named(name),
        None => runs.len() == 1 || !(run.is_finished || run.is_superseded()),
    };
    let meant: Vec<&RunRow> = runs.iter().filter(is_meant).collect();
    match (&*meant, name) {
        ([run], _) => Ok(Some(run)),
        ([], Some(_)) => Ok(None),
        ([], None) if runs.is_empty() => Ok(None),
        (_, Some(_)) => Err(no_run(NAME_AND_NUMBER, runs)),
        _ => Err(no_run(SEVERAL_RUNS, runs)),
    }
}

/// Why no run could be selected, with those there are.
pub fn no_run(why: &str, runs: &[RunRow]) -> LedgerError {
    let list: Vec<String> = runs.iter().rev().take(20).map(RunRow::describe).collect();
    LedgerError::NoRun {
        hint: if list.is_empty() {
            format!(
                "{why}: start the feeder once, or the feeder of this version where another has opened the run"
            )
        } else {
            format!("{why}; there are these:\n  {}", list.join("\n  "))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: i64, name: &str, is_finished: bool) -> RunRow {
        RunRow {
            id,
            name: name.into(),
            images_table: "public.images".into(),
            id_column: "id".into(),
            path_column: "path".into(),
            old_prefix: "image/".into(),
            new_prefix: "avatar/".into(),
            source_bucket: "old".into(),
            source_key_prefix: "image/".into(),
            destination_bucket: "new".into(),
            destination_key_prefix: "avatar/".into(),
            options: "{}".into(),
            is_finished,
            is_paused: false,
            paused_by: None,
            has_fed: true,
            has_feeder: false,
            moved: 0,
            opened_at: 0,
        }
    }

    fn selected(runs: &[RunRow], name: Option<&str>) -> Result<Option<i64>, String> {
        let found = select_run(runs, name).map_err(|error| error.to_string())?;
        Ok(found.map(|run| run.id))
    }

    #[test]
    fn a_run_needs_a_name_only_among_several_that_are_not_finished() {
        let runs = [run(1, "a", true), run(2, "b", false), run(3, "c", false)];
        assert_eq!(selected(&[], None), Ok(None));
        assert_eq!(
            selected(&runs[..1], None),
            Ok(Some(1)),
            "the only one, finished or not"
        );
        assert_eq!(selected(&runs[..2], None), Ok(Some(2)));
        assert_eq!(selected(&runs, Some("a")), Ok(Some(1)));
        assert_eq!(selected(&runs, Some("3")), Ok(Some(3)));
        let numbered = [run(1, "2", false), run(2, "b", false)];
        let error = selected(&numbered, Some("2")).unwrap_err();
        assert!(error.contains("the number of another"), "{error}");
        assert_eq!(selected(&numbered, Some("1")), Ok(Some(1)));
        assert_eq!(selected(&numbered[..1], Some("2")), Ok(Some(1)));
        assert_eq!(selected(&runs, Some("d")), Ok(None));
        let error = selected(&runs, None).unwrap_err();
        assert!(
            error.contains("--run") && error.contains("b (run 2)"),
            "{error}"
        );
    }

    #[test]
    fn a_run_that_gave_its_rows_to_another_must_be_named() {
        let mut runs = [run(1, "a", false), run(2, "b", false)];
        runs[0].paused_by = Some("feeder --new-run".into());
        assert_eq!(selected(&runs, None), Ok(Some(2)));
        assert_eq!(selected(&runs, Some("a")), Ok(Some(1)));
        runs[1].is_finished = true;
        let error = selected(&runs, None).unwrap_err();
        assert!(error.contains("given up for another run"), "{error}");
    }

    #[test]
    fn an_option_of_a_later_version_is_refused() {
        let options = r#"{"WATERMARK":"yes"}"#.to_owned();
        let refused = RunRow {
            options,
            ..run(1, "a", false)
        }
        .to_spec()
        .unwrap_err();
        assert!(refused.to_string().contains("WATERMARK"), "{refused}");
    }

    #[test]
    fn settings_that_differ_are_named_with_both_values() {
        let mut spec = run(1, "a", false).to_spec().unwrap();
        let run = run(1, "a", false);
        let of = |spec: &RunSpec, table| run.differences(spec, table, OptionMatch::Exact).unwrap();
        assert!(of(&spec, "public.images").is_empty());
        spec.source_bucket = "older".into();
        assert_eq!(
            of(&spec, "public.pictures"),
            [
                "IMAGES_TABLE: 'public.images' there, 'public.pictures' here",
                "SOURCE_BUCKET_NAME: 'old' there, 'older' here"
            ]
        );
    }
}
