//! The plans that the statements of clean must have.

use bucket_brigade_common::ledger::ApplicationTable;
use bucket_brigade_common::path_encoding::PathEncoding;

use super::candidates::{
    SELECT_ORPHANS, SELECT_ORPHANS_BY_KEY, cleanable_paths_sql, settle_gone_sql, sources_sql,
    unsettled_sql,
};
use super::count::{COUNT_ORPHANS, count_moves_sql, count_sources_sql};
use super::encoded_paths::SELECT_UNSETTLED;
use super::other_spellings::stretch_sql;
use super::path_references::{PathReference, ReferringColumn};
use super::removals::{SELECT_INTERRUPTED, finish_removals_sql};
use crate::command_cursor::CursorLap;
use crate::statement_plans::{PlannedStatement, page, repeated, texts};
use crate::statements::page_after;

/// Upserts find their rows by the key without a node of the plan, and are not here.
#[expect(clippy::too_many_lines, reason = "a list")]
pub(crate) fn statements(table: &ApplicationTable) -> Vec<PlannedStatement> {
    let mut lap = CursorLap::default();
    lap.after = Some("image/6".into());
    let paths = texts("image/", 100);
    let keys = texts("avatar/", 100);
    let column = ReferringColumn {
        table: "images".into(),
        id_column: "id".into(),
        path_column: "path".into(),
        known_prefixes: vec!["image/".into(), "avatar/".into()],
        references: vec![PathReference {
            path_prefix: "image/".into(),
            key_prefix: "image/".into(),
            encoding: PathEncoding::None,
        }],
    };
    let nulls = repeated("NULL", 100, "text");
    let mut all = vec![
        page(
            "sources: a page",
            lap.page_sql(&cleanable_paths_sql(), "m.old_path").0,
            &["1", "'image/6'", "NULL", "1000"],
            "moves_cleanable",
            1500.0,
        ),
        page(
            "sources: may they go",
            sources_sql(),
            &["1", &paths, "0"],
            "moves_cleanable",
            400.0,
        ),
        page(
            "sources: rows of others",
            unsettled_sql(table),
            &[&keys, "1"],
            "images_path",
            400.0,
        ),
        page(
            "sources: gone before",
            settle_gone_sql(),
            &["1", &paths],
            "moves_cleanable",
            400.0,
        ),
        page(
            "orphans: a page",
            lap.page_sql(SELECT_ORPHANS, "destination_key").0,
            &["1", "'avatar/6'", "NULL", "1000", "0"],
            "orphans_pkey",
            1500.0,
        ),
        page(
            "orphans by key",
            SELECT_ORPHANS_BY_KEY,
            &["1", &keys, "0"],
            "orphans_pkey",
            400.0,
        ),
        page(
            "what was cut off",
            page_after(SELECT_INTERRUPTED, Some("")).0,
            &["1", "false", "'image/45'", "100"],
            "removals_unfinished",
            400.0,
        ),
        page(
            "removals end",
            finish_removals_sql(),
            &[
                "1",
                "false",
                &paths,
                &repeated("true", 100, "boolean"),
                &nulls,
                &nulls,
                "'o'",
                &paths,
                &paths,
            ],
            "moves_cleanable",
            800.0,
        ),
        page(
            "which rows name a key",
            column.lookup_sql(),
            &[&keys],
            "images_path",
            400.0,
        ),
        page(
            "other spellings",
            stretch_sql(&column, &table.id, true),
            &["ARRAY['image/','avatar/']", "20000", "'500000'"],
            "images_pkey",
            25_000.0,
        ),
    ];
    for (name, sql, cursor, index) in [
        (
            "unsettled moves",
            SELECT_UNSETTLED.to_owned(),
            "'6'",
            "moves_pkey",
        ),
        ("the count of moves", count_moves_sql(), "'6'", "moves_pkey"),
        (
            "the count of sources",
            count_sources_sql(),
            "'image/6'",
            "moves_cleanable",
        ),
        (
            "the count of orphans",
            COUNT_ORPHANS.to_owned(),
            "'avatar/6'",
            "orphans_pkey",
        ),
    ] {
        let sql = page_after(&sql, Some("")).0;
        all.push(page(
            name,
            sql,
            &["1", cursor, "20000", "0"],
            index,
            25_000.0,
        ));
    }
    all
}
