//! Checks one move, and with `--recopy` mends it.

use bucket_brigade_common::ledger::{Finding, Ledger, MovedRow, SourceState};
use bucket_brigade_common::object_store::{Destination, ObjectStore, StoreError};
use bucket_brigade_common::objects::{Inspect, Replace, Side, Stat};
use bucket_brigade_common::path_rule::{PathRule, Route};
use bucket_brigade_common::s3::S3Store;

use super::judge::{Source, Verdict, judge};
use crate::command::store::{insist, is_about_one};

/// Looks at a move that changes under them, before what they saw is taken for the truth.
const LOOKS: u32 = 4;

/// Checks moves.
pub(super) struct Checker<'a> {
    /// The buckets.
    pub(super) store: &'a S3Store,
    /// The ledger and the table.
    pub(super) ledger: &'a Ledger,
    /// The path rule.
    pub(super) rule: &'a PathRule,
    /// Whether copies are made anew.
    pub(super) recopies: bool,
}

/// One look at a move.
enum Look {
    Found(Finding),
    /// Something changed meanwhile.
    Again(Finding),
}

/// The move being looked at.
struct Subject<'a> {
    row: &'a MovedRow,
    route: Route,
    copy: Option<Stat>,
    source: Source,
}

impl Checker<'_> {
    /// Checks one move.
    ///
    /// # Errors
    /// The store or the database does not answer.
    pub(super) async fn check(&self, mut row: MovedRow) -> anyhow::Result<(MovedRow, Finding)> {
        let mut finding = Finding::default();
        for _ in 0..LOOKS {
            match self.look(&row).await {
                Ok(Look::Found(found)) => {
                    finding = found;
                    break;
                }
                Ok(Look::Again(found)) => finding = found,
                Err(error) if is_about_one(&error) => {
                    finding = wrong("Unreadable", error.to_string());
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if finding.mismatch.is_some() {
            row.current_path = self.ledger.current_path(&row.id).await?;
        }
        if !row.is_current() {
            finding.is_outdated = true;
            finding.mismatch = None;
        }
        Ok((row, finding))
    }

    async fn look(&self, row: &MovedRow) -> Result<Look, StoreError> {
        let Ok(route) = self.rule.route(&row.old_path) else {
            let message = "its old path is outside the path rule".into();
            return Ok(Look::Found(wrong("OutsideRule", message)));
        };
        let copy = self.stat(Side::Destination, &route.destination_key).await?;
        let source = match row.source {
            SourceState::Removed => Source::Removed,
            _ => match self.stat(Side::Source, &route.source_key).await? {
                Some(stat) => Source::There(stat),
                None => Source::Gone,
            },
        };
        let verdict = judge(row, copy.as_ref(), &source);
        let subject = Subject {
            row,
            route,
            copy,
            source,
        };
        self.follow(&subject, verdict).await
    }

    async fn follow(&self, subject: &Subject<'_>, verdict: Verdict) -> Result<Look, StoreError> {
        match verdict {
            Verdict::Sound => Ok(Look::Found(subject.sound())),
            Verdict::Wrong(code, message) => Ok(Look::Found(wrong(code, message))),
            Verdict::Changed(message) => self.changed(subject, message).await,
            Verdict::Compare => match self.compare(subject).await? {
                Compared::Same(_) => Ok(Look::Found(subject.sound())),
                Compared::Other(message) => self.changed(subject, message).await,
                Compared::Gone => Ok(Look::Again(wrong("SourceGone", gone_meanwhile()))),
            },
            Verdict::Replaced(message) if self.recopies => match self.compare(subject).await? {
                Compared::Same(etag) => Ok(Look::Found(subject.taken_over(etag))),
                _ => Ok(Look::Found(wrong("CopyReplaced", message))),
            },
            Verdict::Replaced(message) => Ok(Look::Found(wrong("CopyReplaced", message))),
        }
    }

    /// The source is not what was copied: told, or mended where the row still names our copy.
    async fn changed(&self, subject: &Subject<'_>, message: String) -> Result<Look, StoreError> {
        let finding = wrong("SourceChanged", message);
        if !self.recopies || !subject.row.is_current() {
            return Ok(Look::Found(finding));
        }
        let (route, ours) = (&subject.route, &subject.row.etag);
        match insist(async || self.store.replace(route, ours).await).await {
            Ok(copied) => self.recopied(subject, copied.etag).await,
            // Another row's check was first, or the application.
            Err(StoreError::DestinationExists) => Ok(Look::Again(finding)),
            Err(error) if is_about_one(&error) => {
                Ok(Look::Found(wrong("RecopyFailed", error.to_string())))
            }
            Err(error) => Err(error),
        }
    }

    /// The new copy is sound if the source was the same before and after it was made.
    async fn recopied(&self, subject: &Subject<'_>, etag: String) -> Result<Look, StoreError> {
        let copy = self
            .stat(Side::Destination, &subject.route.destination_key)
            .await?;
        let source = self.stat(Side::Source, &subject.route.source_key).await?;
        let is_same = source.is_some_and(|source| subject.source == Source::There(source));
        let finding = Finding {
            is_sound: is_same,
            mismatch: (!is_same).then(|| ("SourceChanged", gone_meanwhile())),
            size_bytes: copy.map(|copy| copy.size_bytes),
            ..subject.taken_over(etag)
        };
        Ok(Look::Found(finding))
    }

    async fn compare(&self, subject: &Subject<'_>) -> Result<Compared, StoreError> {
        match insist(async || self.store.compare(&subject.route).await).await {
            Ok(Destination::Same(copied)) => Ok(Compared::Same(copied.etag)),
            Ok(Destination::Different(what)) => Ok(Compared::Other(format!(
                "the source was written since: {what}"
            ))),
            Ok(Destination::Empty) => Ok(Compared::Gone),
            Err(StoreError::Permanent { code, .. }) if code == "NoSuchKey" => Ok(Compared::Gone),
            Err(error) => Err(error),
        }
    }

    /// Looks at one object, patiently.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(super) async fn stat(&self, side: Side, key: &str) -> Result<Option<Stat>, StoreError> {
        insist(async || self.store.stat(side, key).await).await
    }
}

/// A copy against its source.
enum Compared {
    /// Equal; the copy's ETag.
    Same(String),
    /// Not equal.
    Other(String),
    /// One of them vanished.
    Gone,
}

impl Subject<'_> {
    fn sound(&self) -> Finding {
        Finding {
            is_sound: true,
            source_etag: match &self.source {
                Source::There(stat) => Some(stat.etag.clone()),
                Source::Removed | Source::Gone => None,
            },
            size_bytes: self.copy.as_ref().map(|copy| copy.size_bytes),
            ..Finding::default()
        }
    }

    /// The copy is a newer one of ours.
    fn taken_over(&self, etag: String) -> Finding {
        Finding {
            new_etag: Some(etag),
            ..self.sound()
        }
    }
}

fn gone_meanwhile() -> String {
    "the source was written while it was looked at".into()
}

fn wrong(code: &'static str, message: String) -> Finding {
    Finding {
        mismatch: Some((code, message)),
        ..Finding::default()
    }
}
