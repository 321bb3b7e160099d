//! A row as it was read.

use bucket_brigade_common::ledger::move_ledger::CurrentRow;
use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::path_rule::PathRule;

/// What stands in the row's path column, measured against what the message asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RowState {
    /// The old path: the move is still asked for.
    NeedsMove {
        /// The ledger holds a permanent failure for it.
        failed_for_good: bool,
        /// The ETag of an earlier copy for this path: the row was moved, and its old path written again.
        copy_etag: Option<String>,
    },
    /// The old path; but the message was fed before a rollback or a clean, and counts no more.
    Fenced,
    Moved,
    /// Another path of the application's; under the old prefix it will be fed on its own.
    Changed {
        path: String,
        /// Whether that path is in scope itself.
        is_in_scope: bool,
    },
    Deleted,
}

impl RowState {
    pub fn from_row(row: Option<CurrentRow>, task: &MoveTask, rule: &PathRule) -> Self {
        let MoveTask { route, fence, .. } = task;
        match row {
            None => Self::Deleted,
            Some(row) if row.path == route.old_path && *fence < row.fence => Self::Fenced,
            Some(row) if row.path == route.old_path => Self::NeedsMove {
                failed_for_good: row.has_permanent_failure,
                copy_etag: row.copy_etag,
            },
            Some(row) if row.path == route.new_path => Self::Moved,
            Some(row) => Self::Changed {
                is_in_scope: rule.is_in_scope(&row.path),
                path: row.path,
            },
        }
    }
}
