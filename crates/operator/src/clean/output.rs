//! What a clean prints: what would be removed, and what was.

use std::collections::BTreeMap;
use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::object_store::objects::BucketVersioning;
use bucket_brigade_common::printable::{counted, printable};
use serde::{Serialize, Serializer};

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
            in_removal,
            is_estimate,
        } = self.eligible;
        let (run, bucket) = (self.run, self.bucket);
        let about = if is_estimate { "about " } else { "" };
        if self.orphans {
            write!(
                f,
                "run {run}: {about}{} without a row in bucket {bucket}",
                counted(objects, "copy", "copies")
            )?;
        } else {
            write!(
                f,
                "run {run}: {about}{} ({}) may go from bucket {bucket}, unless a row still names them\n  \
                 of {about}{}, {unverified} are not verified since they were made, {young} are verified and younger than asked for",
                counted(objects, "source", "sources"),
                counted(bytes, "byte", "bytes"),
                counted(moves, "move", "moves")
            )?;
        }
        if in_removal > 0 {
            write!(
                f,
                "\n  {} in removal since an earlier clean: looked at first",
                counted(in_removal, "more is", "more are")
            )?;
        }
        if !self.eligible.has_objects() {
            return write!(f, "\nNothing to do.");
        }
        write!(f, "\n  {}", versioning_note(self.versioning))?;
        if let Some(rows @ 1..) = self.rows_outside {
            write!(
                f,
                "\n  {} outside the path rule ('{}'): objects with such names are kept, unless --rows-outside-the-rule {rows} says that they mean no object here",
                counted(rows, "row is", "rows are"),
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
    #[serde(skip)]
    word: &'static str,
}

impl fmt::Display for RemovalLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, bucket, key) = (self.word, self.bucket, printable(self.key));
        write!(f, "{word:11} s3://{bucket}/{key}")?;
        match self.kept_because.map(printable) {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
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
    kept_count: u64,
    #[serde(rename = "left_alone_by_reason")]
    kept: KeptObjects,
}

/// By the beginning of the reason: what a store says after its code may name the object.
#[derive(Default)]
struct KeptObjects(BTreeMap<String, KeptGroup>);

struct KeptGroup {
    count: u64,
    word: &'static str,
    /// That of the first.
    reason: String,
    /// Whether others have another one.
    is_mixed: bool,
}

impl KeptObjects {
    fn add(&mut self, word: &'static str, reason: &str) {
        let start = reason.split_once(": ").map_or(reason, |(start, _)| start);
        let group = self.0.entry(start.to_owned());
        let group = group.or_insert_with(|| KeptGroup {
            count: 0,
            word,
            reason: reason.to_owned(),
            is_mixed: false,
        });
        group.count += 1;
        group.is_mixed |= group.reason != reason;
    }
}

impl Serialize for KeptObjects {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(start, group)| {
            let name = if group.is_mixed { start } else { &group.reason };
            (name, group.count)
        }))
    }
}

impl fmt::Display for KeptObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for KeptGroup {
            count,
            word,
            reason,
            is_mixed,
        } in self.0.values()
        {
            let example = if *is_mixed { "for example, " } else { "" };
            write!(f, "\n  {count} {word}: {example}{}", printable(reason))?;
        }
        Ok(())
    }
}

impl fmt::Display for CleanSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (run, removed, bucket) = (self.run, self.removed, self.bucket);
        write!(
            f,
            "run {run}: {} removed from bucket {bucket}",
            counted(removed, "object", "objects")
        )?;
        if self.bytes > 0 {
            write!(f, " ({})", counted(self.bytes, "byte", "bytes"))?;
        }
        if self.delete_markers > 0 {
            write!(f, ", {} of them behind delete markers", self.delete_markers)?;
        }
        write!(f, "{}", self.kept)
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
                kept_count: 0,
                kept: KeptObjects::default(),
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
                word: outcome.word(),
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
        let code = match (self.restore_failures, self.summary.kept_count) {
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
            self.kept_count += 1;
            self.kept.add(outcome.word(), reason);
            return;
        }
        self.removed += 1;
        self.bytes += removal.size_bytes.unwrap_or(0);
        self.delete_markers += u64::from(outcome.delete_marker().is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_by_one_code_are_one_line() {
        let mut kept = KeptObjects::default();
        for key in ["a", "b"] {
            kept.add(
                "left alone",
                &format!("AccessDenied: s3:DeleteObject on {key}"),
            );
            kept.add("left alone", "a row names it");
            kept.add("unconfirmed", "cut off: run clean again");
        }
        assert_eq!(
            kept.to_string(),
            "\n  2 left alone: for example, AccessDenied: s3:DeleteObject on a\n  2 left alone: a row names it\n  2 unconfirmed: cut off: run clean again"
        );
        let counts = serde_json::to_value(&kept).unwrap();
        let expected = serde_json::json!({
            "AccessDenied": 2, "a row names it": 2, "cut off: run clean again": 2
        });
        assert_eq!(counts, expected);
    }
}
