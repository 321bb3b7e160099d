//! The answers of a clean: what would go, and what went.

use std::collections::BTreeMap;
use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{EligibleMoves, ObjectRemoval, RemovalOutcome};
use bucket_brigade_common::object_store::objects::BucketVersioning;
use serde::Serialize;

use super::CleanContext;
use super::batch::ObjectCleaner;

/// What would go.
#[derive(Serialize)]
pub(super) struct CleanPreview<'a> {
    run: i64,
    done: bool,
    orphans: bool,
    bucket: &'a str,
    versioning: Option<BucketVersioning>,
    #[serde(flatten)]
    eligible: EligibleMoves,
    /// Whether a question follows, to which the answer is not known yet.
    #[serde(skip)]
    is_prompting: bool,
}

impl CleanPreview<'_> {
    /// The same before a question.
    pub(super) fn before_prompt(self) -> Self {
        Self {
            is_prompting: true,
            ..self
        }
    }
}

impl CleanContext<'_> {
    pub(super) fn build_preview(&self) -> CleanPreview<'_> {
        CleanPreview {
            run: self.ledger.run_id(),
            done: false,
            orphans: self.scope.orphans,
            bucket: &self.bucket,
            versioning: self.versioning,
            eligible: self.eligible,
            is_prompting: false,
        }
    }
}

impl fmt::Display for CleanPreview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EligibleMoves {
            moves,
            unverified,
            young,
            objects,
            bytes,
        } = self.eligible;
        let (run, bucket) = (self.run, self.bucket);
        if self.orphans {
            write!(
                f,
                "run {run}: {objects} copies without a row in bucket {bucket}"
            )?;
        } else {
            write!(
                f,
                "run {run}: {objects} sources ({bytes} bytes) may go from bucket {bucket}, unless a row still names them\n  \
                 of {moves} moves, {unverified} are not verified since they were made, {young} are verified and younger than asked for"
            )?;
        }
        if objects == 0 {
            return write!(f, "\nNothing to do.");
        }
        write!(f, "\n  {}", versioning_note(self.versioning))?;
        if self.is_prompting {
            return Ok(());
        }
        write!(
            f,
            "\nNothing was removed. To do it, add --confirm {bucket}."
        )
    }
}

fn versioning_note(versioning: Option<BucketVersioning>) -> &'static str {
    match versioning {
        Some(BucketVersioning::Off) => "the bucket keeps no versions: what is removed is gone",
        Some(BucketVersioning::Enabled) => {
            "the bucket keeps versions: a delete marker hides each object, and its versions stay and cost storage until a lifecycle rule ends them"
        }
        Some(BucketVersioning::Suspended) => {
            "the bucket's versioning is suspended: objects written since are gone when they are removed, earlier versions stay"
        }
        None => "whether the bucket keeps versions is not known (s3:GetBucketVersioning)",
    }
}

/// What was done so far.
#[derive(Default)]
pub(super) struct CleanCounts {
    removed: u64,
    bytes: i64,
    delete_markers: u64,
    left_alone: BTreeMap<String, u64>,
    pub(super) restore_failures: u64,
}

#[derive(Serialize)]
struct RemovalLine<'a> {
    key: &'a str,
    path: &'a str,
    etag: &'a str,
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_marker: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_because: Option<&'a str>,
    #[serde(skip)]
    bucket: &'a str,
}

impl fmt::Display for RemovalLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bucket, key) = (self.bucket, self.key);
        match self.left_because {
            Some(reason) => write!(f, "left alone  s3://{bucket}/{key}: {reason}"),
            None => write!(f, "removed     s3://{bucket}/{key}"),
        }
    }
}

#[derive(Serialize)]
struct CleanSummary<'a> {
    run: i64,
    done: bool,
    orphans: bool,
    bucket: &'a str,
    removed: u64,
    bytes: i64,
    delete_markers: u64,
    left_alone: u64,
    left_alone_by_reason: &'a BTreeMap<String, u64>,
}

impl fmt::Display for CleanSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (run, removed, bucket) = (self.run, self.removed, self.bucket);
        write!(
            f,
            "run {run}: {removed} objects removed from bucket {bucket}"
        )?;
        if self.bytes > 0 {
            write!(f, " ({} bytes)", self.bytes)?;
        }
        if self.delete_markers > 0 {
            write!(f, ", {} of them behind delete markers", self.delete_markers)?;
        }
        for (reason, count) in self.left_alone_by_reason {
            write!(f, "\n  {count} left alone: {reason}")?;
        }
        Ok(())
    }
}

impl ObjectCleaner<'_> {
    /// Writes what became of a batch.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn print_outcomes(
        &mut self,
        endings: &[(ObjectRemoval, RemovalOutcome)],
    ) -> anyhow::Result<()> {
        for (removal, ending) in endings {
            self.counts.add_outcome(removal, ending);
            let line = removal_line(self.bucket, removal, ending);
            if let Some(listing) = &mut self.list_writer {
                listing.write_item(&line)?;
            }
        }
        Ok(())
    }

    /// Writes the summary; the exit code.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn print_summary(&mut self) -> anyhow::Result<u8> {
        let tally = &self.counts;
        if let Some(listing) = self.list_writer.take() {
            listing.write_summary(&CleanSummary {
                run: self.ledger.run_id(),
                done: true,
                orphans: self.scope.orphans,
                bucket: self.bucket,
                removed: tally.removed,
                bytes: tally.bytes,
                delete_markers: tally.delete_markers,
                left_alone: tally.left_alone.values().sum(),
                left_alone_by_reason: &tally.left_alone,
            })?;
        }
        Ok(
            match (tally.restore_failures, tally.left_alone.is_empty()) {
                (0, true) => exit::DONE,
                (0, false) => exit::ROWS_FAILED,
                _ => exit::CHECK_FAILED,
            },
        )
    }
}

impl CleanCounts {
    fn add_outcome(&mut self, removal: &ObjectRemoval, ending: &RemovalOutcome) {
        match ending {
            RemovalOutcome::Removed(marker) => {
                self.removed += 1;
                self.bytes += removal.size_bytes.unwrap_or(0);
                self.delete_markers += u64::from(marker.is_some());
            }
            RemovalOutcome::Kept(reason) => {
                *self.left_alone.entry(reason.clone()).or_default() += 1;
            }
        }
    }
}

fn removal_line<'a>(
    bucket: &'a str,
    removal: &'a ObjectRemoval,
    ending: &'a RemovalOutcome,
) -> RemovalLine<'a> {
    let (delete_marker, left_because) = match ending {
        RemovalOutcome::Removed(marker) => (marker.as_deref(), None),
        RemovalOutcome::Kept(reason) => (None, Some(reason.as_str())),
    };
    RemovalLine {
        key: &removal.object_key,
        path: &removal.path,
        etag: &removal.etag,
        removed: left_because.is_none(),
        delete_marker,
        left_because,
        bucket,
    }
}
