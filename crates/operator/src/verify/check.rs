//! Checks one move and the companions that were copied with it; with `--recopy` copies them anew.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};
use bucket_brigade_common::object_store::objects::{BucketSide, ObjectStat};
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::object_store::{DestinationState, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::MoveRoute;
use tokio_util::sync::CancellationToken;

use super::lister::ListedPage;
use super::queries::current_path;
use super::verification::{Mismatch, VerificationFinding};
use crate::move_verdict::{MoveVerdict, SourceObject, classify_move, is_source_unchanged};
use crate::moved_row::{MovedRow, recorded_companions};
use crate::page_pipeline::until_stopped;
use crate::path_column::PathColumn;
use crate::retrying_store::{is_object_error, retry_about_object, stat_object};
use crate::statements::retry_statement;

/// Checks of a move that changes meanwhile, before the last one counts.
const MAX_ATTEMPTS: u32 = 4;

const CONCURRENT_WRITE: &str = "the source was written while it was checked";

/// `$1` run, `$2` row, `$3` the new ETag, `$4` the old one.
pub(super) const RECORD_RECOPY: &str =
    "UPDATE bucket_brigade.moves SET etag = $3, recopied_at = now(), verified_at = NULL, abandoned_at = NULL
    WHERE run_id = $1 AND row_id = $2 AND etag = $4";

/// `$1` run, `$2` row, `$3` pattern, `$4` the new ETag, `$5` the old one.
pub(super) const RECORD_COMPANION: &str = "UPDATE bucket_brigade.moves
    SET companions = jsonb_set(companions, ARRAY[$3::text], to_jsonb($4::text)), verified_at = NULL, abandoned_at = NULL
    WHERE run_id = $1 AND row_id = $2 AND companions ->> $3 = $5";

pub(super) struct MoveChecker<'a> {
    pub(super) store: &'a S3Store,
    /// The ledger and the table.
    pub(super) ledger: &'a PostgresLedger,
    pub(super) column: &'a PathColumn,
    pub(super) recopies: bool,
    /// Whether the dates of source and copy are of one clock.
    pub(super) is_one_store: bool,
    pub(super) stop: &'a CancellationToken,
}

enum CheckAttempt {
    Final(VerificationFinding),
    Retry(VerificationFinding),
}

/// What was read of an object.
enum ObjectReading<'a> {
    Checked(CheckAttempt),
    /// The source is to be copied anew, and why.
    Outdated(CheckedObject<'a>, Mismatch),
}

/// The image of a move, or a companion of it, as it was found.
struct CheckedObject<'a> {
    row: &'a MovedRow,
    route: &'a MoveRoute,
    copy: Option<ObjectStat>,
    source: SourceObject,
    is_one_store: bool,
}

impl MoveChecker<'_> {
    /// What is to be looked at; nothing where all must be compared, since their dates are of two clocks.
    pub(super) fn keys_of(&self, rows: &[MovedRow]) -> Vec<(BucketSide, String)> {
        let rule = self.ledger.rule();
        let rows = rows.iter().filter(|_| self.is_one_store);
        let routes = rows.flat_map(|row| {
            let companions = recorded_companions(rule, row).into_iter();
            let companions = companions.map(|(companion, _)| companion.route);
            rule.route_for(&row.old_path).into_iter().chain(companions)
        });
        let objects = routes.flat_map(|route| {
            let source = (BucketSide::Source, route.source_key);
            [source, (BucketSide::Destination, route.destination_key)]
        });
        objects.collect()
    }

    pub(super) async fn check_move(
        &self,
        mut row: MovedRow,
        listed: &ListedPage,
    ) -> anyhow::Result<(MovedRow, VerificationFinding)> {
        let mut finding = match self.ledger.rule().route_for(&row.old_path) {
            Ok(route) => self.check_object(&row, &route, listed).await?,
            Err(_) => mismatch_finding(
                "OutsideRule",
                "its old path is outside the path rule".into(),
            ),
        };
        if let Some(new_etag) = &finding.new_etag {
            self.record_recopy(&row, new_etag).await?;
            row.etag.clone_from(new_etag);
        }
        if finding.is_intact {
            finding.mismatch = self.check_companions(&row, listed).await?;
            finding.is_intact = finding.mismatch.is_none();
        }
        if finding.mismatch.is_some() {
            let read = retry_statement(async || current_path(self.ledger, &row.id).await);
            row.current_path = until_stopped(self.stop, read).await?;
        }
        if !row.is_current() {
            finding.is_outdated = true;
            finding.mismatch = None;
        }
        Ok((row, finding))
    }

    /// At once: a copy of ours that is not on record looks like the application's.
    async fn record_recopy(&self, row: &MovedRow, new_etag: &str) -> Result<(), StatementError> {
        let record = async || {
            let query = sqlx::query(RECORD_RECOPY).bind(self.ledger.run_id());
            let query = query.bind(&row.id).bind(new_etag).bind(&row.etag);
            with_timeout(query.execute(self.ledger.pool())).await
        };
        retry_statement(record).await.map(drop)
    }

    /// What is wrong with the first companion that is not as it should be is wrong with its row.
    async fn check_companions(
        &self,
        row: &MovedRow,
        listed: &ListedPage,
    ) -> anyhow::Result<Option<Mismatch>> {
        for (companion, etag) in recorded_companions(self.ledger.rule(), row) {
            let recorded = row.of_companion(etag);
            let mut finding = self
                .check_object(&recorded, &companion.route, listed)
                .await?;
            if finding.is_outdated {
                let message = "another object stands in the copy's place".into();
                finding.mismatch = Some(("CopyReplaced", message));
            }
            if let Some(new_etag) = &finding.new_etag {
                let record = async || {
                    let query = sqlx::query(RECORD_COMPANION).bind(self.ledger.run_id());
                    let query = query.bind(&row.id).bind(companion.pattern);
                    let query = query.bind(new_etag).bind(etag);
                    with_timeout(query.execute(self.ledger.pool())).await
                };
                retry_statement(record).await?;
            }
            if let Some((code, message)) = finding.mismatch {
                let key = &companion.route.destination_key;
                return Ok(Some((code, format!("its companion '{key}': {message}"))));
            }
        }
        Ok(None)
    }

    async fn check_object(
        &self,
        row: &MovedRow,
        route: &MoveRoute,
        listed: &ListedPage,
    ) -> anyhow::Result<VerificationFinding> {
        if let Some(intact) = self.find_intact(row, route, listed) {
            return Ok(intact);
        }
        let mut finding = VerificationFinding::default();
        for _ in 0..MAX_ATTEMPTS {
            match self.check_once(row, route).await {
                Ok(CheckAttempt::Final(found)) => return Ok(found),
                Ok(CheckAttempt::Retry(found)) => finding = found,
                Err(error) if error.downcast_ref().is_some_and(is_object_error) => {
                    return Ok(mismatch_finding("Unreadable", error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(finding)
    }

    /// None where a listing does not prove it.
    fn find_intact(
        &self,
        row: &MovedRow,
        route: &MoveRoute,
        listed: &ListedPage,
    ) -> Option<VerificationFinding> {
        let copy = listed[BucketSide::Destination as usize].get(&route.destination_key)?;
        let sources = &listed[BucketSide::Source as usize];
        let source = if !row.is_source_removed {
            SourceObject::Present(sources.get(&route.source_key)?.clone())
        } else if row.is_companion || sources.lacks(&route.source_key) {
            SourceObject::Removed
        } else {
            return None;
        };
        let object = CheckedObject {
            row,
            route,
            copy: Some(copy.clone()),
            source,
            is_one_store: self.is_one_store,
        };
        let verdict = classify_move(row, Some(copy), &object.source, self.is_one_store);
        (verdict == MoveVerdict::Intact).then(|| object.intact(None))
    }

    /// Reading ends at the stop; a copy that is begun is finished.
    async fn check_once(&self, row: &MovedRow, route: &MoveRoute) -> anyhow::Result<CheckAttempt> {
        match until_stopped(self.stop, self.read_objects(row, route)).await? {
            ObjectReading::Checked(attempt) => Ok(attempt),
            ObjectReading::Outdated(object, mismatch) => self.recopy(&object, mismatch).await,
        }
    }

    async fn read_objects<'o>(
        &self,
        row: &'o MovedRow,
        route: &'o MoveRoute,
    ) -> Result<ObjectReading<'o>, StoreError> {
        let stat = async |side, key| stat_object(self.store, side, key).await;
        let copy = stat(BucketSide::Destination, &route.destination_key).await?;
        let source = match stat(BucketSide::Source, &route.source_key).await? {
            // Clean may have left one that its image went without.
            Some(_) if row.is_source_removed && row.is_companion => SourceObject::Removed,
            Some(_) if row.is_source_removed => SourceObject::Rewritten,
            Some(source) => SourceObject::Present(source),
            None if row.is_source_removed || row.is_source_in_removal => SourceObject::Removed,
            None => SourceObject::Missing,
        };
        if let Some(header) = unreadable_header(copy.as_ref(), &source) {
            let message = format!("its header {header} is not UTF-8");
            let finding = mismatch_finding("Unreadable", message);
            return Ok(ObjectReading::Checked(CheckAttempt::Final(finding)));
        }
        let object = CheckedObject {
            row,
            route,
            copy,
            source,
            is_one_store: self.is_one_store,
        };
        let copy = object.copy.as_ref();
        let found = match classify_move(row, copy, &object.source, self.is_one_store) {
            MoveVerdict::Intact => object.intact(None),
            MoveVerdict::Mismatch(code, message)
                if copy.is_none() && object.source.stat().is_some() =>
            {
                return Ok(ObjectReading::Outdated(object, (code, message)));
            }
            MoveVerdict::Mismatch(code, message) => object.mismatch((code, message)),
            MoveVerdict::SourceChanged(message) => {
                let mismatch = ("SourceChanged", message);
                return Ok(ObjectReading::Outdated(object, mismatch));
            }
            MoveVerdict::NeedsComparison => match self.compare_copy(route).await? {
                DestinationState::Same(_) => object.intact(None),
                DestinationState::Different(what) => {
                    let mismatch = object.difference(&what);
                    return Ok(ObjectReading::Outdated(object, mismatch));
                }
                DestinationState::Empty | DestinationState::WithoutSource(_) => {
                    let found = object.mismatch(("SourceGone", CONCURRENT_WRITE.into()));
                    return Ok(ObjectReading::Checked(CheckAttempt::Retry(found)));
                }
            },
            MoveVerdict::CopyReplaced if self.recopies => match self.compare_copy(route).await? {
                // A copy that an earlier verify made, and was killed before it could record it.
                DestinationState::Same(copied) => object.intact(Some(copied.etag)),
                _ => object.replaced(),
            },
            MoveVerdict::CopyReplaced => object.replaced(),
        };
        Ok(ObjectReading::Checked(CheckAttempt::Final(found)))
    }

    /// The source is not what was copied, or the copy is gone: a mismatch, or copied anew where the row still names our
    /// copy.
    async fn recopy(
        &self,
        object: &CheckedObject<'_>,
        mismatch: Mismatch,
    ) -> anyhow::Result<CheckAttempt> {
        let mut finding = object.mismatch(mismatch);
        if !self.recopies || !object.row.is_current() {
            return Ok(CheckAttempt::Final(finding));
        }
        if let Some(reason) = self.why_not_recopied(object).await? {
            if let Some((_, message)) = &mut finding.mismatch {
                *message = format!("{message}; not copied anew: {reason}");
            }
            return Ok(CheckAttempt::Final(finding));
        }
        // Whoever deletes an image deletes its row next, too.
        if object.copy.is_none() && self.has_new_path(object.row).await? {
            return Ok(CheckAttempt::Final(finding));
        }
        let (route, ours) = (object.route, &object.row.etag);
        let replace = async || match object.copy {
            Some(_) => self.store.replace_copy(route, ours).await,
            None => self.store.copy_whole(route).await,
        };
        match retry_about_object(self.store, route, replace).await {
            Ok(copied) => Ok(self.finding_after_recopy(object, copied.etag).await?),
            // Another row's check was first, or the application.
            Err(StoreError::DestinationExists) => Ok(CheckAttempt::Retry(finding)),
            Err(error) if is_object_error(&error) => Ok(CheckAttempt::Final(
                object.mismatch(("RecopyFailed", error.to_string())),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Neither the application's object is overwritten, nor the last bytes of an image by another's.
    async fn why_not_recopied(
        &self,
        object: &CheckedObject<'_>,
    ) -> anyhow::Result<Option<&'static str>> {
        if object.copy.is_some() && object.row.is_found {
            let reason = "the consumer found it there, and it may be the application's";
            return Ok(Some(reason));
        }
        if object.is_source_unchanged() {
            return Ok(None);
        }
        let path = std::slice::from_ref(&object.row.old_path);
        let named = self.column.find_paths(self.ledger, path, "true");
        let named = until_stopped(self.stop, named).await?;
        Ok((!named.is_empty()).then_some("a row names the source, which is that row's image"))
    }

    async fn has_new_path(&self, row: &MovedRow) -> anyhow::Result<bool> {
        let read = retry_statement(async || current_path(self.ledger, &row.id).await);
        Ok(until_stopped(self.stop, read).await? != row.current_path)
    }

    /// The new copy is intact if the source was the same before and after it was made.
    async fn finding_after_recopy(
        &self,
        object: &CheckedObject<'_>,
        etag: String,
    ) -> Result<CheckAttempt, StoreError> {
        let MoveRoute {
            source_key,
            destination_key,
            ..
        } = object.route;
        let copy = stat_object(self.store, BucketSide::Destination, destination_key).await?;
        if copy.as_ref().is_none_or(|copy| copy.etag != etag) {
            // The application has written it since.
            let finding = object.mismatch(("SourceChanged", CONCURRENT_WRITE.into()));
            return Ok(CheckAttempt::Retry(finding));
        }
        let compared = self.compare_copy(object.route).await?;
        let source = stat_object(self.store, BucketSide::Source, source_key).await?;
        let is_same = source.is_some_and(|source| object.source == SourceObject::Present(source));
        let mismatch = match compared {
            DestinationState::Same(_) if is_same => None,
            DestinationState::Different(what) if is_same => {
                let message = format!("the store has not copied all: {what}");
                Some(("CopyDiffers", message))
            }
            _ => Some(("SourceChanged", CONCURRENT_WRITE.into())),
        };
        Ok(CheckAttempt::Final(VerificationFinding {
            is_intact: mismatch.is_none(),
            mismatch,
            size_bytes: copy.map(|copy| copy.size_bytes),
            ..object.intact(Some(etag))
        }))
    }

    /// What has vanished meanwhile reads as no copy.
    async fn compare_copy(&self, route: &MoveRoute) -> Result<DestinationState, StoreError> {
        let compare = async || self.store.compare_objects(route).await;
        match retry_about_object(self.store, route, compare).await {
            Err(StoreError::Permanent { code, .. }) if code == "NoSuchKey" => {
                Ok(DestinationState::Empty)
            }
            compared => compared,
        }
    }
}

impl CheckedObject<'_> {
    /// What the source says of itself: it may go although its copy is the application's by now.
    fn finding(&self) -> VerificationFinding {
        let source_etag = self.source.stat().map(|stat| stat.etag.clone());
        VerificationFinding {
            is_source_unchanged: self.is_source_unchanged(),
            source_etag,
            ..VerificationFinding::default()
        }
    }

    fn is_source_unchanged(&self) -> bool {
        is_source_unchanged(self.row, &self.source, self.is_one_store)
    }

    /// `new_etag` where the copy is a newer one of ours.
    fn intact(&self, new_etag: Option<String>) -> VerificationFinding {
        VerificationFinding {
            is_intact: true,
            size_bytes: self.copy.as_ref().map(|copy| copy.size_bytes),
            new_etag,
            ..self.finding()
        }
    }

    /// A source with the recorded ETag may have been changed in its headers alone, where the store has kept all.
    fn difference(&self, what: &str) -> Mismatch {
        let message = format!("source and copy are not the same: {what}");
        match &self.source {
            SourceObject::Present(source) if source.etag == self.row.etag => {
                let cause = "the store keeps no such thing, or it was changed since";
                ("CopyDiffers", format!("{message}; {cause}"))
            }
            _ => ("SourceChanged", message),
        }
    }

    fn mismatch(&self, mismatch: Mismatch) -> VerificationFinding {
        VerificationFinding {
            mismatch: Some(mismatch),
            ..self.finding()
        }
    }

    fn replaced(&self) -> VerificationFinding {
        VerificationFinding {
            is_outdated: true,
            ..self.finding()
        }
    }
}

fn unreadable_header(copy: Option<&ObjectStat>, source: &SourceObject) -> Option<&'static str> {
    let mut stats = copy.into_iter().chain(source.stat());
    stats.find_map(|stat| stat.unreadable_header)
}

fn mismatch_finding(code: &'static str, message: String) -> VerificationFinding {
    VerificationFinding {
        mismatch: Some((code, message)),
        ..VerificationFinding::default()
    }
}
