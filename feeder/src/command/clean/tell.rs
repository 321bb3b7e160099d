//! The answers of a clean: what would go, and what went.

use std::collections::BTreeMap;
use std::fmt;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{Eligible, Ending, Removal};
use bucket_brigade_common::objects::Versioning;
use serde::Serialize;

use super::Surroundings;
use super::batch::Cleaner;

/// What would go.
#[derive(Serialize)]
pub(super) struct Preview<'a> {
    run: i64,
    done: bool,
    orphans: bool,
    bucket: &'a str,
    versioning: Option<Versioning>,
    #[serde(flatten)]
    eligible: Eligible,
    /// Whether a question follows, to which the answer is not known yet.
    #[serde(skip)]
    is_asking: bool,
}

impl Preview<'_> {
    /// The same before a question.
    pub(super) fn asking(self) -> Self {
        Self {
            is_asking: true,
            ..self
        }
    }
}

impl Surroundings<'_> {
    pub(super) fn preview(&self) -> Preview<'_> {
        Preview {
            run: self.ledger.run_id(),
            done: false,
            orphans: self.scope.orphans,
            bucket: &self.bucket,
            versioning: self.versioning,
            eligible: self.eligible,
            is_asking: false,
        }
    }
}

impl fmt::Display for Preview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Eligible {
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
        write!(f, "\n  {}", keeps(self.versioning))?;
        if self.is_asking {
            return Ok(());
        }
        write!(
            f,
            "\nNothing was removed. To do it, add --confirm {bucket}."
        )
    }
}

fn keeps(versioning: Option<Versioning>) -> &'static str {
    match versioning {
        Some(Versioning::Off) => "the bucket keeps no versions: what is removed is gone",
        Some(Versioning::Enabled) => {
            "the bucket keeps versions: a delete marker hides each object, and its versions stay and cost storage until a lifecycle rule ends them"
        }
        Some(Versioning::Suspended) => {
            "the bucket's versioning is suspended: objects written since are gone when they are removed, earlier versions stay"
        }
        None => "whether the bucket keeps versions is not known (s3:GetBucketVersioning)",
    }
}

/// What was done so far.
#[derive(Default)]
pub(super) struct Tally {
    removed: u64,
    bytes: i64,
    delete_markers: u64,
    left: BTreeMap<String, u64>,
    pub(super) unsaved: u64,
}

#[derive(Serialize)]
struct Line<'a> {
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

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bucket, key) = (self.bucket, self.key);
        match self.left_because {
            Some(reason) => write!(f, "left alone  s3://{bucket}/{key}: {reason}"),
            None => write!(f, "removed     s3://{bucket}/{key}"),
        }
    }
}

#[derive(Serialize)]
struct Summary<'a> {
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

impl fmt::Display for Summary<'_> {
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

impl Cleaner<'_> {
    /// Writes what became of a batch.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn tell_endings(&mut self, endings: &[(Removal, Ending)]) -> anyhow::Result<()> {
        for (removal, ending) in endings {
            self.tally.add(removal, ending);
            let line = line(self.bucket, removal, ending);
            if let Some(listing) = &mut self.listing {
                listing.add(&line)?;
            }
        }
        Ok(())
    }

    /// Writes the summary; the exit code.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn tell(&mut self) -> anyhow::Result<u8> {
        let tally = &self.tally;
        if let Some(listing) = self.listing.take() {
            listing.end(&Summary {
                run: self.ledger.run_id(),
                done: true,
                orphans: self.scope.orphans,
                bucket: self.bucket,
                removed: tally.removed,
                bytes: tally.bytes,
                delete_markers: tally.delete_markers,
                left_alone: tally.left.values().sum(),
                left_alone_by_reason: &tally.left,
            })?;
        }
        Ok(match (tally.unsaved, tally.left.is_empty()) {
            (0, true) => exit::DONE,
            (0, false) => exit::ROWS_FAILED,
            _ => exit::FOUND_WRONG,
        })
    }
}

impl Tally {
    fn add(&mut self, removal: &Removal, ending: &Ending) {
        match ending {
            Ending::Removed(marker) => {
                self.removed += 1;
                self.bytes += removal.size_bytes.unwrap_or(0);
                self.delete_markers += u64::from(marker.is_some());
            }
            Ending::Left(reason) => *self.left.entry(reason.clone()).or_default() += 1,
        }
    }
}

fn line<'a>(bucket: &'a str, removal: &'a Removal, ending: &'a Ending) -> Line<'a> {
    let (delete_marker, left_because) = match ending {
        Ending::Removed(marker) => (marker.as_deref(), None),
        Ending::Left(reason) => (None, Some(reason.as_str())),
    };
    Line {
        key: &removal.object_key,
        path: &removal.path,
        etag: &removal.etag,
        removed: left_because.is_none(),
        delete_marker,
        left_because,
        bucket,
    }
}
