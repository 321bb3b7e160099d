//! Before anything moves, and a canary.

use anyhow::Result;

use super::operator::Told;
use super::scene::Scene;
use crate::seed::SeededRowKind;
use crate::traffic::ApplicationWrite;

/// What would be done, whether it can be done, and what it would cost.
pub(super) async fn plan(scene: &mut Scene) -> Result<()> {
    scene.chapter(
        "Plan",
        "Nothing has been touched yet, and nothing is. The application reads; it begins to write after this.",
    );
    let bucket = scene.stage.application.destination_bucket.clone();
    let before = scene.stage.cloud.count_objects(&bucket);
    scene.see(&["plan"], 0).await?;
    let told = scene.ask(&["plan"], &[0]).await?;
    let (rows, count) = (&told.json["rows"], |kind| scene.seeded.count_kind(kind));
    let to_do = count(SeededRowKind::ToMove) + count(SeededRowKind::Missing);
    let is_counted = rows["in_scope"] == to_do
        && rows["moved_already"] == count(SeededRowKind::AlreadyMoved)
        && rows["outside"] == count(SeededRowKind::Outside);
    scene.holds(is_counted, format!("{to_do} rows in scope, and those moved already and outside the rule, as they were seeded"))?;
    scene.holds(told.number("failing")? == 0, "nothing would fail")?;
    let ledgers = "SELECT count(*) FROM pg_namespace WHERE nspname = 'bucket_brigade'";
    let is_untouched = scene.number(ledgers).await? == 0
        && scene.stage.cloud.count_objects(&bucket) == before
        && scene.stage.queue_depth().await?.total() == 0;
    scene.holds(
        is_untouched,
        "no ledger, no object and no message was left behind",
    )
}

/// One per cent first.
pub(super) async fn canary(scene: &mut Scene) -> Result<()> {
    scene.chapter(
        "Canary",
        "Consumers are started, and stay until the end. One per cent of the rows is fed.",
    );
    scene.start_consumers()?;
    let arguments = ["--sample", "1"];
    let feeder = scene.feeder("feeder-canary", &arguments)?;
    scene.feeder_ends(feeder, &arguments).await?;
    let moves = scene.moves().await?;
    let share = moves.len() * 1000 / scene.images;
    scene.holds(
        (1..=30).contains(&share),
        format!("{} of {} images have moved", moves.len(), scene.images),
    )?;
    let (paths, written) = (scene.paths().await?, scene.written());
    let others = scene.seeded.rows.iter();
    let mut others =
        others.filter(|row| !moves.contains_key(&row.id) && !written.contains(&row.id));
    let are_untouched = others.all(|row| paths.get(&row.id) == Some(&row.path));
    scene.holds(
        are_untouched,
        "all other rows are as the application has them",
    )?;
    let status = scene.ask(&["status"], &[0]).await?;
    scene.holds(
        status.json["rows"]["moved"] == moves.len(),
        "`status` tells the same number",
    )?;
    scene
        .transcript
        .say("Nobody has verified yet, so nothing may be cleaned away, whoever confirms it:");
    let before = scene.sources();
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let refused = scene.see(&clean, 1).await?;
    let is_refused = refused.log.contains("run feeder verify first");
    scene.holds(
        is_refused && scene.sources() == before,
        "it refuses, and all sources are there",
    )
}

/// The canary's copies, asked for anew.
pub(super) async fn verify(scene: &mut Scene) -> Result<()> {
    scene.chapter(
        "Verify the canary",
        "Each copy and each source is asked for anew.",
    );
    let told = scene.ask(&["verify"], &[0, 1]).await?;
    judge(scene, &told, |_, _| false).await
}

/// A verification found wrong only what the application did: images that it replaced under the very key of
/// our copy. And what `is_expected` says of a row and a code.
pub(super) async fn judge(
    scene: &mut Scene,
    told: &Told,
    is_expected: impl Fn(&str, &str) -> bool,
) -> Result<()> {
    let moves = scene.moves().await?.len();
    scene.holds(
        told.number("checked")? == moves,
        format!("all {moves} moves were looked at"),
    )?;
    let (log, mismatches) = (scene.traffic.write_log(), told.list("mismatches")?.clone());
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let is_known = |mismatch: &serde_json::Value| {
        let (id, code) = (text(&mismatch["id"]), text(&mismatch["code"]));
        let deed = log.rows.get(&id);
        let replaced = matches!(deed, Some(ApplicationWrite::Replaced { path, .. }) if *path == text(&mismatch["path"]));
        (code == "CopyReplaced" && replaced) || is_expected(&id, &code)
    };
    let unknown: Vec<_> = mismatches.iter().filter(|one| !is_known(one)).collect();
    let found = match (mismatches.len(), unknown.first()) {
        (_, Some(one)) => format!("every mismatch is known; not so: {one}"),
        (0, _) => "there are no mismatches".to_owned(),
        (count, _) => format!(
            "each of the {count} mismatches is an image that the application replaced under its new key, or a row without an image"
        ),
    };
    scene.holds(unknown.is_empty(), found)?;
    let code = i32::from(!mismatches.is_empty());
    scene.holds(
        told.code == code,
        "the exit code says whether there are any",
    )
}
