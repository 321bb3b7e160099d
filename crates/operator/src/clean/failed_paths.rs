//! Rows that have failed because there is no such object: their paths may mean one by other letters, where the
//! application composes, trims or lowers them before it asks for it.

use bucket_brigade_common::ledger::PostgresLedger;
use tokio_util::sync::CancellationToken;
use unicode_normalization::UnicodeNormalization as _;

use super::key_filter::KeyFilter;
use crate::command_throttle::CommandThrottle;
use crate::statements::Pages;

/// Whatever they failed with: a page costs the same where few of many have such a code.
const FAILED_PATHS: &str =
    "SELECT row_id, path, code = 'NoSuchKey' AS is_missing FROM bucket_brigade.failures
    WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT 10000";

#[derive(sqlx::FromRow)]
struct FailedPath {
    row_id: String,
    path: String,
    is_missing: bool,
}

/// The keys without what letters differ in.
#[derive(Debug, Default)]
pub(super) struct FailedPaths(KeyFilter);

impl FailedPaths {
    pub(super) async fn read(
        ledger: &PostgresLedger,
        throttle: &CommandThrottle<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let (mut keys, mut pages) = (KeyFilter::default(), Pages::new(ledger, FAILED_PATHS));
        loop {
            throttle.acquire(0, stop).await?;
            let Some(page) = pages.next(|row: &FailedPath| &row.row_id).await? else {
                return Ok(Self(keys));
            };
            let missing = page.iter().filter(|row| row.is_missing);
            let routes = missing.filter_map(|row| ledger.rule().route_for(&row.path).ok());
            routes.for_each(|route| keys.insert(&plain_letters(&route.source_key)));
        }
    }

    pub(super) fn may_mean(&self, key: &str) -> bool {
        self.0.contains(&plain_letters(key))
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
