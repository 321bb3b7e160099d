//! Checks the companions that were copied with an image: what is wrong with one is wrong with its row.

use bucket_brigade_common::companions::Companion;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::BucketSide;

use super::check::{CopyComparison, MoveChecker, concurrent_write_message, mismatch_finding};
use super::classify::{MoveVerdict, classify_move};
use super::verification::VerificationFinding;
use crate::moved_row::{MovedRow, recorded_companions};
use crate::retrying_store::{is_object_error, retry_object_request, stat_object};
use crate::statements::retry_statement;

/// `$1` run, `$2` row, `$3` pattern, `$4` the new ETag, `$5` the old one.
const RECORD_COPY: &str = "UPDATE bucket_brigade.moves
    SET companions = jsonb_set(companions, ARRAY[$3::text], to_jsonb($4::text))
    WHERE run_id = $1 AND row_id = $2 AND companions ->> $3 = $5";

impl MoveChecker<'_> {
    /// What is wrong with the first companion that is not as it should be.
    pub(super) async fn check_companions(
        &self,
        row: &MovedRow,
    ) -> anyhow::Result<Option<(&'static str, String)>> {
        for (companion, etag) in recorded_companions(self.rule, row) {
            let finding = match self.check_companion(row, &companion, etag).await {
                Err(error) if is_object_error(&error) => {
                    mismatch_finding("Unreadable", error.to_string())
                }
                found => found?,
            };
            if let Some(new_etag) = &finding.new_etag {
                let etags = (etag, new_etag.as_str());
                let record = async || record_copy(self.ledger, row, companion.pattern, etags).await;
                retry_statement(record).await?;
            }
            if let Some((code, message)) = finding.mismatch {
                let key = &companion.route.destination_key;
                return Ok(Some((code, format!("its companion '{key}': {message}"))));
            }
        }
        Ok(None)
    }

    async fn check_companion(
        &self,
        row: &MovedRow,
        companion: &Companion<'_>,
        etag: &str,
    ) -> Result<VerificationFinding, StoreError> {
        let route = &companion.route;
        let copy = stat_object(self.store, BucketSide::Destination, &route.destination_key);
        let copy = copy.await?;
        let source = self.find_source(route, row).await?;
        let recorded = MovedRow {
            etag: etag.to_owned(),
            size_bytes: None,
            ..row.clone()
        };
        match classify_move(&recorded, copy.as_ref(), &source) {
            MoveVerdict::Intact => Ok(VerificationFinding::default()),
            MoveVerdict::Mismatch(code, message) => Ok(mismatch_finding(code, message)),
            MoveVerdict::CopyReplaced => {
                let found = copy.map_or_else(String::new, |copy| copy.etag);
                let message = format!(
                    "another object stands in the copy's place (ETag {found}, recorded {etag})"
                );
                self.adopt_companion(companion, message).await
            }
            MoveVerdict::SourceChanged(message) => {
                self.recopy_companion(&recorded, companion, message).await
            }
            MoveVerdict::NeedsComparison => match self.compare_copy(route).await? {
                CopyComparison::Equal(_) => Ok(VerificationFinding::default()),
                CopyComparison::Different(message) => {
                    self.recopy_companion(&recorded, companion, message).await
                }
                CopyComparison::Missing => {
                    Ok(mismatch_finding("SourceGone", concurrent_write_message()))
                }
            },
        }
    }

    /// A copy that an earlier verify made, and was killed before it could record it, is as good.
    async fn adopt_companion(
        &self,
        companion: &Companion<'_>,
        message: String,
    ) -> Result<VerificationFinding, StoreError> {
        if self.recopies
            && let CopyComparison::Equal(etag) = self.compare_copy(&companion.route).await?
        {
            return Ok(VerificationFinding {
                new_etag: Some(etag),
                ..VerificationFinding::default()
            });
        }
        Ok(mismatch_finding("CopyReplaced", message))
    }

    async fn recopy_companion(
        &self,
        recorded: &MovedRow,
        companion: &Companion<'_>,
        message: String,
    ) -> Result<VerificationFinding, StoreError> {
        if !self.recopies || !recorded.is_current() {
            return Ok(mismatch_finding("SourceChanged", message));
        }
        let (route, ours) = (&companion.route, &recorded.etag);
        match retry_object_request(async || self.store.replace_copy(route, ours).await).await {
            Ok(copied) => {
                let compared = self.compare_copy(route).await?;
                let is_equal = matches!(compared, CopyComparison::Equal(_));
                Ok(VerificationFinding {
                    mismatch: (!is_equal).then(|| ("SourceChanged", concurrent_write_message())),
                    new_etag: Some(copied.etag),
                    ..VerificationFinding::default()
                })
            }
            Err(StoreError::DestinationExists) => Ok(mismatch_finding("SourceChanged", message)),
            Err(error) if is_object_error(&error) => {
                Ok(mismatch_finding("RecopyFailed", error.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}

async fn record_copy(
    ledger: &PostgresLedger,
    row: &MovedRow,
    pattern: &str,
    (old, new): (&str, &str),
) -> Result<(), StatementError> {
    let query = sqlx::query(RECORD_COPY).bind(ledger.run_id());
    let query = query.bind(&row.id).bind(pattern).bind(new).bind(old);
    with_timeout(query.execute(ledger.pool())).await.map(drop)
}
