//! Where paths are percent-encoded, several of them may name one source. It goes once, and only when the moves off
//! all of them may lose it.

use std::collections::{BTreeMap, HashMap};

use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use bucket_brigade_common::path_encoding::PathEncoding;
use tokio_util::sync::CancellationToken;

use super::batch::CHANGED_REASON;
use super::key_filter::KeyFilter;
use super::removals::{ObjectRemoval, RemovalLedger, RemovalOutcome, RemovalOutcomes};
use crate::command_throttle::CommandThrottle;
use crate::statements::Pages;

/// Moves read by one statement.
const STRETCH_ROWS: usize = 20_000;

/// Of a stretch the moves whose source may not go yet, and the last.
pub(super) fn unsettled_sql(age_seconds: f64) -> String {
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT row_id, old_path,
           coalesce((verified_at > moved_at OR abandoned_at > moved_at)
                    AND moved_at <= now() - make_interval(secs => {age_seconds})
                    AND source_etag IS NOT NULL, false) AS may_go
      FROM bucket_brigade.moves WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT {STRETCH_ROWS}
), marked AS (
    SELECT *, lead(row_id) OVER (ORDER BY row_id) IS NULL AS is_last, count(*) OVER () AS rows FROM stretch
)
SELECT row_id, old_path, may_go, rows FROM marked WHERE is_last OR NOT may_go ORDER BY row_id"
    )
}

/// `$1` run, `$2` key, `$3` ETag.
const SELECT_REMOVED: &str = "SELECT EXISTS (SELECT 1 FROM bucket_brigade.removals
    WHERE run_id = $1 AND object_key = $2 AND is_encoded AND NOT is_orphan AND etag = $3
      AND removing_at IS NOT NULL)";

/// Keys of sources that some move off them keeps: a collision keeps one object more.
#[derive(Debug, Default)]
pub(super) struct UnsettledSources(KeyFilter);

#[derive(sqlx::FromRow)]
struct StretchMove {
    row_id: String,
    old_path: String,
    may_go: bool,
    /// Of the stretch.
    rows: i64,
}

impl UnsettledSources {
    /// Reads all moves, a stretch at a time; none where each source has one path.
    pub(super) async fn read(
        removals: RemovalLedger<'_>,
        throttle: &CommandThrottle<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let (mut sources, ledger) = (Self::default(), removals.ledger);
        if !removals.has_encoded_paths() {
            return Ok(sources);
        }
        let progress = ledger.run_progress().await?;
        throttle.begin_phase("looking for moves that are not verified", progress.moved);
        let mut pages = Pages::new(ledger, unsettled_sql(removals.age_seconds));
        loop {
            throttle.acquire(0, stop).await?;
            let Some(stretch) = pages.next(|one: &StretchMove| &one.row_id).await? else {
                return Ok(sources);
            };
            let unsettled = stretch.iter().filter(|one| !one.may_go);
            let routes = unsettled.filter_map(|one| ledger.rule().route_for(&one.old_path).ok());
            routes.for_each(|route| sources.0.insert(&route.source_key));
            let rows = stretch.first().map_or(0, |one| one.rows);
            throttle.advance_by(usize::try_from(rows)?);
        }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

impl RemovalLedger<'_> {
    pub(super) fn has_encoded_paths(&self) -> bool {
        !self.orphans && self.ledger.rule().encoding() != PathEncoding::None
    }

    pub(super) async fn is_removed_by_other_path(
        &self,
        removal: &ObjectRemoval,
    ) -> Result<bool, StatementError> {
        if !self.has_encoded_paths() {
            return Ok(false);
        }
        let query = sqlx::query_scalar(SELECT_REMOVED).bind(self.ledger.run_id());
        let query = query.bind(&removal.object_key).bind(&removal.etag);
        with_timeout(query.fetch_one(self.ledger.pool())).await
    }
}

/// Removals of a page whose objects go by another path of the page.
#[derive(Default)]
pub(super) struct OtherPaths(HashMap<String, Vec<ObjectRemoval>>);

impl OtherPaths {
    /// Takes them out of the page. Where the records of one object differ, it stays.
    pub(super) fn split_off(page: &mut Vec<ObjectRemoval>, outcomes: &mut RemovalOutcomes) -> Self {
        let mut others = Self::default();
        let mut by_key: BTreeMap<String, Vec<ObjectRemoval>> = BTreeMap::new();
        for removal in page.drain(..) {
            by_key
                .entry(removal.object_key.clone())
                .or_default()
                .push(removal);
        }
        for (key, mut same) in by_key {
            if same.iter().any(|one| one.etag != same[0].etag) {
                let kept = || RemovalOutcome::Kept(CHANGED_REASON.into());
                outcomes.extend(same.into_iter().map(|one| (one, kept())));
                continue;
            }
            let is_request_alive = same.iter().any(|one| one.is_request_alive);
            for one in &mut same {
                one.is_request_alive = is_request_alive;
            }
            // The one whose copy can be looked at speaks for all.
            same.sort_by_key(|one| one.copy_etag.is_none());
            let rest = same.split_off(1);
            page.extend(same);
            if !rest.is_empty() {
                others.0.insert(key, rest);
            }
        }
        others
    }

    /// What became of the objects became of them.
    pub(super) fn add_outcomes(mut self, outcomes: &mut RemovalOutcomes) {
        let mut more = Vec::new();
        for (removal, outcome) in &*outcomes {
            let others = self.0.remove(&removal.object_key).unwrap_or_default();
            more.extend(others.into_iter().map(|other| (other, outcome.clone())));
        }
        outcomes.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(path: &str, key: &str, etag: &str) -> ObjectRemoval {
        ObjectRemoval {
            path: path.into(),
            object_key: key.into(),
            etag: etag.into(),
            is_marked: true,
            ..ObjectRemoval::default()
        }
    }

    #[test]
    fn an_object_goes_by_one_of_its_paths() {
        let mut page = vec![
            removal("i/a%20b", "i/a b", "1"),
            removal("i/a b", "i/a b", "1"),
            removal("i/c", "i/c", "1"),
            removal("i/d", "i/d", "1"),
            removal("i/%64", "i/d", "2"),
        ];
        let mut outcomes = Vec::new();
        let others = OtherPaths::split_off(&mut page, &mut outcomes);
        let paths: Vec<&str> = page.iter().map(|one| &*one.path).collect();
        assert_eq!(paths, ["i/a%20b", "i/c"]);
        assert_eq!(outcomes.len(), 2, "their records differ");
        let removed = page
            .into_iter()
            .map(|one| (one, RemovalOutcome::Removed(None)));
        outcomes.extend(removed);
        others.add_outcomes(&mut outcomes);
        assert_eq!(outcomes.len(), 5);
        let (last, outcome) = &outcomes[4];
        assert_eq!(
            (&*last.path, outcome),
            ("i/a b", &RemovalOutcome::Removed(None))
        );
    }
}
