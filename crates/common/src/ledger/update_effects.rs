//! What an update of the table would set besides the path, or pass over.

use sqlx::{AssertSqlSafe, PgPool};

use super::LedgerError;
use super::table::TABLE_SETTING;

#[derive(sqlx::FromRow)]
pub(super) struct UpdateEffects {
    rules: Option<String>,
    skips_triggers: bool,
    pub(super) has_after_triggers: bool,
    pub(super) is_key: bool,
}

/// `$1` table, `$2` path column: its rules; whether triggers fire after an update; and whether an update of the path
/// takes the strongest row lock, as it does for a column of a unique index without expression and predicate, and where
/// it moves rows between partitions. It waits for whatever conflicts with that lock, the check of a foreign key
/// included, unless such rows were skipped before.
fn update_effects_sql() -> String {
    let has_after_triggers = has_after_triggers("$1::oid");
    let update_rules = update_rules("$1::oid");
    format!(
        "WITH tables AS (
    SELECT $1::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass)
), columns AS (
    SELECT a.attrelid, a.attnum FROM pg_attribute a JOIN tables t ON t.oid = a.attrelid
     WHERE a.attname = $2 OR a.attgenerated <> ''
)
SELECT (SELECT string_agg(rulename::text, ', ' ORDER BY rulename) FROM pg_rewrite
         WHERE {update_rules}) AS rules,
    current_setting('session_replication_role') = 'replica' AS skips_triggers,
    {has_after_triggers} AS has_after_triggers,
    EXISTS (SELECT 1 FROM pg_index i JOIN columns c ON c.attrelid = i.indrelid
             WHERE i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
               -- Without the columns that are included.
               AND c.attnum = ANY ((i.indkey::smallint[])[0:i.indnkeyatts - 1]))
    OR EXISTS (SELECT 1 FROM pg_partitioned_table p JOIN columns c ON c.attrelid = p.partrelid
                WHERE c.attnum = ANY (p.partattrs) OR 0 = ANY (p.partattrs)) AS is_key"
    )
}

/// Which rows of `pg_rewrite` are in the way of updates of a table, given by its OID.
fn update_rules(table: &str) -> String {
    format!("ev_class = {table} AND ev_type = '2' AND ev_enabled <> 'D'")
}

pub(super) fn has_update_rules(table: &str) -> String {
    format!(
        "EXISTS (SELECT 1 FROM pg_rewrite WHERE {})",
        update_rules(table)
    )
}

/// Whether the application has triggers that fire after an update of a table, given by its OID, or of a partition of it.
///
/// The trigger type's bits: 2 BEFORE, 16 UPDATE, 64 INSTEAD. Source: PostgreSQL, `pg_trigger.h`.
pub(super) fn has_after_triggers(table: &str) -> String {
    format!(
        "EXISTS (SELECT 1 FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 82 = 16
             AND tgrelid = ANY (ARRAY(SELECT relid::oid FROM pg_partition_tree({table}::regclass)) || {table}))"
    )
}

impl UpdateEffects {
    /// Postgres takes most rules not at all in a statement that also writes the evidence, and others would set
    /// something else.
    pub(super) async fn find(
        pool: &PgPool,
        (table, oid): (&str, i64),
        path: &str,
    ) -> Result<Self, LedgerError> {
        let query = sqlx::query_as(AssertSqlSafe(update_effects_sql())).bind(oid);
        let effects: Self = query.bind(path).fetch_one(pool).await?;
        if effects.skips_triggers {
            let problem = "of this role session_replication_role is 'replica', so that triggers and foreign keys of the application would not see what is moved: ALTER ROLE … RESET session_replication_role".to_owned();
            return Err(LedgerError::setting("DATABASE_URL", problem));
        }
        let Some(rules) = &effects.rules else {
            return Ok(effects);
        };
        let problem = format!(
            "'{table}' has rules ON UPDATE ({rules}), which would set something else than paths: make triggers of them, or disable them for the migration (ALTER TABLE … DISABLE RULE …)"
        );
        Err(LedgerError::setting(TABLE_SETTING, problem))
    }
}
