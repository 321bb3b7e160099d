//! Rows that have failed because there is no such object: their paths may mean one by other letters, where the
//! application composes, trims or lowers them before it asks for it.

use std::collections::HashSet;

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use unicode_normalization::UnicodeNormalization as _;

use super::key_filter::hash_of;
use crate::statements::Pages;

const FAILED_PATHS: &str = "SELECT row_id, path FROM bucket_brigade.failures
    WHERE run_id = $1 AND code = 'NoSuchKey' AND row_id AFTER $2 ORDER BY row_id LIMIT 10000";

#[derive(sqlx::FromRow)]
struct FailedPath {
    row_id: String,
    path: String,
}

/// Hashes of the keys without what letters differ in: a collision keeps one object more.
#[derive(Debug, Default)]
pub(super) struct FailedPaths(HashSet<u64>);

impl FailedPaths {
    pub(super) async fn read(ledger: &PostgresLedger) -> Result<Self, StatementError> {
        let (mut keys, mut pages) = (HashSet::new(), Pages::new(ledger, FAILED_PATHS));
        while let Some(page) = pages.next(|row: &FailedPath| &row.row_id).await? {
            let routes = page
                .iter()
                .filter_map(|row| ledger.rule().route_for(&row.path).ok());
            keys.extend(routes.map(|route| hash_of(plain_letters(&route.source_key))));
        }
        Ok(Self(keys))
    }

    pub(super) fn may_mean(&self, key: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&hash_of(plain_letters(key)))
    }
}

/// Composed, in small letters, and without what is not seen.
fn plain_letters(text: &str) -> String {
    let visible = text.nfkc().filter(|letter| !is_invisible(*letter));
    visible.flat_map(char::to_lowercase).collect()
}

fn is_invisible(letter: char) -> bool {
    let is_format =
        matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}');
    is_format || letter.is_whitespace() || letter.is_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_told_apart_by_what_is_seen() {
        for other in [
            "image/cafe\u{301}.png",
            "image/CAFÉ.png",
            "image/café.png\u{a0}",
            "\u{feff}image/ca\u{200b}fé.png",
            "image/ｃafé.png",
        ] {
            assert_eq!(
                plain_letters(other),
                plain_letters("image/café.png"),
                "{other}"
            );
        }
        assert_ne!(
            plain_letters("image/cafe.png"),
            plain_letters("image/café.png")
        );
    }
}
