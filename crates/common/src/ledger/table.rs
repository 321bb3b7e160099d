//! The application's table: found, and checked for all that the migration relies on.

use sqlx::postgres::PgPool;
use strsim::osa_distance;

use super::errors::has_sqlstate;
use super::id_columns::IdColumns;
use super::row_filter::RowFilter;
use super::table_id::TableId;
use super::update_effects::UpdateEffects;
use super::{LedgerError, table_id};
use crate::sql::quote_identifier;

pub const TABLE_NAME_PROBLEM: &str =
    "is not a table name: write table, schema.table, or \"quoted\".\"names\"";

pub(super) const TABLE_SETTING: &str = "IMAGES_TABLE";

/// The table as the settings name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// `images`, `app.images`, or as Postgres reads it where there are quotes: `"my.schema"."images"`.
    pub table: String,
    /// One column, or several with commas between them.
    pub id_column: String,
    pub path_column: String,
}

/// The table as the database knows it, its names quoted for use in statements.
#[derive(Debug, Clone)]
pub struct ApplicationTable {
    /// Schema and table, for people.
    pub name: String,
    /// Schema and table, quoted.
    pub sql: String,
    pub id: IdColumns,
    pub path: String,
    /// The collation that an index needs by which LIKE finds paths, where it is not the column's own.
    pub(super) like_collation: &'static str,
    pub is_partitioned: bool,
    /// Which rows with the old prefix are in scope; none for all.
    pub(super) filter: Option<RowFilter>,
    /// The mode in which rows are locked whose path is set.
    pub row_lock: &'static str,
    /// Whether triggers fire after an update, and could set the path anew.
    pub(super) has_after_triggers: bool,
}

/// What a process does with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableAccess {
    /// It is read: the feeder, and commands that report.
    Read,
    /// It is read, and paths are set: the consumer, and commands that move rows back.
    Update,
}

#[derive(sqlx::FromRow)]
pub(super) struct ColumnInfo {
    pub(super) number: i16,
    /// A domain's base type.
    pub(super) type_name: String,
    /// The type as SQL writes it.
    pub(super) declared_type: String,
    pub(super) is_not_null: bool,
    is_generated: bool,
    /// Whether texts are equal only where their bytes are, which LIKE needs.
    is_deterministic: bool,
}

#[derive(sqlx::FromRow)]
struct RelationInfo {
    oid: i64,
    schema: String,
    name: String,
    kind: String,
}

#[derive(sqlx::FromRow)]
struct TablePrivileges {
    user_name: String,
    schema_usage: bool,
    select: bool,
    update: bool,
}

/// The parts of `$1`, a table as the setting names it: as written, without case folding, unless there are quotes.
macro_rules! table_name_parts {
    () => {
        "parse_ident(CASE WHEN $1 LIKE '%\"%' THEN $1 ELSE '\"' || replace($1, '.', '\".\"') || '\"' END)"
    };
}
pub(super) use table_name_parts;

const SELECT_RELATION: &str = concat!(
    "SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, ",
    table_name_parts!(),
    " parts
    WHERE c.relname = parts[cardinality(parts)] AND CASE cardinality(parts)
        WHEN 1 THEN pg_table_is_visible(c.oid) WHEN 2 THEN n.nspname = parts[1] ELSE false END"
);

const SELECT_TABLES: &str = "SELECT n.nspname || '.' || c.relname, lower(c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
      AND abs(length(c.relname) - length($1::text)) <= 2";

const MAX_TYPOS: usize = 2;

const MAX_SUGGESTIONS: usize = 3;

const SELECT_COLUMN: &str = "SELECT a.attnum AS number, base.typname::text AS type_name,
        format_type(a.atttypid, a.atttypmod) AS declared_type,
        a.attnotnull AS is_not_null, a.attgenerated <> '' AS is_generated,
        coalesce((SELECT collisdeterministic FROM pg_collation c WHERE c.oid = a.attcollation), true) AS is_deterministic
    FROM pg_attribute a, LATERAL (
        WITH RECURSIVE types AS (
            SELECT t.typname, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
            UNION ALL
            SELECT t.typname, t.typbasetype FROM types d JOIN pg_type t ON t.oid = d.typbasetype)
        SELECT typname FROM types WHERE typbasetype = 0) base
    WHERE a.attrelid = $1::oid AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";

const LIST_COLUMNS: &str = "SELECT coalesce(string_agg(attname, ', ' ORDER BY attnum), 'none')
    FROM pg_attribute WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped";

const SELECT_PRIVILEGES: &str =
    "SELECT current_user::text AS user_name, has_schema_privilege(relnamespace, 'USAGE') AS schema_usage,
        NOT EXISTS (SELECT 1 FROM unnest($2::smallint[] || $3) n WHERE NOT has_column_privilege(oid, n, 'SELECT'))
            AS \"select\",
        has_column_privilege(oid, $3, 'UPDATE') AS \"update\"
    FROM pg_class WHERE oid = $1::oid";

/// `$1` a table, quoted; null when it is there no more.
const HIDES_ROWS: &str =
    "SELECT current_user::text, coalesce(row_security_active(to_regclass($1)::oid), false)";

/// Makes sure that row level security hides no row: a row that is not seen is neither moved nor, where its
/// object is to be removed, kept from harm.
pub async fn ensure_all_rows_visible(pool: &PgPool, table: &str) -> Result<(), LedgerError> {
    let query = sqlx::query_as(HIDES_ROWS).bind(table);
    let (user, hidden): (String, bool) = query.fetch_one(pool).await?;
    if !hidden {
        return Ok(());
    }
    Err(LedgerError::NotAllowed {
        what: format!("see every row of table {table}: row level security applies to it"),
        sql: format!("ALTER ROLE {} BYPASSRLS;", quote_identifier(&user)),
        user,
    })
}

impl ApplicationTable {
    /// Finds the table and checks it.
    pub(super) async fn discover(
        pool: &PgPool,
        spec: &TableSpec,
        access: TableAccess,
    ) -> Result<Self, LedgerError> {
        let table = find_relation(pool, spec).await?;
        let effects =
            UpdateEffects::find(pool, (&table.name, table.oid), &spec.path_column).await?;
        let id = table_id::find_id(&table, spec).await?;
        let path = table.find_column("PATH_COLUMN", &spec.path_column).await?;
        table.check_path(spec, &path)?;
        let id = table_id::check_id(&table, id).await?;
        table
            .check_privileges(spec, access, &id, path.number)
            .await?;
        ensure_all_rows_visible(pool, &table.sql).await?;
        Ok(Self {
            row_lock: if effects.is_key {
                "FOR UPDATE"
            } else {
                "FOR NO KEY UPDATE"
            },
            has_after_triggers: effects.has_after_triggers,
            sql: table.sql,
            name: table.name,
            is_partitioned: table.is_partitioned,
            id: id.columns,
            path: quote_identifier(&spec.path_column),
            like_collation: if path.is_deterministic {
                ""
            } else {
                r#" COLLATE "C""#
            },
            filter: None,
        })
    }

    /// Whether a row of `t`, which must be alone in its FROM, is one to move; null where it has no path.
    /// `pattern` is the parameter of the old prefix.
    pub fn in_scope(&self, pattern: &str) -> String {
        let has_prefix = self.has_prefix(pattern);
        match &self.filter {
            Some(filter) => format!("CASE WHEN {has_prefix} THEN {} END", filter.sql()),
            None => has_prefix,
        }
    }

    /// Whether the filter leaves such a row out. It is asked of rows with the old prefix only, also here.
    pub fn is_left_out(&self, pattern: &str) -> String {
        match &self.filter {
            Some(filter) => {
                let (has_prefix, filter) = (self.has_prefix(pattern), filter.sql());
                format!("CASE WHEN {has_prefix} THEN {filter} IS NOT TRUE ELSE false END")
            }
            // A parameter has to be used.
            None => format!("{pattern}::text IS NULL"),
        }
    }

    /// As it is set.
    pub fn filter_text(&self) -> Option<&str> {
        self.filter.as_ref().map(RowFilter::text)
    }

    fn has_prefix(&self, pattern: &str) -> String {
        format!(
            r#"t.{}::text COLLATE "C" LIKE {pattern} ESCAPE '\'"#,
            self.path
        )
    }
}

async fn find_relation<'a>(
    pool: &'a PgPool,
    spec: &TableSpec,
) -> Result<TableDetails<'a>, LedgerError> {
    let query = sqlx::query_as(SELECT_RELATION).bind(&spec.table);
    let found: Option<RelationInfo> = match query.fetch_optional(pool).await {
        // From `parse_ident`.
        Err(error) if has_sqlstate(&error, &["22023"]) => {
            let problem = format!("'{}' {TABLE_NAME_PROBLEM}", spec.table);
            return Err(LedgerError::setting(TABLE_SETTING, problem));
        }
        found => found?,
    };
    let Some(found) = found else {
        return Err(no_such_table_error(pool, spec).await?);
    };
    let schema = quote_identifier(&found.schema);
    let table = TableDetails {
        pool,
        oid: found.oid,
        name: format!("{}.{}", found.schema, found.name),
        sql: format!("{schema}.{}", quote_identifier(&found.name)),
        is_partitioned: found.kind == "p",
        schema,
    };
    let kind = match found.kind.as_str() {
        "r" | "p" => return Ok(table),
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        "i" | "I" => "an index",
        _ => "something else",
    };
    let problem = format!("'{}' is {kind}, not a table", table.name);
    Err(LedgerError::setting(TABLE_SETTING, problem))
}

async fn no_such_table_error(pool: &PgPool, spec: &TableSpec) -> Result<LedgerError, LedgerError> {
    let name = spec.table.rsplit('.').next().unwrap_or_default();
    let name = name.replace('"', "").to_lowercase();
    let tables: Vec<(String, String)> = sqlx::query_as(SELECT_TABLES)
        .bind(&name)
        .fetch_all(pool)
        .await?;
    let typos = |(table, other): (String, String)| (osa_distance(&name, &other), table);
    let mut similar: Vec<_> = tables.into_iter().map(typos).collect();
    similar.retain(|(typos, _)| *typos <= MAX_TYPOS.min(name.chars().count() / 4));
    similar.sort_unstable();
    similar.truncate(MAX_SUGGESTIONS);
    let names: Vec<String> = similar.into_iter().map(|(_, table)| table).collect();
    let hint = match names.len() {
        0 => String::new(),
        _ => format!(" (did you mean {}?)", names.join(" or ")),
    };
    Ok(no_table(&spec.table, &hint))
}

fn no_table(table: &str, hint: &str) -> LedgerError {
    LedgerError::setting(TABLE_SETTING, format!("there is no table '{table}'{hint}"))
}

/// A table that was found.
pub(super) struct TableDetails<'a> {
    pub(super) pool: &'a PgPool,
    pub(super) oid: i64,
    pub(super) name: String,
    /// Quoted.
    schema: String,
    /// Schema and table, quoted.
    sql: String,
    is_partitioned: bool,
}

const SELECT_OID: &str = "SELECT to_regclass($1)::oid::bigint";

impl<'a> TableDetails<'a> {
    /// A table that is known to be one, quoted as in SQL.
    pub(super) async fn open(pool: &'a PgPool, table: &str) -> Result<Self, LedgerError> {
        let query = sqlx::query_scalar(SELECT_OID).bind(table);
        let oid: Option<i64> = query.fetch_one(pool).await?;
        Ok(Self {
            pool,
            oid: oid.ok_or_else(|| no_table(table, ""))?,
            name: table.to_owned(),
            schema: String::new(),
            is_partitioned: false,
            sql: table.to_owned(),
        })
    }

    pub(super) async fn column_named(
        &self,
        column: &str,
    ) -> Result<Option<ColumnInfo>, sqlx::Error> {
        let query = sqlx::query_as(SELECT_COLUMN).bind(self.oid).bind(column);
        query.fetch_optional(self.pool).await
    }

    pub(super) async fn find_column(
        &self,
        setting: &'static str,
        column: &str,
    ) -> Result<ColumnInfo, LedgerError> {
        if let Some(found) = self.column_named(column).await? {
            return Ok(found);
        }
        let query = sqlx::query_scalar(LIST_COLUMNS).bind(self.oid);
        let columns: String = query.fetch_one(self.pool).await?;
        let table = &self.name;
        let problem = format!("table '{table}' has no column '{column}' (it has {columns})");
        Err(LedgerError::setting(setting, problem))
    }

    /// A column that is there cannot be used.
    pub(super) fn refuse_column(
        &self,
        setting: &'static str,
        column: &str,
        problem: &str,
    ) -> LedgerError {
        let problem = format!("'{column}' of table '{}' {problem}", self.name);
        LedgerError::setting(setting, problem)
    }

    pub(super) fn refuse_type(
        &self,
        setting: &'static str,
        name: &str,
        column: &ColumnInfo,
        supported: &str,
    ) -> LedgerError {
        let found = &column.declared_type;
        let problem = format!("is of type {found}, supported: {supported}");
        self.refuse_column(setting, name, &problem)
    }

    fn check_path(&self, spec: &TableSpec, path: &ColumnInfo) -> Result<(), LedgerError> {
        let (setting, name) = ("PATH_COLUMN", &spec.path_column);
        if !matches!(path.type_name.as_str(), "text" | "varchar" | "citext") {
            return Err(self.refuse_type(setting, name, path, "text, varchar, citext"));
        }
        if path.is_generated {
            let problem = "is a generated column and cannot be set";
            return Err(self.refuse_column(setting, name, problem));
        }
        Ok(())
    }

    async fn check_privileges(
        &self,
        spec: &TableSpec,
        access: TableAccess,
        id: &TableId,
        path: i16,
    ) -> Result<(), LedgerError> {
        let TablePrivileges {
            user_name: user,
            schema_usage,
            select,
            update,
        } = sqlx::query_as(SELECT_PRIVILEGES)
            .bind(self.oid)
            .bind(&id.numbers)
            .bind(path)
            .fetch_one(self.pool)
            .await?;
        if schema_usage && select && (update || access == TableAccess::Read) {
            return Ok(());
        }
        let role = quote_identifier(&user);
        let (id, path) = (id.columns.list(), quote_identifier(&spec.path_column));
        let (what, update) = match access {
            TableAccess::Read => ("read", String::new()),
            TableAccess::Update => ("read and update", format!(", UPDATE ({path})")),
        };
        let (schema, table) = (&self.schema, &self.sql);
        Err(LedgerError::NotAllowed {
            user,
            what: format!("{what} table '{}'", self.name),
            sql: format!(
                "GRANT USAGE ON SCHEMA {schema} TO {role};\nGRANT SELECT ({id}, {path}){update} ON {table} TO {role};"
            ),
        })
    }
}
