//! The columns of `ID_COLUMN`: found, and checked to identify a row and to give the table an order.

use sqlx::postgres::PgPool;

use super::LedgerError;
use super::id_columns::IdColumns;
use super::table::{ColumnInfo, TableDetails, TableSpec};
use crate::row_id::{IdColumnType, IdType, MAX_ID_COLUMNS};

const ID_SETTING: &str = "ID_COLUMN";

const SUPPORTED_TYPES: &str = "bigint, integer, smallint, uuid, text, varchar, character; beside another column date, timestamp";

const NOT_UNIQUE: &str = "does not identify a row: it needs a primary key or a unique index on no other columns, in the column's collation (of a composite key name all columns: ID_COLUMN=tenant_id,id; tables with inheritance children are not supported)";

pub(super) struct TableId {
    pub(super) columns: IdColumns,
    /// `pg_attribute.attnum`
    pub(super) numbers: Vec<i16>,
}

type NamedColumn = (String, ColumnInfo);

/// The unique index on no other columns than `$2`, as their numbers in its order; that on most of them.
///
/// An index under another collation, or with columns in different directions, gives no page in the order of
/// ids, and one of an inheritance parent says nothing of its children.
const SELECT_UNIQUE_KEY: &str =
    "SELECT ARRAY(SELECT k.number FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k (number, place)
                   WHERE k.place <= i.indnkeyatts ORDER BY k.place) AS key
    FROM pg_index i
    WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
      AND (SELECT count(DISTINCT direction) = 1 FROM unnest(i.indoption::smallint[]) direction)
      AND NOT EXISTS (
        SELECT 1 FROM unnest(i.indkey::smallint[], i.indcollation::oid[]) k (number, collation_oid)
          LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
         WHERE k.collation_oid IS NOT NULL AND (k.number <> ALL ($2) OR k.collation_oid <> a.attcollation))
      AND NOT EXISTS (SELECT 1 FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhparent
                       WHERE c.oid = $1::oid AND c.relkind = 'r')
    ORDER BY i.indnkeyatts DESC, i.indisprimary DESC, i.indexrelid LIMIT 1";

/// A name with a comma in it is that of one column.
pub(super) async fn find_id(
    table: &TableDetails<'_>,
    spec: &TableSpec,
) -> Result<Vec<NamedColumn>, LedgerError> {
    let setting = &spec.id_column;
    if let Some(column) = table.column_named(setting).await? {
        return Ok(vec![(setting.clone(), column)]);
    }
    let mut columns: Vec<NamedColumn> = Vec::new();
    for name in setting.split(',').map(str::trim) {
        let column = table.find_column(ID_SETTING, name).await?;
        let refuse =
            |problem: String| LedgerError::setting(ID_SETTING, format!("'{setting}': {problem}"));
        if name == spec.path_column {
            return Err(refuse(format!("'{name}' is PATH_COLUMN too")));
        }
        if columns.iter().any(|(other, _)| other == name) {
            return Err(refuse(format!("'{name}' is named twice")));
        }
        if columns.len() == MAX_ID_COLUMNS {
            let problem = format!("there are more than {MAX_ID_COLUMNS} columns");
            return Err(refuse(problem));
        }
        columns.push((name.to_owned(), column));
    }
    Ok(columns)
}

/// The same columns of another table, a partition's parent for example, where rows may share them.
///
/// # Errors
/// A column is not there, or of no type that an id may have.
pub async fn find_id_columns(
    pool: &PgPool,
    table: &str,
    id_column: &str,
) -> Result<IdColumns, LedgerError> {
    let table = TableDetails::open(pool, table).await?;
    let spec = TableSpec {
        table: table.name.clone(),
        id_column: id_column.to_owned(),
        path_column: String::new(),
    };
    let columns = find_id(&table, &spec).await?;
    Ok(read_id(&table, &columns, false).await?.columns)
}

pub(super) async fn check_id(
    table: &TableDetails<'_>,
    columns: Vec<NamedColumn>,
) -> Result<TableId, LedgerError> {
    let id = read_id(table, &columns, true).await?;
    if let Some((column, _)) = columns.iter().find(|(_, column)| !column.is_not_null) {
        // Rows without an id would never be found.
        let problem = "may be null: it must be declared NOT NULL";
        return Err(table.refuse_column(ID_SETTING, column, problem));
    }
    Ok(id)
}

async fn read_id(
    table: &TableDetails<'_>,
    columns: &[NamedColumn],
    must_be_unique: bool,
) -> Result<TableId, LedgerError> {
    let is_single = must_be_unique && columns.len() == 1;
    let types = columns
        .iter()
        .map(|column| column_type(table, column, is_single));
    let types: Vec<IdColumnType> = types.collect::<Result<_, _>>()?;
    let names: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
    let numbers: Vec<i16> = columns.iter().map(|(_, column)| column.number).collect();
    let key = select_unique_key(table, &numbers).await?;
    let id_type = IdType::from_columns(&types).filter(|_| key.is_some() || !must_be_unique);
    let id_type =
        id_type.ok_or_else(|| table.refuse_column(ID_SETTING, &names.join(","), NOT_UNIQUE))?;
    let index_order = order_of(&numbers, &key.unwrap_or_default());
    Ok(TableId {
        columns: IdColumns::new(names, id_type, index_order),
        numbers,
    })
}

async fn select_unique_key(
    table: &TableDetails<'_>,
    numbers: &[i16],
) -> Result<Option<Vec<i16>>, sqlx::Error> {
    let query = sqlx::query_scalar(SELECT_UNIQUE_KEY).bind(table.oid);
    query.bind(numbers).fetch_optional(table.pool).await
}

/// Positions of the columns as the index has them, and then those that it does not need.
fn order_of(numbers: &[i16], key: &[i16]) -> Vec<usize> {
    let position = |number| numbers.iter().position(|other| other == number);
    let mut order: Vec<usize> = key.iter().filter_map(position).collect();
    let rest = (0..numbers.len()).filter(|position| !order.contains(position));
    let rest: Vec<usize> = rest.collect();
    order.extend(rest);
    order
}

fn column_type(
    table: &TableDetails<'_>,
    (name, column): &NamedColumn,
    is_single: bool,
) -> Result<IdColumnType, LedgerError> {
    let found = IdColumnType::from_type_name(&column.type_name);
    found
        .filter(|id_type| !is_single || id_type.can_be_single())
        .ok_or_else(|| table.refuse_type(ID_SETTING, name, column, SUPPORTED_TYPES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_decides_the_order() {
        assert_eq!(order_of(&[3, 1], &[1, 3]), [1, 0]);
        assert_eq!(order_of(&[3, 1, 7], &[1]), [1, 0, 2]);
    }
}
