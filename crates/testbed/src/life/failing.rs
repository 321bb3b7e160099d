//! What failed, and its way back.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::Value;

use super::before::judge;
use super::full::POISON;
use super::operator::Told;
use super::scene::Scene;
use crate::picture::random_png;
use crate::seed::{SeededRow, SeededRowKind};

const ALL: [&str; 3] = ["failures", "--limit", "1000000"];

/// What failed, and why.
pub(super) async fn failures(scene: &mut Scene) -> Result<()> {
    scene.chapter("Failures", "What could not be moved, and why.");
    scene.see(&["failures", "--limit", "5"], 2).await?;
    let told = scene.ask(&ALL, &[2]).await?;
    check_codes(scene, &told, &["InvalidObjectState", "NoSuchKey"]).await?;
    let (failed, dead) = (
        told.list("failures")?.len(),
        scene.stage.dead_letters().await?,
    );
    let status = scene.ask(&["status"], &[0]).await?;
    let is_told = status.json["rows"]["failed"] == failed
        && status.json["queue"]["dead_letters"] == dead
        && status.json["rows"]["poison"] == POISON.len();
    scene.holds(
        is_told,
        format!("`status` tells of the same {failed} rows, of {} messages not understood and of {dead} dead letters", POISON.len()),
    )
}

/// The codes of failed rows are those that were to be expected: of images that are not there, and of
/// archived ones; and none of these is missing, but for rows that the application has written since.
async fn check_codes(scene: &mut Scene, told: &Told, codes: &[&str]) -> Result<()> {
    let failed = failed(told)?;
    let missing = scene.unchanged(SeededRowKind::Missing).await?;
    let paths = scene.paths().await?;
    let is_open = |row: &&SeededRow| {
        paths.get(&row.id) == Some(&row.path) && scene.archived.contains_key(&row.id)
    };
    let archived: BTreeSet<String> = scene
        .seeded
        .rows_of_kind(SeededRowKind::ToMove)
        .filter(is_open)
        .map(|row| row.id.clone())
        .collect();
    let expected = |id: &String| {
        if scene.archived.contains_key(id) {
            "InvalidObjectState"
        } else {
            "NoSuchKey"
        }
    };
    let wrong = failed
        .iter()
        .find(|(id, code)| expected(id) != code.as_str() || !codes.contains(&code.as_str()));
    ensure!(wrong.is_none(), "nobody expected this failure: {wrong:?}");
    let all_told = missing.union(&archived).all(|id| failed.contains_key(id));
    scene.holds(
        all_told,
        format!(
            "each of the {} images that are not there and of the {} archived ones is told, with its code, and no other",
            missing.len(),
            archived.len()
        ),
    )
}

/// Codes by row.
fn failed(told: &Told) -> Result<BTreeMap<String, String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let failures = told.list("failures")?.iter();
    failures
        .map(|one| Ok((text(&one["row_id"])?, text(&one["code"])?)))
        .collect()
}

/// The reasons are mended, some of them, and what failed is fed again.
pub(super) async fn retry(scene: &mut Scene) -> Result<()> {
    scene.chapter(
        "Retry",
        "The archived images are restored. Rows of one code are retried; dead letters stay where they are, because nothing tells what they died of.",
    );
    let archived = std::mem::take(&mut scene.archived);
    let failed_so =
        "SELECT count(*) FROM bucket_brigade.failures WHERE code = 'InvalidObjectState'";
    let (count, dead) = (
        scene.number(failed_so).await?,
        scene.stage.dead_letters().await?,
    );
    let ids: Vec<String> = archived.into_keys().collect();
    let told = scene
        .ask(&["retry", "--code", "InvalidObjectState"], &[0])
        .await?;
    let is_so = told.number("rows")? == count
        && told.json["redrive"] == "not asked for"
        && scene.stage.dead_letters().await? == dead;
    scene.holds(
        is_so,
        format!("{count} rows are no failures any more, {dead} dead letters are where they were"),
    )?;
    retry_all(scene, dead).await?;
    feed_again(scene, &ids).await
}

async fn retry_all(scene: &mut Scene, dead: u64) -> Result<()> {
    let found = provide(scene).await?;
    scene.transcript.say(&format!(
        "The application finds {found} of the images that were not there and puts them where their rows say. Everything is retried, dead letters too:"
    ));
    let count = scene
        .number("SELECT count(*) FROM bucket_brigade.failures")
        .await?;
    let told = scene.ask(&["retry"], &[0]).await?;
    let is_so = told.number("rows")? == count
        && told.json["dead_letters"] == dead
        && told.json["redrive"] != "none"
        && told.json["feeder_is_alive"] == false;
    scene.holds(
        is_so,
        format!("{count} rows and {dead} dead letters are on their way"),
    )
}

async fn feed_again(scene: &mut Scene, once_archived: &[String]) -> Result<()> {
    let attempts = "SELECT coalesce(sum(attempts), 0)::bigint FROM bucket_brigade.poison";
    let before = scene.number(attempts).await?;
    let feeder = scene.feeder("feeder-retry", &[])?;
    let code = scene.feeder_ends(feeder, &[]).await?;
    scene.holds(
        code == 2,
        "some rows failed again: their images still are not there",
    )?;
    let told = scene.ask(&ALL, &[2]).await?;
    check_codes(scene, &told, &["NoSuchKey"]).await?;
    let left = scene.unchanged(SeededRowKind::ToMove).await?;
    let moved = once_archived.len();
    scene.holds(
        left.is_empty(),
        format!("what was found and the {moved} images that were archived have moved: no row names an image under its old path"),
    )?;
    let after = scene.number(attempts).await?;
    let dead = scene.stage.dead_letters().await?;
    scene.holds(
        after > before && dead >= POISON.len() as u64,
        "the messages that are not ours came back, were tried again, and are dead letters once more",
    )
}

/// The application uploads every other image that is not there; how many.
async fn provide(scene: &mut Scene) -> Result<usize> {
    let open = scene.unchanged(SeededRowKind::Missing).await?;
    let rows = scene.seeded.rows.iter_mut();
    let found: Vec<&mut SeededRow> = rows
        .filter(|row| open.contains(&row.id))
        .step_by(2)
        .collect();
    let (count, mut dice) = (found.len(), Rng::with_seed(7));
    for row in found {
        let bytes = random_png(&mut dice, 4096)?;
        let application = &scene.stage.application;
        *row = scene
            .traffic
            .upload_missing(application, row, bytes)
            .await?;
    }
    Ok(count)
}

/// Everything once more, and every row of the table; then the evidence, row by row.
pub(super) async fn verify_and_report(scene: &mut Scene) -> Result<()> {
    scene.chapter(
        "Verify and report",
        "Every move, then every row of the table: does the object exist that it names?",
    );
    let missing = scene.unchanged(SeededRowKind::Missing).await?;
    let told = scene.ask(&["verify", "--full"], &[1]).await?;
    judge(scene, &told, |id, code| {
        code == "NoObject" && missing.contains(id)
    })
    .await?;
    let still = scene.unchanged(SeededRowKind::Missing).await?;
    let told_of = |id: &String| {
        told.list("mismatches")
            .is_ok_and(|all| all.iter().any(|one| one["id"] == **id))
    };
    let all_told = still.iter().all(told_of);
    scene.holds(
        all_told,
        format!(
            "each of the {} rows whose image is not there is told",
            still.len()
        ),
    )?;
    report(scene).await
}

async fn report(scene: &mut Scene) -> Result<()> {
    let told = scene.ask(&["report"], &[0]).await?;
    let lines = told.answer.lines().map(serde_json::from_str);
    let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
    for (state, table) in [
        ("moved", "moves"),
        ("changed", "changes"),
        ("failed", "failures"),
    ] {
        let rows = scene
            .number(&format!("SELECT count(*) FROM bucket_brigade.{table}"))
            .await?;
        let told = lines.iter().filter(|line| line["state"] == state).count();
        scene.holds(
            told == rows,
            format!("{rows} rows {state}, a line for each"),
        )?;
    }
    let moved = lines.iter().filter(|line| line["state"] == "moved");
    let is_proven = |line: &Value| {
        line["etag"].is_string()
            && line["by"]
                .as_str()
                .is_some_and(|by| by.starts_with("consumer-"))
            && (line["code"].is_string()
                || line["verified_at"].is_string() && line["size_bytes"].is_i64())
    };
    let mut moved = moved.filter(|line| line["new_path"].is_string());
    scene.holds(
        moved.all(is_proven),
        "each move has its ETag and its consumer, and either the time it was verified or what was found wrong",
    )?;
    let csv = scene.see(&["report", "--format", "csv"], 0).await?;
    scene.holds(
        csv.answer.lines().count() > lines.len() && csv.answer.starts_with("id,state,old_path"),
        "the same as CSV",
    )
}
