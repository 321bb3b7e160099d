//! A row's id: text in messages and in the ledger, its own type in the application's table.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A row's id in the spelling Postgres gives it when cast to text.
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

/// The types an id column may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdColumnType {
    Smallint,
    Integer,
    Bigint,
    Uuid,
    /// `text` or `varchar`
    Text,
    /// `character(n)`, whose trailing blanks mean nothing.
    Character,
}

impl IdColumnType {
    /// The type for a name from `pg_type.typname`; none when it is not supported.
    pub fn from_type_name(name: &str) -> Option<Self> {
        match name {
            "int2" => Some(Self::Smallint),
            "int4" => Some(Self::Integer),
            "int8" => Some(Self::Bigint),
            "uuid" => Some(Self::Uuid),
            "text" | "varchar" => Some(Self::Text),
            "bpchar" => Some(Self::Character),
            _ => None,
        }
    }

    /// The type to cast a text parameter to, so that the id's own index serves the comparison.
    pub fn sql_type(self) -> &'static str {
        match self {
            Self::Smallint => "smallint",
            Self::Integer => "integer",
            Self::Bigint => "bigint",
            Self::Uuid => "uuid",
            Self::Text => "text",
            // `character` would be that of one character.
            Self::Character => "bpchar",
        }
    }

    /// Reads an id out of a message: none when Postgres could not cast it. One bad id would fail
    /// the whole statement it takes part in, so none may get that far.
    pub fn parse(self, text: &str) -> Option<RowId> {
        match self {
            Self::Smallint => text.parse::<i16>().ok().map(|id| RowId(id.to_string())),
            Self::Integer => text.parse::<i32>().ok().map(|id| RowId(id.to_string())),
            Self::Bigint => text.parse::<i64>().ok().map(|id| RowId(id.to_string())),
            Self::Uuid => is_uuid(text).then(|| RowId(text.to_ascii_lowercase())),
            Self::Text => (!text.contains('\0')).then(|| RowId(text.to_owned())),
            Self::Character => Self::Text.parse(text.trim_end_matches(' ')),
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
        assert_eq!(IdColumnType::Bigint.parse("007").unwrap().as_str(), "7");
        assert_eq!(IdColumnType::Bigint.parse("-3").unwrap().as_str(), "-3");
        assert!(IdColumnType::Integer.parse("2147483648").is_none());
        assert!(IdColumnType::Smallint.parse("40000").is_none());
        for bad in [
            "",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "0x1",
            "1;DROP TABLE images",
            "٣",
        ] {
            assert!(IdColumnType::Bigint.parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn uuids_are_lowercased_as_postgres_prints_them() {
        let id = IdColumnType::Uuid
            .parse("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11")
            .unwrap();
        assert_eq!(id.as_str(), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
        for bad in [
            "",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ] {
            assert!(IdColumnType::Uuid.parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn text_is_anything_postgres_can_hold() {
        assert_eq!(IdColumnType::Text.parse("a'b").unwrap().as_str(), "a'b");
        assert!(IdColumnType::Text.parse("a\0b").is_none());
    }
}
