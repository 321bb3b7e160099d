//! What a clean prints: what would be removed, and what was.

use std::collections::BTreeMap;
use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::object_store::objects::BucketVersioning;
use bucket_brigade_common::printable::printable;
use serde::Serialize;

use super::count::EligibleMoves;
use super::missing_indexes::MissingIndexes;
use super::removals::{ObjectRemoval, RemovalOutcome, RemovalOutcomes};
use crate::output::{ListWriter, OutputFormat};

#[derive(Serialize)]
pub(super) struct CleanPreview<'a> {
    pub(super) run: i64,
    /// False, as against [`CleanSummary`].
    pub(super) done: bool,
    pub(super) orphans: bool,
    pub(super) bucket: &'a str,
    pub(super) versioning: Option<BucketVersioning>,
    #[serde(flatten)]
    pub(super) eligible: EligibleMoves,
    pub(super) rows_outside: Option<u64>,
    #[serde(rename = "rows_outside_examples")]
    pub(super) outside_examples: &'a [String],
    pub(super) missing_indexes: &'a MissingIndexes,
    /// Whether the question for the bucket's name follows.
    #[serde(skip)]
    pub(super) is_prompting: bool,
}

impl fmt::Display for CleanPreview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EligibleMoves {
            moves,
            unverified,
            young,
            objects,
            bytes,
            is_estimate,
        } = self.eligible;
        let (run, bucket) = (self.run, self.bucket);
        let about = if is_estimate { "about " } else { "" };
        if self.orphans {
            write!(
                f,
                "run {run}: {about}{objects} copies without a row in bucket {bucket}"
            )?;
        } else {
            write!(
                f,
                "run {run}: {about}{objects} sources ({bytes} bytes) may go from bucket {bucket}, unless a row still names them\n  \
                 of {about}{moves} moves, {unverified} are not verified since they were made, {young} are verified and younger than asked for"
            )?;
        }
        if objects == 0 {
            return write!(f, "\nNothing to do.");
        }
        write!(f, "\n  {}", versioning_note(self.versioning))?;
        if let Some(rows @ 1..) = self.rows_outside {
            write!(
                f,
                "\n  {rows} rows are outside the path rule ('{}'): objects with such names are kept, unless --rows-outside-the-rule {rows} says that they mean no object here",
                self.outside_examples.join("', '"),
            )?;
        }
        for index in &self.missing_indexes.all {
            write!(f, "\n  {index}")?;
        }
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
        None => {
            "whether the bucket keeps versions is not known (s3:GetBucketVersioning is missing, or the response cannot be read)"
        }
    }
}

#[derive(Serialize)]
struct RemovalLine<'a> {
    key: &'a str,
    path: &'a str,
    etag: &'a str,
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_marker: Option<&'a str>,
    #[serde(rename = "left_because", skip_serializing_if = "Option::is_none")]
    kept_because: Option<&'a str>,
    #[serde(skip)]
    bucket: &'a str,
}

impl fmt::Display for RemovalLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bucket, key) = (self.bucket, printable(self.key));
        match self.kept_because.map(printable) {
            Some(reason) => write!(f, "left alone  s3://{bucket}/{key}: {reason}"),
            None => write!(f, "removed     s3://{bucket}/{key}"),
        }
    }
}

#[derive(Serialize)]
pub(super) struct CleanSummary<'a> {
    run: i64,
    done: bool,
    orphans: bool,
    bucket: &'a str,
    removed: u64,
    bytes: i64,
    delete_markers: u64,
    #[serde(rename = "left_alone")]
    kept: u64,
    #[serde(rename = "left_alone_by_reason")]
    kept_by_reason: BTreeMap<String, u64>,
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
        for (reason, count) in &self.kept_by_reason {
            write!(f, "\n  {count} left alone: {}", printable(reason))?;
        }
        Ok(())
    }
}

pub(super) struct CleanPrinter<'a> {
    list_writer: ListWriter<std::io::Stdout>,
    summary: CleanSummary<'a>,
    restore_failures: u64,
}

impl<'a> CleanPrinter<'a> {
    pub(super) fn begin_list(
        format: OutputFormat,
        run: i64,
        orphans: bool,
        bucket: &'a str,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            list_writer: ListWriter::begin_on_stdout(format, "objects")?,
            summary: CleanSummary {
                run,
                done: true,
                orphans,
                bucket,
                removed: 0,
                bytes: 0,
                delete_markers: 0,
                kept: 0,
                kept_by_reason: BTreeMap::new(),
            },
            restore_failures: 0,
        })
    }

    pub(super) fn print_outcomes(
        &mut self,
        outcomes: &[(ObjectRemoval, RemovalOutcome)],
    ) -> anyhow::Result<()> {
        for (removal, outcome) in outcomes {
            self.summary.add_outcome(removal, outcome);
            self.list_writer.write_item(&RemovalLine {
                key: &removal.object_key,
                path: &removal.path,
                etag: &removal.etag,
                removed: outcome.kept_because().is_none(),
                delete_marker: outcome.delete_marker(),
                kept_because: outcome.kept_because(),
                bucket: self.summary.bucket,
            })?;
        }
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.list_writer.is_closed()
    }

    /// Objects that could not be brought back.
    pub(super) fn print_unsaved(&mut self, unsaved: &RemovalOutcomes) -> anyhow::Result<()> {
        self.restore_failures += u64::try_from(unsaved.len())?;
        self.print_outcomes(unsaved)
    }

    /// Returns the exit code.
    pub(super) fn print_summary(self) -> anyhow::Result<u8> {
        let code = match (self.restore_failures, self.summary.kept) {
            (0, 0) => exit::DONE,
            (0, _) => exit::ROWS_FAILED,
            _ => exit::CHECK_FAILED,
        };
        self.list_writer.write_summary(&self.summary)?;
        Ok(code)
    }
}

impl CleanSummary<'_> {
    fn add_outcome(&mut self, removal: &ObjectRemoval, outcome: &RemovalOutcome) {
        if let Some(reason) = outcome.kept_because() {
            self.kept += 1;
            *self.kept_by_reason.entry(reason.to_owned()).or_default() += 1;
            return;
        }
        self.removed += 1;
        self.bytes += removal.size_bytes.unwrap_or(0);
        self.delete_markers += u64::from(outcome.delete_marker().is_some());
    }
}
