//! The plans that the statements of clean must have.

use bucket_brigade_common::companions::CompanionPatterns;
use bucket_brigade_common::ledger::{ApplicationTable, COPIES, THIS_RUN, in_removal_sql};
use bucket_brigade_common::path_encoding::PathEncoding;

use super::candidates::{
    HAS_OLD_MOVES, cleanable_paths_sql, is_unsettled, orphans_by_key_sql, orphans_page_sql,
    settle_gone_sql, sources_sql,
};
use super::count::count_first_sql;
use super::encoded_paths::unsettled_sql;
use super::path_references::{ColumnRules, PathReference};
use super::removals::{finish_removals_sql, interrupted_sql};
use crate::command_cursor::CursorLap;
use crate::path_column::{PathColumn, RowSearch};
use crate::statement_plans::{
    FIRST_MOVE_SECONDS, PlannedStatement, after, planned, repeated, texts,
};

fn rules() -> ColumnRules {
    ColumnRules {
        known_prefixes: vec!["image/".into(), "avatar/".into()],
        references: vec![PathReference {
            path_prefix: "image/".into(),
            key_prefix: "image/".into(),
            encoding: PathEncoding::None,
            companions: CompanionPatterns::default(),
        }],
    }
}

/// What makes the index of rows that spell a path otherwise.
pub(crate) fn create_index_sql() -> String {
    let condition = rules().odd_condition("path");
    format!("CREATE INDEX images_odd ON images (id) WHERE {condition}")
}

/// Upserts find their rows by the key without a node of the plan, and are not here.
pub(crate) fn statements(table: &ApplicationTable) -> Vec<PlannedStatement> {
    let mut lap = CursorLap::default();
    lap.after = Some("image/6".into());
    let paths = texts("image/", 100);
    let keys = texts("avatar/", 100);
    let column = PathColumn {
        table: table.sql.clone(),
        path: table.path.clone(),
        id: table.id.clone(),
        is_indexed: true,
    };
    let odd = RowSearch {
        condition: rules().odd_condition("t.path"),
        is_indexed: true,
        paths: None,
    };
    let one_of = RowSearch {
        condition: column.is_one_of("$3", "true"),
        is_indexed: false,
        paths: None,
    };
    let nulls = repeated("NULL", 100, "text");
    let gone = repeated("true", 100, "boolean");
    let age = format!("extract(epoch FROM now()) - {FIRST_MOVE_SECONDS}");
    let mut statements = planned! {
        "sources: is any old": HAS_OLD_MOVES, ["1", &age], "moves_by_time", 40000.0;
        "sources: a page": lap.page_sql(&cleanable_paths_sql(), "m.old_path").0, ["1", "'image/6'", "NULL", "1000"],
            "moves_cleanable", 1500.0;
        "sources: may they go": sources_sql(), ["1", &paths, "0"], "moves_cleanable", 400.0;
        "sources: rows of others": column.lookup_sql(&is_unsettled(1, &table.id)), [&keys], "images_path", 400.0;
        "sources: gone before": settle_gone_sql(), ["1", &paths], "moves_cleanable", 400.0;
        "orphans: a page": lap.page_sql(&orphans_page_sql(), "destination_key").0,
            ["1", "'avatar/6'", "NULL", "1000", "0"], "orphans_pkey", 1500.0;
        "orphans by key": orphans_by_key_sql(), ["1", &keys, "0"], "orphans_pkey", 400.0;
        "what was cut off": after(&interrupted_sql(false, 100)), ["1", "'image/45'"], "removals_unfinished", 400.0;
        "copies in removal": in_removal_sql(THIS_RUN, COPIES), ["1"], "removals_unfinished", 400.0;
        "removals end": finish_removals_sql(),
            ["1", "false", &paths, &gone, &nulls, &nulls, "'o'", &paths, &paths, &gone, "'{}'"], "moves_cleanable", 800.0;
        "which rows name a key": column.lookup_sql("true"), [&keys], "images_path", 400.0;
        "the same without an index": column.stretch_sql(&one_of, true), ["20000", "'500000'", &keys],
            "images_pkey", 25000.0;
        "other spellings": column.stretch_sql(&odd, true), ["20000", "'500000'"], "images_odd", 300.0;
        "the first sources": count_first_sql(false), ["1", "0", "5000"], "moves_cleanable", 25000.0;
        "the first orphans": count_first_sql(true), ["1", "0", "5000"], "orphans_pkey", 25000.0;
        "unsettled moves": after(&unsettled_sql(0.0)), ["1", "'6'"], "moves_pkey", 25000.0;
    };
    statements[0].is_rare = true;
    statements
}
