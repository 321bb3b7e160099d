//! Further columns that the same fleet migrates: two of a second table, in buckets of their own.

use anyhow::Result;

use crate::application::{Application, ImagesTable};
use crate::seed::{SeedOptions, SeededRows, seed_further_column, seed_images};

/// The column, old and new prefix of each.
const SIDE_COLUMNS: [(&str, &str, &str); 2] =
    [("face", "legacy/", "face/"), ("banner", "old/", "banner/")];

/// Whether a path to move is one of theirs.
pub(crate) fn is_of_side_run(path: &str) -> bool {
    let mut columns = SIDE_COLUMNS.iter();
    columns.any(|(_, old, _)| path.starts_with(old))
}

/// A run besides the first.
pub(crate) struct SideRun {
    pub(crate) application: Application,
    pub(crate) seeded: SeededRows,
}

/// Seeds all but the first of so many columns.
pub(crate) async fn seed_side_runs(
    first: &Application,
    seed: &SeedOptions,
    columns: u32,
) -> Result<Vec<SideRun>> {
    let mut runs = Vec::new();
    for (column, old, new) in SIDE_COLUMNS.into_iter().take(columns as usize - 1) {
        let application = Application {
            table: ImagesTable {
                name: "people".into(),
                path_column: column.into(),
                ..first.table.clone()
            },
            old_prefix: old.into(),
            new_prefix: new.into(),
            source_bucket: format!("{column}-old"),
            destination_bucket: format!("{column}-new"),
            ..first.clone()
        };
        let seeded = if runs.is_empty() {
            seed_images(&application, seed).await?
        } else {
            seed_further_column(&application, seed).await?
        };
        runs.push(SideRun {
            application,
            seeded,
        });
    }
    Ok(runs)
}
