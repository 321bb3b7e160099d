//! The images that all measurements move, and their run.

use anyhow::Result;
use bucket_brigade_common::ledger::{RunOptions, RunSpec, TableSpec};
use bucket_brigade_common::path_rule::PathRule;

pub const SOURCE_BUCKET: &str = "old-images";
pub const DESTINATION_BUCKET: &str = "new-images";

/// So that all ids are of one length, and listings show them in their order.
pub const FIRST_ROW: u64 = 1_000_000_001;

pub fn old_path(id: u64) -> String {
    format!("image/avatar-{id}.png")
}

pub fn new_path(id: u64) -> String {
    format!("avatar/avatar-{id}.png")
}

pub fn run_spec() -> Result<RunSpec> {
    Ok(RunSpec {
        name: None,
        table: TableSpec {
            table: "images".into(),
            id_column: "id".into(),
            path_column: "path".into(),
        },
        rule: PathRule::new("image/", "avatar/", None, None)?,
        source_bucket: SOURCE_BUCKET.into(),
        destination_bucket: DESTINATION_BUCKET.into(),
        options: RunOptions::default(),
    })
}
