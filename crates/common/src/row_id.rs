//! A row's id: text in messages and in the ledger, its own types in the application's table.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id_time;

/// Columns of an id at most.
pub const MAX_ID_COLUMNS: usize = 8;

/// A row's id in the spelling Postgres gives it when cast to text; of several columns, a JSON array.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowId(String);

impl RowId {
    /// Takes text that Postgres itself produced from an id.
    pub fn from_database(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdColumnType {
    /// Whatever its width, which may grow while a run is under way: an index serves the widest, too.
    Integer,
    Uuid,
    /// `text` or `varchar`
    Text,
    /// `character(n)`, whose trailing blanks mean nothing.
    Character,
    /// The last three only beside another column: rows share them.
    Date,
    Timestamp,
    TimestampTz,
}

/// The types of an id's columns, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdType {
    columns: [IdColumnType; MAX_ID_COLUMNS],
    count: usize,
}

impl From<IdColumnType> for IdType {
    fn from(column: IdColumnType) -> Self {
        Self {
            columns: [column; MAX_ID_COLUMNS],
            count: 1,
        }
    }
}

impl IdType {
    /// None when there are no columns, or too many.
    pub fn from_columns(types: &[IdColumnType]) -> Option<Self> {
        if types.len() > MAX_ID_COLUMNS {
            return None;
        }
        let mut columns = [*types.first()?; MAX_ID_COLUMNS];
        columns[..types.len()].copy_from_slice(types);
        let count = types.len();
        Some(Self { columns, count })
    }

    pub fn columns(&self) -> &[IdColumnType] {
        &self.columns[..self.count]
    }

    /// Reads an id out of a message: none when Postgres could not cast it. One bad id would fail
    /// the whole statement it takes part in, so none may get that far.
    pub fn parse(self, text: &str) -> Option<RowId> {
        if let [column] = self.columns() {
            return column.parse(text);
        }
        let parts: Vec<Value> = serde_json::from_str(text).ok()?;
        if parts.len() != self.count {
            return None;
        }
        let parts = self.columns().iter().zip(parts);
        let parts: Option<Vec<String>> = parts.map(|(column, part)| column.to_json(part)).collect();
        Some(RowId(format!("[{}]", parts?.join(", "))))
    }
}

/// As SQL names the types.
impl fmt::Display for IdType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.columns().iter().map(|one| one.sql_type()).collect();
        match &*names {
            [name] => f.write_str(name),
            names => write!(f, "[{}]", names.join(", ")),
        }
    }
}

impl IdColumnType {
    /// The type for a name from `pg_type.typname`; none when it is not supported.
    pub fn from_type_name(name: &str) -> Option<Self> {
        match name {
            "int2" | "int4" | "int8" => Some(Self::Integer),
            "uuid" => Some(Self::Uuid),
            "text" | "varchar" => Some(Self::Text),
            "bpchar" => Some(Self::Character),
            "date" => Some(Self::Date),
            "timestamp" => Some(Self::Timestamp),
            "timestamptz" => Some(Self::TimestampTz),
            _ => None,
        }
    }

    /// Whether it may be the only column of an id.
    pub fn can_be_single(self) -> bool {
        !matches!(self, Self::Date | Self::Timestamp | Self::TimestampTz)
    }

    /// An element of an id of several columns, as Postgres's `json_build_array` writes it.
    fn to_json(self, part: Value) -> Option<String> {
        let text = match part {
            Value::String(text) => text,
            Value::Number(number) if number.is_i64() => number.to_string(),
            _ => return None,
        };
        let id = self.parse(&text)?;
        match self {
            Self::Integer => Some(id.0),
            _ => serde_json::to_string(&id.0).ok(),
        }
    }

    /// The type to cast a text parameter to, so that the id's own index serves the comparison.
    pub fn sql_type(self) -> &'static str {
        match self {
            Self::Integer => "bigint",
            Self::Uuid => "uuid",
            Self::Text => "text",
            // `character` would be that of one character.
            Self::Character => "bpchar",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::TimestampTz => "timestamptz",
        }
    }

    /// Reads one column of an id; see [`IdType::parse`].
    pub fn parse(self, text: &str) -> Option<RowId> {
        match self {
            Self::Integer => text.parse::<i64>().ok().map(|id| RowId(id.to_string())),
            Self::Uuid => is_uuid(text).then(|| RowId(text.to_ascii_lowercase())),
            Self::Text => (!text.contains('\0')).then(|| RowId(text.to_owned())),
            Self::Character => Self::Text.parse(text.trim_end_matches(' ')),
            Self::Date => id_time::is_date(text).then(|| RowId(text.to_owned())),
            Self::Timestamp | Self::TimestampTz => {
                id_time::is_timestamp(text).then(|| RowId(text.to_owned()))
            }
        }
    }
}

/// The hyphenated spelling only: it is the one Postgres prints.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_bounded_and_canonical() {
        assert_eq!(IdColumnType::Integer.parse("007").unwrap().as_str(), "7");
        assert_eq!(IdColumnType::Integer.parse("-3").unwrap().as_str(), "-3");
        assert!(IdColumnType::Integer.parse("9223372036854775808").is_none());
        for bad in "| 1|1 |1.0|1e3|0x1|1;DROP TABLE images|٣".split('|') {
            assert!(IdColumnType::Integer.parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn uuids_are_lowercased_as_postgres_prints_them() {
        let id = IdColumnType::Uuid
            .parse("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11")
            .unwrap();
        assert_eq!(id.as_str(), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
        let bad = "|a0eebc999c0b4ef8bb6d6bb9bd380a11|g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        for bad in bad.split('|') {
            assert!(IdColumnType::Uuid.parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_id_of_several_columns_is_a_json_array() {
        use IdColumnType::{Character, Integer, TimestampTz};
        let id_type = IdType::from_columns(&[Integer, Character, TimestampTz]).unwrap();
        let id = id_type.parse(r#"["007","a\u0022b  ","2024-02-29T01:02:03.5"]"#);
        assert_eq!(
            id.unwrap().as_str(),
            r#"[7, "a\"b", "2024-02-29T01:02:03.5"]"#
        );
        for bad in [
            "7",
            "[7]",
            r#"[7, "a", "2024-02-30T00:00:00"]"#,
            r#"[7, "a", "2024-02-29T00:00:00", 1]"#,
            r#"[7.0, "a", "2024-02-29T00:00:00"]"#,
            r#"[7, null, "2024-02-29T00:00:00"]"#,
            r#"[7, "a\u0000", "2024-02-29T00:00:00"]"#,
            r#"[7, "a", "2024-02-29T00:00:00"); DROP TABLE images; --"]"#,
        ] {
            assert!(id_type.parse(bad).is_none(), "{bad}");
        }
        assert_eq!(id_type.to_string(), "[bigint, bpchar, timestamptz]");
        assert!(IdType::from_columns(&[]).is_none());
        assert!(IdType::from_columns(&[Integer; 9]).is_none());
    }

    #[test]
    fn text_is_anything_postgres_can_hold() {
        assert_eq!(IdColumnType::Text.parse("a'b").unwrap().as_str(), "a'b");
        assert!(IdColumnType::Text.parse("a\0b").is_none());
    }
}
