//! The plans that the statements of verify must have.

use bucket_brigade_common::ledger::ApplicationTable;

use super::check::{RECORD_COMPANION, RECORD_RECOPY};
use super::queries::{RECORD_FINDINGS, SELECT_MISMATCHES, SELECT_MOVED_IDS, rows_to_verify_sql};
use crate::moved_row::moves_of_stretch_sql;
use crate::statement_plans::{PlannedStatement, after, planned, repeated, texts, times};

pub(crate) fn statements(table: &ApplicationTable) -> Vec<PlannedStatement> {
    let (ids, etags) = (texts("", 100), repeated("'e'", 100, "text"));
    let (nulls, numbers) = (repeated("NULL", 100, "text"), repeated("1", 100, "bigint"));
    let (yes, no) = (
        repeated("true", 100, "boolean"),
        repeated("false", 100, "boolean"),
    );
    let moved = times(100);
    planned! {
        "a page of moves": after(SELECT_MOVED_IDS), ["1", "'6'", "1000"], "moves_pkey", 1500.0;
        "moves of a stretch": moves_of_stretch_sql(table), ["1", &ids, "'600000'", "'600099'"], "moves_pkey", 1000.0;
        "findings": RECORD_FINDINGS,
            ["1", &ids, &etags, &moved, &yes, &etags, &numbers, &nulls, &ids, &nulls, &nulls, "'6'", "1", "1", "1",
             "1", &no, &no],
            "moves_pkey", 1000.0;
        "copied anew": RECORD_RECOPY, ["1", "'600000'", "'f'", "'e'"], "moves_pkey", 10.0;
        "a companion": RECORD_COMPANION, ["1", "'600000'", "'p'", "'f'", "'e'"], "moves_pkey", 10.0;
        "a page of the table": rows_to_verify_sql(table, false), ["1", "1000", "'image/%'", "'500000'"],
            "images_pkey", 3500.0;
        "mismatches": after(SELECT_MISMATCHES), ["1", "'6'"], "mismatches_pkey", 1500.0;
    }
}
