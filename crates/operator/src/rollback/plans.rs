//! The plans that the statements of rollback must have.

use bucket_brigade_common::ledger::ApplicationTable;

use super::queries::{MARK_CHECKED, SELECT_UNDONE, undo_sql, undone_unchecked_sql};
use super::source::{SELECT_SINCE, SELECT_STRETCH};
use crate::command_cursor::CursorLap;
use crate::moved_row::moves_by_id_sql;
use crate::statement_plans::{
    FIRST_MOVE_SECONDS, PlannedStatement, after, planned, repeated, texts, times,
};

pub(crate) fn statements(table: &ApplicationTable) -> Vec<PlannedStatement> {
    let mut lap = CursorLap::default();
    lap.after = Some("6".into());
    let (ids, paths, keys) = (texts("", 100), texts("image/", 100), texts("avatar/", 100));
    let lately = (FIRST_MOVE_SECONDS + 99_900).to_string();
    let moved = times(100);
    let etags = repeated("'e'", 100, "text");
    let mut statements = planned! {
        "what was moved lately": SELECT_SINCE, ["1", &lately], "moves_by_time", 40000.0;
        "a stretch of all": lap.page_sql(SELECT_STRETCH, "row_id").0, ["1", "'6'", "NULL", "1000", "NULL"],
            "moves_pkey", 1500.0;
        "moves by id": moves_by_id_sql(table), ["1", &ids], "moves_pkey", 400.0;
        "back": undo_sql(table), ["1", &ids, &paths, &keys, &etags, &moved, &keys, "'o'", "'{}'"], "moves_pkey", 1000.0;
        "unchecked": after(&undone_unchecked_sql(table)), ["1", "'6'"], "rollbacks_unseen", 400.0;
        "checked": MARK_CHECKED, ["1", &ids], "rollbacks_pkey", 400.0;
        "what became of them": SELECT_UNDONE, ["1", &ids, &repeated("1", 100, "bigint"), "'o'"],
            "rollbacks_pkey", 400.0;
    };
    statements[0].is_rare = true;
    statements
}
