//! The id's columns in SQL, the one place that knows whether there are several.
//!
//! In statements `t` is the application's table. What selects rows out of it for another part of the statement
//! gives their columns the names `key`, `key2`, and so on.

use crate::row_id::{IdColumnType, IdType};
use crate::sql::quote_identifier;

/// The columns that identify a row, in the order of the setting.
#[derive(Debug, Clone)]
pub struct IdColumns {
    plain_names: Vec<String>,
    /// Quoted.
    names: Vec<String>,
    id_type: IdType,
    /// Positions in the order of the index that rows are read through.
    index_order: Vec<usize>,
}

impl IdColumns {
    pub(super) fn new(names: Vec<String>, id_type: IdType, index_order: Vec<usize>) -> Self {
        Self {
            names: names.iter().map(|name| quote_identifier(name)).collect(),
            plain_names: names,
            id_type,
            index_order,
        }
    }

    /// As the catalogs have them.
    pub fn plain_names(&self) -> &[String] {
        &self.plain_names
    }

    pub fn id_type(&self) -> IdType {
        self.id_type
    }

    /// For a GRANT: `"a", "b"`.
    pub fn list(&self) -> String {
        self.names.join(", ")
    }

    /// For an index: the same in its order.
    pub fn index_list(&self) -> String {
        self.in_index_order(|position| self.names[position].clone())
    }

    /// One column, which is null where there is no row.
    pub fn first(&self, table: &str) -> String {
        format!("{table}.{}", self.names[0])
    }

    /// The id as text, as messages and the ledger have it.
    pub fn as_text(&self, table: &str) -> String {
        self.columns_as_text(|at| format!("{table}.{}", self.names[at]))
    }

    /// The same of the columns that [`Self::as_keys`] has named.
    pub fn keys_as_text(&self, of: &str) -> String {
        self.columns_as_text(|at| format!("{of}.{}", key_name(at)))
    }

    fn columns_as_text(&self, column: impl Fn(usize) -> String) -> String {
        let types = self.id_type.columns();
        if types.len() == 1 {
            return format!("{}::text", column(0));
        }
        let elements = self.each(", ", |at, _| to_json(&column(at), types[at]));
        format!("json_build_array({elements})::text")
    }

    /// `t.a AS key, t.b AS key2`
    pub fn as_keys(&self, table: &str) -> String {
        self.each(", ", |at, name| {
            format!("{table}.{name} AS {}", key_name(at))
        })
    }

    /// `s.key, s.key2`
    pub fn keys(&self, of: &str) -> String {
        self.each(", ", |at, _| format!("{of}.{}", key_name(at)))
    }

    /// For ORDER BY, as the index has it.
    pub fn order(&self, table: &str) -> String {
        self.in_index_order(|position| format!("{table}.{}", self.names[position]))
    }

    /// The other way round.
    pub fn order_desc(&self, table: &str) -> String {
        self.in_index_order(|position| format!("{table}.{} DESC", self.names[position]))
    }

    /// The same of the columns that [`Self::as_keys`] has named.
    pub fn key_order(&self, of: &str) -> String {
        self.in_index_order(|position| format!("{of}.{}", key_name(position)))
    }

    /// The same, descending.
    pub fn key_order_desc(&self, of: &str) -> String {
        self.in_index_order(|position| format!("{of}.{} DESC", key_name(position)))
    }

    /// Whether a row is the one of an id as text.
    pub fn matches(&self, table: &str, text: &str) -> String {
        let values = self.cast(text);
        self.each(" AND ", |at, name| {
            format!("{table}.{name} = {}", values[at])
        })
    }

    /// Whether a row is the one of these keys.
    pub fn matches_keys(&self, table: &str, of: &str) -> String {
        self.each(" AND ", |at, name| {
            format!("{table}.{name} = {of}.{}", key_name(at))
        })
    }

    /// Whether a row is one of an array of ids as text.
    pub fn matches_any(&self, table: &str, texts: &str) -> String {
        if let ([name], [of_type]) = (&*self.names, self.id_type.columns()) {
            let of_type = of_type.sql_type();
            return format!("{table}.{name} = ANY ({texts}::text[]::{of_type}[])");
        }
        let row = self.each(", ", |_, name| format!("{table}.{name}"));
        let values = self.cast("i.id").join(", ");
        format!("({row}) IN (SELECT {values} FROM unnest({texts}::text[]) AS i (id))")
    }

    /// Whether a row comes after the one of an id as text, in the index's order.
    pub fn is_after(&self, table: &str, text: &str) -> String {
        let values = self.cast(&format!("{text}::text"));
        let values = self.in_index_order(|position| values[position].clone());
        match &*self.names {
            [name] => format!("{table}.{name} > {values}"),
            _ => format!("({}) > ({values})", self.order(table)),
        }
    }

    /// What the columns' values are in an id as text.
    fn cast(&self, text: &str) -> Vec<String> {
        let types = self.id_type.columns();
        if let [of_type] = types {
            return vec![format!("{text}::{}", of_type.sql_type())];
        }
        let types = types.iter().enumerate();
        types
            .map(|(position, of_type)| from_json(text, position, *of_type))
            .collect()
    }

    /// In the order of the setting.
    fn each(&self, separator: &str, part: impl Fn(usize, &str) -> String) -> String {
        let names = self.names.iter().enumerate();
        let parts: Vec<String> = names.map(|(at, name)| part(at, name)).collect();
        parts.join(separator)
    }

    fn in_index_order(&self, part: impl Fn(usize) -> String) -> String {
        let order = self.index_order.iter();
        let parts: Vec<String> = order.map(|position| part(*position)).collect();
        parts.join(", ")
    }
}

fn key_name(position: usize) -> String {
    match position {
        0 => "key".into(),
        _ => format!("key{}", position + 1),
    }
}

/// In the spelling of ISO 8601 whatever the session's `DateStyle`, and of UTC whatever its time zone.
fn to_json(column: &str, of_type: IdColumnType) -> String {
    match of_type {
        IdColumnType::TimestampTz => format!("({column} AT TIME ZONE 'UTC')"),
        IdColumnType::Character => format!("{column}::text"),
        _ => format!("{column}::{}", of_type.sql_type()),
    }
}

fn from_json(text: &str, position: usize, of_type: IdColumnType) -> String {
    let element = format!("({text}::jsonb ->> {position})");
    match of_type {
        IdColumnType::TimestampTz => format!("({element}::timestamp AT TIME ZONE 'UTC')"),
        _ => format!("{element}::{}", of_type.sql_type()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_column_is_itself() {
        let id_type = IdColumnType::Integer.into();
        let id = IdColumns::new(vec!["id".into()], id_type, vec![0]);
        assert_eq!(id.as_text("t"), "t.\"id\"::text");
        assert_eq!(id.matches("t", "i.id"), "t.\"id\" = i.id::bigint");
        assert_eq!(id.is_after("t", "$4"), "t.\"id\" > $4::text::bigint");
        assert_eq!(
            id.matches_any("t", "$2"),
            "t.\"id\" = ANY ($2::text[]::bigint[])"
        );
        assert_eq!(id.as_keys("t"), "t.\"id\" AS key");
    }

    #[test]
    fn several_are_compared_in_the_order_of_the_index() {
        let types = [IdColumnType::TimestampTz, IdColumnType::Integer];
        let id_type = IdType::from_columns(&types).unwrap();
        let id = IdColumns::new(vec!["at".into(), "n".into()], id_type, vec![1, 0]);
        assert_eq!(
            id.as_text("t"),
            r#"json_build_array((t."at" AT TIME ZONE 'UTC'), t."n"::bigint)::text"#
        );
        assert_eq!(
            id.is_after("t", "$4"),
            r#"(t."n", t."at") > (($4::text::jsonb ->> 1)::bigint, (($4::text::jsonb ->> 0)::timestamp AT TIME ZONE 'UTC'))"#
        );
        assert_eq!(
            id.matches_keys("t", "l"),
            r#"t."at" = l.key AND t."n" = l.key2"#
        );
        assert_eq!(id.key_order("s"), "s.key2, s.key");
    }
}
