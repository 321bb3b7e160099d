//! Checks one move, and with `--recopy` copies it anew.

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::object_store::objects::{BucketSide, ObjectStat};
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::object_store::{DestinationState, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};

use super::classify::{MoveVerdict, SourceObject, classify_move, is_source_unchanged};
use super::queries::current_path;
use super::verification::VerificationFinding;
use crate::moved_row::MovedRow;
use crate::retrying_store::{is_object_error, retry_object_request, stat_object};
use crate::statements::retry_statement;

/// Checks of a move that changes meanwhile, before the last one counts.
const MAX_ATTEMPTS: u32 = 4;

pub(super) struct MoveChecker<'a> {
    pub(super) store: &'a S3Store,
    /// The ledger and the table.
    pub(super) ledger: &'a PostgresLedger,
    pub(super) rule: &'a PathRule,
    /// Whether copies are made anew.
    pub(super) recopies: bool,
}

enum CheckAttempt {
    Final(VerificationFinding),
    Retry(VerificationFinding),
}

/// The move that is being checked.
struct CheckedMove<'a> {
    row: &'a MovedRow,
    route: MoveRoute,
    copy: Option<ObjectStat>,
    source: SourceObject,
}

impl MoveChecker<'_> {
    /// Checks one move.
    ///
    /// # Errors
    /// The store or the database does not answer.
    pub(super) async fn check_move(
        &self,
        mut row: MovedRow,
    ) -> anyhow::Result<(MovedRow, VerificationFinding)> {
        let mut finding = VerificationFinding::default();
        for _ in 0..MAX_ATTEMPTS {
            match self.check_once(&row).await {
                Ok(CheckAttempt::Final(found)) => {
                    finding = self.with_companions(&row, found).await?;
                    break;
                }
                Ok(CheckAttempt::Retry(found)) => finding = found,
                Err(error) if is_object_error(&error) => {
                    finding = mismatch_finding("Unreadable", error.to_string());
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if finding.mismatch.is_some() {
            row.current_path =
                retry_statement(async || current_path(self.ledger, &row.id).await).await?;
        }
        if !row.is_current() {
            finding.is_outdated = true;
            finding.mismatch = None;
        }
        Ok((row, finding))
    }

    async fn with_companions(
        &self,
        row: &MovedRow,
        finding: VerificationFinding,
    ) -> anyhow::Result<VerificationFinding> {
        if row.companions.0.is_empty() || !finding.is_intact {
            return Ok(finding);
        }
        let mismatch = self.check_companions(row).await?;
        Ok(VerificationFinding {
            is_intact: mismatch.is_none(),
            mismatch,
            ..finding
        })
    }

    async fn check_once(&self, row: &MovedRow) -> Result<CheckAttempt, StoreError> {
        let Ok(route) = self.rule.route_for(&row.old_path) else {
            let message = "its old path is outside the path rule".into();
            return Ok(CheckAttempt::Final(mismatch_finding(
                "OutsideRule",
                message,
            )));
        };
        let copy = stat_object(self.store, BucketSide::Destination, &route.destination_key).await?;
        let source = self.find_source(&route, row).await?;
        if let Some(header) = unreadable_header(copy.as_ref(), &source) {
            let message = format!("its header {header} is not UTF-8");
            return Ok(CheckAttempt::Final(mismatch_finding("Unreadable", message)));
        }
        let verdict = classify_move(row, copy.as_ref(), &source);
        let subject = CheckedMove {
            row,
            route,
            copy,
            source,
        };
        let mut attempt = self.resolve_verdict(&subject, verdict).await?;
        let (CheckAttempt::Final(finding) | CheckAttempt::Retry(finding)) = &mut attempt;
        subject.add_source(finding);
        Ok(attempt)
    }

    pub(super) async fn find_source(
        &self,
        route: &MoveRoute,
        row: &MovedRow,
    ) -> Result<SourceObject, StoreError> {
        if row.is_source_removed {
            return Ok(SourceObject::Removed);
        }
        let stat = stat_object(self.store, BucketSide::Source, &route.source_key);
        Ok(match stat.await? {
            Some(stat) => SourceObject::Present(stat),
            None => SourceObject::Missing,
        })
    }

    async fn resolve_verdict(
        &self,
        subject: &CheckedMove<'_>,
        verdict: MoveVerdict,
    ) -> Result<CheckAttempt, StoreError> {
        match verdict {
            MoveVerdict::Intact => Ok(CheckAttempt::Final(subject.intact_finding())),
            MoveVerdict::Mismatch(code, message) => {
                Ok(CheckAttempt::Final(mismatch_finding(code, message)))
            }
            MoveVerdict::SourceChanged(message) => self.recopy_changed(subject, message).await,
            MoveVerdict::NeedsComparison => match self.compare_copy(&subject.route).await? {
                CopyComparison::Equal(_) => Ok(CheckAttempt::Final(subject.intact_finding())),
                CopyComparison::Different(message) => self.recopy_changed(subject, message).await,
                CopyComparison::Missing => Ok(CheckAttempt::Retry(mismatch_finding(
                    "SourceGone",
                    concurrent_write_message(),
                ))),
            },
            MoveVerdict::CopyReplaced if self.recopies => {
                match self.compare_copy(&subject.route).await? {
                    CopyComparison::Equal(etag) => {
                        Ok(CheckAttempt::Final(subject.adopted_finding(etag)))
                    }
                    _ => Ok(CheckAttempt::Final(replaced_finding())),
                }
            }
            MoveVerdict::CopyReplaced => Ok(CheckAttempt::Final(replaced_finding())),
        }
    }

    /// The source is not what was copied: a mismatch, or copied anew where the row still names our copy.
    async fn recopy_changed(
        &self,
        subject: &CheckedMove<'_>,
        message: String,
    ) -> Result<CheckAttempt, StoreError> {
        let finding = mismatch_finding("SourceChanged", message);
        if !self.recopies || !subject.row.is_current() {
            return Ok(CheckAttempt::Final(finding));
        }
        let (route, ours) = (&subject.route, &subject.row.etag);
        match retry_object_request(async || self.store.replace_copy(route, ours).await).await {
            Ok(copied) => self.finding_after_recopy(subject, copied.etag).await,
            // Another row's check was first, or the application.
            Err(StoreError::DestinationExists) => Ok(CheckAttempt::Retry(finding)),
            Err(error) if is_object_error(&error) => Ok(CheckAttempt::Final(mismatch_finding(
                "RecopyFailed",
                error.to_string(),
            ))),
            Err(error) => Err(error),
        }
    }

    /// The new copy is intact if the source was the same before and after it was made.
    async fn finding_after_recopy(
        &self,
        subject: &CheckedMove<'_>,
        etag: String,
    ) -> Result<CheckAttempt, StoreError> {
        let copy = stat_object(
            self.store,
            BucketSide::Destination,
            &subject.route.destination_key,
        )
        .await?;
        let source = stat_object(self.store, BucketSide::Source, &subject.route.source_key).await?;
        let is_same = source.is_some_and(|source| subject.source == SourceObject::Present(source));
        let finding = VerificationFinding {
            is_intact: is_same,
            mismatch: (!is_same).then(|| ("SourceChanged", concurrent_write_message())),
            size_bytes: copy.map(|copy| copy.size_bytes),
            ..subject.adopted_finding(etag)
        };
        Ok(CheckAttempt::Final(finding))
    }

    pub(super) async fn compare_copy(
        &self,
        route: &MoveRoute,
    ) -> Result<CopyComparison, StoreError> {
        match retry_object_request(async || self.store.compare_objects(route).await).await {
            Ok(DestinationState::Same(copied)) => Ok(CopyComparison::Equal(copied.etag)),
            Ok(DestinationState::Different(what)) => Ok(CopyComparison::Different(format!(
                "the source was written since: {what}"
            ))),
            Ok(DestinationState::Empty | DestinationState::WithoutSource(_)) => {
                Ok(CopyComparison::Missing)
            }
            Err(StoreError::Permanent { code, .. }) if code == "NoSuchKey" => {
                Ok(CopyComparison::Missing)
            }
            Err(error) => Err(error),
        }
    }
}

/// A copy against its source.
pub(super) enum CopyComparison {
    /// Equal; the copy's ETag.
    Equal(String),
    Different(String),
    /// One of them vanished.
    Missing,
}

impl CheckedMove<'_> {
    /// What the source says of itself: it may go although its copy is the application's by now.
    fn add_source(&self, finding: &mut VerificationFinding) {
        finding.is_source_unchanged = is_source_unchanged(self.row, &self.source);
        if let SourceObject::Present(stat) = &self.source {
            finding.source_etag = Some(stat.etag.clone());
        }
    }

    fn intact_finding(&self) -> VerificationFinding {
        VerificationFinding {
            is_intact: true,
            size_bytes: self.copy.as_ref().map(|copy| copy.size_bytes),
            ..VerificationFinding::default()
        }
    }

    /// The copy is a newer one of ours.
    fn adopted_finding(&self, etag: String) -> VerificationFinding {
        VerificationFinding {
            new_etag: Some(etag),
            ..self.intact_finding()
        }
    }
}

fn replaced_finding() -> VerificationFinding {
    VerificationFinding {
        is_outdated: true,
        ..VerificationFinding::default()
    }
}

fn unreadable_header(copy: Option<&ObjectStat>, source: &SourceObject) -> Option<&'static str> {
    let source = match source {
        SourceObject::Present(stat) => Some(stat),
        SourceObject::Removed | SourceObject::Missing => None,
    };
    copy.into_iter()
        .chain(source)
        .find_map(|stat| stat.unreadable_header)
}

pub(super) fn concurrent_write_message() -> String {
    "the source was written while it was checked".into()
}

pub(super) fn mismatch_finding(code: &'static str, message: String) -> VerificationFinding {
    VerificationFinding {
        mismatch: Some((code, message)),
        ..VerificationFinding::default()
    }
}
