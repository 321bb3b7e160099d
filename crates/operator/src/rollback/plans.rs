//! The plans that the statements of rollback must have.

use bucket_brigade_common::ledger::ApplicationTable;

use super::queries::{MARK_CHECKED, SELECT_UNDONE, undo_sql, undone_unchecked_sql};
use super::source::{SELECT_SINCE, SELECT_STRETCH};
use crate::command_cursor::CursorLap;
use crate::moved_row::moves_by_id_sql;
use crate::statement_plans::{FIRST_MOVE_SECONDS, PlannedStatement, page, repeated, texts, times};
use crate::statements::page_after;

pub(crate) fn statements(table: &ApplicationTable) -> Vec<PlannedStatement> {
    let mut lap = CursorLap::default();
    lap.after = Some("6".into());
    let (ids, paths, keys) = (texts("", 100), texts("image/", 100), texts("avatar/", 100));
    let lately = (FIRST_MOVE_SECONDS + 99_900).to_string();
    let moved = times(100);
    vec![
        page(
            "a stretch of all",
            lap.page_sql(SELECT_STRETCH, "row_id").0,
            &["1", "'6'", "NULL", "1000", "NULL"],
            "moves_pkey",
            1500.0,
        ),
        PlannedStatement {
            is_rare: true,
            ..page(
                "what was moved lately",
                SELECT_SINCE,
                &["1", &lately],
                "moves_by_time",
                40_000.0,
            )
        },
        page(
            "moves by id",
            moves_by_id_sql(table),
            &["1", &ids],
            "moves_pkey",
            400.0,
        ),
        page(
            "back",
            undo_sql(table),
            &[
                "1",
                &ids,
                &paths,
                &keys,
                &repeated("'e'", 100, "text"),
                &moved,
                &keys,
                "'o'",
            ],
            "moves_pkey",
            1000.0,
        ),
        page(
            "unchecked",
            page_after(&undone_unchecked_sql(table), Some("")).0,
            &["1", "'6'", "100"],
            "rollbacks_unseen",
            400.0,
        ),
        page(
            "checked",
            MARK_CHECKED,
            &["1", &ids],
            "rollbacks_pkey",
            400.0,
        ),
        page(
            "what became of them",
            SELECT_UNDONE,
            &["1", &ids, &repeated("1", 100, "bigint"), "'o'"],
            "rollbacks_pkey",
            400.0,
        ),
    ]
}
