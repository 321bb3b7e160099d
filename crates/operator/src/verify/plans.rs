//! The plans that the statements of verify must have.

use bucket_brigade_common::ledger::ApplicationTable;

use super::queries::{RECORD_FINDINGS, SELECT_MISMATCHES, SELECT_MOVED_IDS, rows_to_verify_sql};
use crate::statement_plans::{PlannedStatement, page, repeated, texts, times};
use crate::statements::page_after;

pub(crate) fn statements(table: &ApplicationTable) -> Vec<PlannedStatement> {
    let (ids, etags) = (texts("", 100), repeated("'e'", 100, "text"));
    let (nulls, numbers) = (repeated("NULL", 100, "text"), repeated("1", 100, "bigint"));
    let (yes, no) = (
        repeated("true", 100, "boolean"),
        repeated("false", 100, "boolean"),
    );
    let moved = times(100);
    vec![
        page(
            "a page of moves",
            page_after(SELECT_MOVED_IDS, Some("")).0,
            &["1", "'6'", "1000"],
            "moves_pkey",
            1500.0,
        ),
        page(
            "findings",
            RECORD_FINDINGS,
            &[
                "1", &ids, &etags, &moved, &yes, &etags, &numbers, &nulls, &ids, &nulls, &nulls,
                "'6'", "1", "1", "1", "1", &no, &no,
            ],
            "moves_pkey",
            1000.0,
        ),
        page(
            "a page of the table",
            rows_to_verify_sql(table, false),
            &["1", "1000", "'image/%'", "'500000'"],
            "images_pkey",
            3500.0,
        ),
        page(
            "mismatches",
            page_after(SELECT_MISMATCHES, Some("")).0,
            &["1", "'6'", "1000"],
            "mismatches_pkey",
            1500.0,
        ),
    ]
}
