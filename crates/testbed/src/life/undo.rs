//! A part goes back, and moves again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use super::operator::Told;
use super::scene::Scene;

/// What went back: old paths by row.
pub(super) type Back = BTreeMap<String, String>;

/// One in so many images goes back.
const IMAGES_PER_ROW: usize = 20;

/// Whom the application has written since, that is why these stay.
const REASONS: [&str; 3] = ["changed", "deleted", "copy_replaced"];

/// Some rows go back; which.
pub(super) async fn rollback(scene: &mut Scene) -> Result<Back> {
    let (plain, written) = chosen(scene).await?;
    scene.chapter(
        "Rollback of a part",
        &format!(
            "{} rows are to go back, and {} that the application has replaced or deleted since their move are asked for too. Without --yes it only tells.",
            plain.len(),
            written.len()
        ),
    );
    let mut words = vec!["rollback", "--ids"];
    words.extend(plain.keys().chain(&written).map(String::as_str));
    let before = scene.paths().await?;
    let told = scene.ask(&words, &[0, 2]).await?;
    let undone = "SELECT count(*) FROM bucket_brigade.rollbacks";
    let only_told = told.json["done"] == false && scene.number(undone).await? == 0;
    scene.holds(only_told, "nothing was changed")?;
    words.push("--yes");
    let told = scene.ask(&words, &[0, 2]).await?;
    let alone = left_alone(&told)?;
    scene.rolled_back = told.number("rolled_back")?;
    let all = plain.len() + written.len();
    scene.holds(
        scene.rolled_back + alone.len() == all && told.json["done"] == true,
        format!(
            "{} rows went back, {} were left alone: together all that were asked for",
            scene.rolled_back,
            alone.len()
        ),
    )?;
    check_alone(scene, &alone, &written)?;
    let back = plain.into_iter().filter(|(id, _)| !alone.contains_key(id));
    let back = back.collect();
    check_paths(scene, &before, &back).await?;
    Ok(back)
}

/// Reasons by row.
fn left_alone(told: &Told) -> Result<BTreeMap<String, String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let alone = told.list("left_alone")?.iter();
    alone
        .map(|one| Ok((text(&one["id"])?, text(&one["reason"])?)))
        .collect()
}

/// What went back has its old path, and nothing else has changed, but for what the application did.
async fn check_paths(
    scene: &mut Scene,
    before: &BTreeMap<String, String>,
    back: &Back,
) -> Result<()> {
    let (after, written) = (scene.paths().await?, scene.written());
    let is_back = |(id, old)| after.get(id) == Some(old) || written.contains(id);
    scene.holds(back.iter().all(is_back), "each of those has its old path")?;
    let is_other = |id: &String| !back.contains_key(id) && !written.contains(id);
    let mut others = before.iter().filter(|(id, _)| is_other(id));
    let count = others.clone().count();
    let are_untouched = others.all(|(id, path)| after.get(id) == Some(path));
    scene.holds(
        are_untouched,
        format!("none of {count} other rows has changed"),
    )
}

/// Rows to go back with their old paths, and rows that were moved and that the application has written since.
async fn chosen(scene: &Scene) -> Result<(Back, BTreeSet<String>)> {
    let (moves, paths, written) = (scene.moves().await?, scene.paths().await?, scene.written());
    let by_application: BTreeSet<String> = moves
        .keys()
        .filter(|id| written.contains(*id))
        .cloned()
        .collect();
    let is_ours = |(id, old): &(&String, &String)| {
        !written.contains(*id) && paths.get(*id) == Some(&scene.new_path(old))
    };
    let ours: Vec<(&String, &String)> = moves.iter().filter(is_ours).collect();
    let wanted = scene.images / IMAGES_PER_ROW;
    let plain = ours
        .iter()
        .step_by((ours.len() / wanted).max(1))
        .take(wanted);
    let plain = plain
        .map(|(id, old)| ((*id).clone(), (*old).clone()))
        .collect();
    let some = by_application.into_iter().take(wanted / 5).collect();
    Ok((plain, some))
}

fn check_alone(
    scene: &mut Scene,
    alone: &BTreeMap<String, String>,
    written: &BTreeSet<String>,
) -> Result<()> {
    let by_application = scene.written();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in alone.values() {
        *reasons.entry(reason.as_str()).or_default() += 1;
    }
    let reasons_told = reasons
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"));
    let reasons_told = reasons_told.collect::<Vec<_>>().join(", ");
    let all_known = alone
        .iter()
        .all(|(id, reason)| REASONS.contains(&reason.as_str()) && by_application.contains(id));
    scene.holds(
        all_known,
        format!("who was left alone is the application's ({reasons_told})"),
    )?;
    scene.holds(
        written.iter().all(|id| alone.contains_key(id)),
        "none of the application's rows went back",
    )
}

/// The feeder moves again what went back, and nothing else.
pub(super) async fn run_again(scene: &mut Scene, back: &Back) -> Result<()> {
    scene.chapter("Run again", "What went back is to do again.");
    let moved = scene
        .number("SELECT count(*) FROM bucket_brigade.moves")
        .await?;
    let feeder = scene.feeder("feeder-again", &[])?;
    scene.feeder_ends(feeder, &[]).await?;
    let (paths, written) = (scene.paths().await?, scene.written());
    let again = |(id, old): (&String, &String)| {
        paths.get(id) == Some(&scene.new_path(old)) || written.contains(id)
    };
    let all_again = back.iter().all(again);
    scene.holds(
        all_again,
        format!("all {} rows have their new path again", back.len()),
    )?;
    let now = scene
        .number("SELECT count(*) FROM bucket_brigade.moves")
        .await?;
    let by_application = back.keys().filter(|id| written.contains(*id)).count();
    scene.holds(
        now <= moved + back.len() && now + by_application >= moved + back.len(),
        format!("{now} moves are on record, {} of them anew", now - moved),
    )
}
