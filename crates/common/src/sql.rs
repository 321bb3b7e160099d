//! Quoting of names and patterns in SQL: the one place where text becomes part of a statement.

use std::fmt;

use thiserror::Error;

/// A table as the settings name it: `images`, `app.images` or, where a name itself holds a dot,
/// `"my.schema"."images"`. Names are taken as written, without case folding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// The schema; none to search the connection's search path.
    pub schema: Option<String>,
    /// The table's own name.
    pub table: String,
}

/// A table name that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a table name: write table, schema.table, or \"quoted\".\"names\"")]
pub struct TableNameError(String);

impl TableName {
    /// Reads a name as the settings spell it.
    ///
    /// # Errors
    /// [`BadTableName`] for more than two parts, an empty part or an unbalanced quote.
    pub fn parse(text: &str) -> Result<Self, TableNameError> {
        let bad = || TableNameError(text.to_owned());
        let mut parts = split_names(text).ok_or_else(bad)?;
        let table = parts.pop().ok_or_else(bad)?;
        let schema = parts.pop();
        if parts.is_empty() {
            Ok(Self { schema, table })
        } else {
            Err(bad())
        }
    }

    /// The name for use in a statement.
    pub fn to_sql(&self) -> String {
        match &self.schema {
            Some(schema) => format!(
                "{}.{}",
                quote_identifier(schema),
                quote_identifier(&self.table)
            ),
            None => quote_identifier(&self.table),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

/// Splits `a.b` and `"a.b"."c"` into names; none when a part is empty or a quote is left open.
fn split_names(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = text;
    loop {
        let (name, after) = parse_name(rest)?;
        names.push(name);
        match after.strip_prefix('.') {
            Some(more) => rest = more,
            None if after.is_empty() => return Some(names),
            None => return None,
        }
    }
}

fn parse_name(text: &str) -> Option<(String, &str)> {
    let (name, after) = match text.strip_prefix('"') {
        None => {
            let end = text.find('.').unwrap_or(text.len());
            (text[..end].to_owned(), &text[end..])
        }
        Some(quoted) => parse_quoted_name(quoted)?,
    };
    (!name.is_empty() && !name.contains('\0')).then_some((name, after))
}

/// Reads up to the closing quote; a doubled quote stands for one.
fn parse_quoted_name(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, rest)),
        }
    }
}

/// An identifier as Postgres reads it back unchanged, whatever it contains.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The `LIKE` pattern for "starts with this, literally", for use with `ESCAPE '\'`.
pub fn like_prefix(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for character in prefix.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table_names() {
        let name = |text| TableName::parse(text).map(|name| name.to_sql());
        assert_eq!(name("images").unwrap(), r#""images""#);
        assert_eq!(name("app.Images").unwrap(), r#""app"."Images""#);
        assert_eq!(name(r#""a.b"."c""d""#).unwrap(), r#""a.b"."c""d""#);
        for bad in ["", ".", "a.", ".a", "a.b.c", "\"a", "\"a\"b", "\"\""] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(
            name("images; DROP TABLE users").unwrap(),
            r#""images; DROP TABLE users""#
        );
    }

    #[test]
    fn wildcards_lose_their_meaning() {
        assert_eq!(like_prefix(r"a_b%c\"), r"a\_b\%c\\%");
    }

    /// What `LIKE … ESCAPE '\'` does, for patterns without an unescaped `_`.
    fn matches_like(text: &str, pattern: &str) -> bool {
        let mut text = text.chars();
        let mut pattern = pattern.chars();
        loop {
            match pattern.next() {
                None => return text.next().is_none(),
                Some('%') => return pattern.next().is_none(),
                Some('\\') if text.next() != pattern.next() => return false,
                Some('\\') => {}
                Some(literal) if text.next() != Some(literal) => return false,
                Some(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn an_identifier_reads_back_unchanged(name in "[^\0]{1,20}") {
            let quoted = quote_identifier(&name);
            let inner = &quoted[1..quoted.len() - 1];
            prop_assert!(!inner.replace("\"\"", "").contains('"'));
            prop_assert_eq!(inner.replace("\"\"", "\""), name.clone());
            prop_assert_eq!(TableName::parse(&quoted).unwrap().table, name);
        }

        #[test]
        fn a_pattern_matches_exactly_what_starts_with_the_prefix(
            prefix in r"[ab%_\\]{0,6}", text in r"[ab%_\\]{0,10}",
        ) {
            prop_assert_eq!(matches_like(&text, &like_prefix(&prefix)), text.starts_with(&prefix));
        }
    }
}
