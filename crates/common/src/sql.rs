//! Quoting of names and patterns in SQL: the one place where text becomes part of a statement.

/// Whether a column names this bucket, as far as names tell: an access point's ARN or alias may be any bucket's.
#[macro_export]
macro_rules! may_be_bucket {
    ($column:literal, $name:literal) => {
        concat!(
            "(",
            $column,
            " = ",
            $name,
            " OR concat('|', ",
            $column,
            ", '|', ",
            $name,
            ", '|') ~ '[|]arn:|-s3alias[|]')"
        )
    };
}

/// An identifier as Postgres reads it back unchanged, whatever it contains.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as a literal that Postgres reads back unchanged, whatever `standard_conforming_strings` is.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
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
    fn literals_cannot_be_left() {
        assert_eq!(quote_literal("a'b"), "'a''b'");
        assert_eq!(quote_literal(r"a\'b"), r"E'a\\''b'");
    }

    #[test]
    fn wildcards_lose_their_meaning() {
        assert_eq!(like_prefix(r"a_b%c\"), r"a\_b\%c\\%");
    }

    proptest! {
        #[test]
        fn an_identifier_reads_back_unchanged(name in "[^\0]{1,20}") {
            let quoted = quote_identifier(&name);
            let inner = &quoted[1..quoted.len() - 1];
            prop_assert!(!inner.replace("\"\"", "").contains('"'));
            prop_assert_eq!(inner.replace("\"\"", "\""), name);
        }
    }
}
